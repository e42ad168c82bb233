"""Reading JSON that others may have written."""

import json
from pathlib import Path
from typing import Any


def read_json(file: Path, max_bytes: int) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: ValueError: if it is larger than max_bytes, no JSON, no object, or has a key twice, NaN or Infinity.
        OSError: if it cannot be read.
    """
    with file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return parse_object(content)


def parse_object(content: bytes | str) -> dict[str, Any]:
    """The object that content describes; see read_json."""
    try:
        found = json.loads(content, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got a {type(found).__name__}")
    return found


def want(value: Any, kind: type, what: str) -> Any:
    """value, if it is a kind.

    Raises: ValueError: if it is not; what names it.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{what} is a {type(value).__name__}, expected {kind.__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
