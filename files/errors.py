"""Errors about files, and how values are shown in the one line of a message."""

from typing import Any

LONGEST_MESSAGE = 2000  # characters: a message may quote a value as long as a file
LONGEST_SHOWN = 120  # characters of a value in a message


class ReadingError(ValueError):
    """Raised if a file cannot be read as what it should be; one clear line that names it."""


class PathError(ValueError):
    """Raised for a path with an unknown environment variable or user; one clear line."""


def one_line(error: BaseException) -> str:
    """Returns the message of the error in one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(message: str) -> str:
    """Returns the message, truncated, with line breaks and control characters escaped: file names may hold them."""
    end = "..." if len(message) > LONGEST_MESSAGE else ""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[:LONGEST_MESSAGE]) + end


def shown(value: Any) -> str:
    """Returns the value as messages show it: as it is typed, but quoted if not printable, and truncated if long."""
    literals = {None: "null", True: "true", False: "false"}
    text = literals[value] if value is None or isinstance(value, bool) else str(value)
    if not text.isprintable():
        text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
