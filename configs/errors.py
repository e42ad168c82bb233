"""What is wrong with a configuration or a file, in one line."""

from typing import Any

LONGEST_SHOWN = 120  # characters of a value in a message


class ConfigError(ValueError):
    """One clear line for the user: which key, what was expected, what came, what to do."""


class ReadingError(ValueError):
    """A file that cannot be read as what it should be; one clear line that names it."""


def one_line(error: BaseException) -> str:
    """What the error says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(value: Any) -> str:
    """The value as a message shows it: as it is typed where that is one short line, else quoted and cut."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    if not text.isprintable():
        text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
