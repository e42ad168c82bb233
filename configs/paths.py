"""Paths as users type them."""

import os
import re

from configs.errors import ConfigError, shown

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(text: str, name: str) -> str:
    """The path with ~, $VARIABLE and ${VARIABLE} replaced, as a shell would; name: its key, for messages.

    Raises: ConfigError: if the path is empty, or the environment has no such variable.
    """
    if not text.strip():
        raise ConfigError(f"{name}= is empty; give a path")

    def value(found: re.Match[str]) -> str:
        variable = found[1] or found[2]
        if variable not in os.environ:
            raise ConfigError(f"{name}={shown(text)}: the environment has no variable {variable}")
        return os.environ[variable]

    return os.path.expanduser(VARIABLE.sub(value, text))  # noqa: PTH111  # a Path would drop a final slash
