"""Which of some runs a user means: group=option and key=value as for train.py, asked of their configurations.

A config.yaml does not say by which options it was made. So group=option means the runs whose classes are the option's,
if no other option with these classes differs from the run in fewer keys. A key with several values, key=a,b, means the
runs that have any of them.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from configs.composition import names_a_run, of_options
from configs.errors import ConfigError
from configs.groups import FOLDER, GROUPS, options_of
from configs.overrides import expand, given, text, value
from configs.plug_ins import nodes
from configs.runs import ABSENT, flat
from files.errors import shown
from files.reading import read_yaml

Wanted = Mapping[str, Sequence[str]]  # by key or group, the values or options as they were typed


class _Facts(NamedTuple):
    """What is compared of a group."""

    classes: tuple[str, ...]
    settings: dict[str, Any]


def wanted(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The filters on a command line. Raises: ConfigError: if one is no key=value, or names an option there is not."""
    found: dict[str, list[str]] = {}
    for argument in arguments:
        each = given(argument)
        if each.raw is None or each.text.startswith(("+", "~")):
            raise ConfigError(f"{shown(argument)} is no filter; a filter is written key=value, such as optim.lr=1e-3")
        values = [one.partition("=")[2] for (one,) in expand([argument])]
        if each.key in GROUPS:
            for option in values:
                of_options([f"{each.key}={option}"])
        found.setdefault(each.key, []).extend(values)
    return found


def check_key(key: str, known: Sequence[str]) -> None:
    """Checks that some run has the key; known: those of all runs. Raises: ConfigError: with the nearest one."""
    if key not in known:
        near = get_close_matches(key, [*GROUPS, *known], 1) or [each for each in known if each.endswith(f".{key}")]
        hint = f"; the nearest that there is, is {near[0]!r}" if near else ""
        raise ConfigError(f"none of the runs has the key {shown(key)!r}{hint}")


def matches(config: Mapping[str, Any], facts: Mapping[str, Any], filters: Wanted) -> bool:
    """Whether a run is meant. config: its nested configuration. facts: its settings by dotted key, and more.

    Raises: ConfigError: if a value cannot be read.
    """
    for key, values in filters.items():
        if key in GROUPS:
            if not any(_has_option(config, key, option) for option in values):
                return False
        elif not any(_is(facts.get(key, ABSENT), key, raw) for raw in values):
            return False
    return True


def _is(found: Any, key: str, raw: str) -> bool:
    if isinstance(found, str):
        return found == text(key, raw)
    typed = value(key, raw)
    return isinstance(typed, bool) == isinstance(found, bool) and bool(typed == found)


def _has_option(config: Mapping[str, Any], group: str, option: str) -> bool:
    ours, theirs = _facts(config, group), _of_option(group, option)
    if ours.classes != theirs.classes:
        return False
    distance = _distance(ours, theirs)
    return not distance or all(_distance(ours, each) >= distance for each in _with_classes(group, theirs.classes))


@lru_cache(maxsize=256)
def _with_classes(group: str, classes: tuple[str, ...]) -> list[_Facts]:
    """The options of the group that have these classes."""
    found = []
    for option in options_of(group):
        content: Mapping[str, Any] = read_yaml(FOLDER / group / f"{option}.yaml") or {}
        for part in reversed(group.split("/")):
            content = {part: content}
        if _facts(content, group).classes == classes:  # told by the file alone, as composing takes long
            found.append(_of_option(group, option))
    return found


def _distance(one: _Facts, other: _Facts) -> int:
    """In how many keys they differ."""
    keys = one.settings.keys() | other.settings.keys()
    return sum(one.settings.get(key, ABSENT) != other.settings.get(key, ABSENT) for key in keys)


@lru_cache(maxsize=256)
def _of_option(group: str, option: str) -> _Facts:
    return _facts(of_options([f"{group}={option}"]), group)


def _facts(config: Mapping[str, Any], group: str) -> _Facts:
    place, content = group.replace("/", "."), config
    classes = tuple(node.target for node in nodes(config) if names_a_run(node.key, place))
    for part in place.split("."):
        found = content.get(part)
        content = found if isinstance(found, Mapping) else {}
    return _Facts(classes, flat(content))
