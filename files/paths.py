"""Expands paths that users type."""

import os
import re
from pathlib import Path

from files.errors import PathError, shown

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(path: str | Path, name: str = "") -> Path:
    """Returns the path with a leading ~ or ~user and every $VARIABLE and ${VARIABLE} replaced, as a shell does.

    name: the path's key, for messages.

    Raises: PathError: if the path is empty, or has a variable or user that does not exist, and no file has that name.
    """
    text = str(path)
    what = f"{name}={shown(text)}" if name else f"the path {shown(text)}"
    if not text.strip():
        raise PathError(f"{name}= is empty; give a path")
    for found in VARIABLE.finditer(text):
        variable, component_end = found[1] or found[2], (text + "/").index("/", found.end())
        if variable not in os.environ and not os.path.lexists(text[:component_end]):
            raise PathError(f"{what} needs the environment variable {variable}, which is not set")
    result = Path(os.path.expandvars(text))
    try:
        return result.expanduser()
    except RuntimeError:
        if os.path.lexists(result.parts[0]):
            return result
        raise PathError(f"{what} needs the home folder of {result.parts[0]}, which is not known") from None
