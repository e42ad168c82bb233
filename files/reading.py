"""Reads files of runs, claims and results as plain data: nothing in them is resolved, imported or executed.

The error of every reader is one line that names the file and says why it cannot be read: no regular file (opening a
FIFO would wait), too large, not UTF-8, another format, nested too deeply. Numbers that are not finite (NaN, 1e999) are
read as None: JSON has none, and they cannot be compared.

A symbolic link to a file outside its folder is refused: else a directory that others wrote could show what only this
user may read. The folder itself may be a link. may_be_link: allows links, for files that the user names, and those of
the packages or a data set.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]  # OmegaConf brings it; its types are a package of their own

from files.errors import ReadingError, one_line, shown

MIB = 1 << 20
MOST_JSON_BYTES = 16 * MIB  # the largest results.json committed has 0.3 MiB
MOST_YAML_BYTES = 128 * 1024  # takes Python's parser a second or two; the largest claim has 9 KiB
MOST_YAML_VALUES = 100_000  # aliases written out
MOST_LINES_BYTES = 2048 * MIB  # 600,000 rows of metrics have 0.5 GiB
MOST_LINE_BYTES = MIB
MERGE = "tag:yaml.org,2002:merge"
LONGEST_INT = 30  # digits, enough for nanoseconds and FLOPs; longer numbers are read as floats


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES, may_be_link: bool = False) -> dict[str, Any] | None:
    """Returns the object in a JSON file, None if there is no such file.

    Raises: ReadingError: if the file is damaged, or holds anything but an object.
    """
    content = _read(path, most_bytes, may_be_link)
    return None if content is None else parse_object(content, str(path))


def read_yaml(path: Path, *, may_be_link: bool = False) -> dict[str, Any] | None:
    """Returns the mapping in a YAML file, None if there is no such file; ${...} in texts is not resolved.

    Scalars have the types that OmegaConf gives them: 1e-3 is a number, a date is a text.

    Raises: ReadingError: if the file is damaged, or holds anything but a mapping.
    """
    content = _read(path, MOST_YAML_BYTES, may_be_link)
    if content is None:
        return None
    try:
        found = _plain(_parsed(content, path), path)
    except RecursionError:
        raise ReadingError(f"{path} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ReadingError(f"{path} must hold a mapping of keys to values, not {_kind(found)}")
    return {str(key): value for key, value in found.items()}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file, nothing if there is no file.

    A last line without a line end, which a killed run may leave, is left out.

    Raises: ReadingError: if a line is damaged, or no object.
    """
    file = opened(path)
    if file is None:
        return
    with file:
        number = 0
        while line := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > MOST_LINE_BYTES:
                    raise ReadingError(f"{path}, line {number} is longer than {MOST_LINE_BYTES:,} bytes")
                return
            if line.strip():
                yield parse_object(line, f"{path}, line {number}")


def read_text(path: Path, *, most_bytes: int = MOST_JSON_BYTES, may_be_link: bool = False) -> str | None:
    """Returns the text of a UTF-8 file, None if there is no such file. Raises: ReadingError."""
    content = _read(path, most_bytes, may_be_link)
    return None if content is None else _text(content, str(path))


def number(value: Any) -> float | None:
    """Returns the value if it is a finite number, else None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def opened(path: Path, *, most_bytes: int = MOST_LINES_BYTES, may_be_link: bool = False) -> BinaryIO | None:
    """Returns the file, open for reading, None if there is none.

    Raises: ReadingError: if it is no regular file, too large, or a link out of its folder.
    """
    try:  # checks the path first, as opening some devices has effects
        _check(path, path.stat(), most_bytes)
        if not may_be_link and leads_out(path):
            target = shown(os.path.realpath(path))
            raise ReadingError(f"{path} is a symbolic link to {target}, out of its folder; put the file itself there")
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )  # does not wait for a FIFO put there meanwhile
        file = os.fdopen(descriptor, "rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, ReadingError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ReadingError(f"{path} cannot be read: {reason}") from None
    try:
        _check(path, os.fstat(descriptor), most_bytes)
    except ReadingError:
        file.close()
        raise
    return file


def leads_out(path: Path) -> bool:
    """Whether the path is a symbolic link to something outside of its folder."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(path.parent))


def _check(path: Path, found: os.stat_result, most_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ReadingError(f"{path} must be a file; it is {_file_kind(found.st_mode)}")
    if found.st_size > most_bytes:
        raise ReadingError(f"{path} has {found.st_size:,} bytes; one of that kind has {most_bytes:,} at most")


def _read(path: Path, most_bytes: int, may_be_link: bool) -> bytes | None:
    file = opened(path, most_bytes=most_bytes, may_be_link=may_be_link)
    if file is None:
        return None
    with file:
        try:
            return file.read(most_bytes)  # a file that has grown meanwhile is truncated, and then damaged
        except OSError as error:
            raise ReadingError(f"{path} cannot be read: {error.strerror}") from None


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReadingError(f"{where} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from None


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object in content; where: names it in messages. Raises: ReadingError."""
    try:
        found = json.loads(
            _text(content, where),
            object_pairs_hook=_members,
            parse_constant=_no_number,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        raise ReadingError(f"{where} is no JSON: {one_line(error)}") from None
    except RecursionError:
        raise ReadingError(f"{where} is nested too deeply") from None
    except _TwiceError as error:
        raise ReadingError(f"{where} has the key {shown(str(error))} twice") from None
    if not isinstance(found, dict):
        raise ReadingError(f"{where} must hold a JSON object, not {_kind(found)}")
    return found


class _TwiceError(Exception):
    """Raised for a key that occurs twice in an object."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def _parsed(content: bytes, path: Path) -> Any:
    text = _text(content, str(path))
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise
    except Exception as error:  # yaml's errors, and what Python raises for !!float x, !!timestamp x and such
        raise ReadingError(f"{path} is no YAML: {one_line(error)[:300]}") from None


def _no_number(name: str) -> None:
    """None for NaN, Infinity and -Infinity, which Python's JSON accepts."""
    return


def _float(text: str) -> float | None:
    return number(float(text))


def _int(text: str) -> int | float | None:
    return int(text) if len(text) <= LONGEST_INT else number(float(text))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # without types, its base is Any
    """Reads scalars as OmegaConf does, and refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but refuses a key that occurs twice, whose later value would replace the earlier one."""
        found: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.tag == MERGE:  # a few lines with these can make billions of keys
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read; write the keys out")
            if key.value in found:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice")
            found.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


def _plain(value: Any, path: Path) -> Any:
    """The value with aliases replaced by copies, at most MOST_YAML_VALUES values, and numbers as in JSON."""
    left = MOST_YAML_VALUES

    def copied(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ReadingError(f"{path} has more than {MOST_YAML_VALUES:,} values, aliases written out")
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set):
            return [copied(each) for each in value]
        if isinstance(value, float | int) and not isinstance(value, bool):
            return number(value)
        return value if value is None or isinstance(value, bool) else str(value)

    return copied(value)


def _kind(value: Any) -> str:
    kinds: Mapping[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "nothing" if value is None else kinds.get(type(value), "a number")


def _file_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
