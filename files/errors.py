"""What is wrong with a file or a value, in one line."""

from typing import Any

LONGEST_MESSAGE = 2000  # characters: what came may be as long as a file
LONGEST_SHOWN = 120  # characters of a value in a message


class ReadingError(ValueError):
    """A file that cannot be read as what it should be; one clear line that names it."""


class PathError(ValueError):
    """A path that names an environment variable or a user that there is none of; one clear line."""


def one_line(error: BaseException) -> str:
    """What the error says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(message: str) -> str:
    """The message, not too long, with line breaks and control characters escaped: names of files may hold them."""
    end = "..." if len(message) > LONGEST_MESSAGE else ""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[:LONGEST_MESSAGE]) + end


def shown(value: Any) -> str:
    """The value as a message shows it: as it is typed where that is one short line, else quoted and cut."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    if not text.isprintable():
        text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
