"""The options of a command beside those of its runs: launch=slurm launch.partition=gpu, search=optuna search.trials=30.

They say where and in what order runs are started, so no run has them in its configuration or its name. An option is a
file of configs/<group>/ with the import path of a class and arguments of its constructor, like those of a run.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from configs import plug_ins
from configs.annotations import allows_null, fits, in_words, is_text
from configs.errors import ConfigError
from configs.groups import FOLDER, options_of
from configs.overrides import Given, given, text, value
from configs.plug_ins import TARGET, Node
from configs.schema import Seam
from configs.signatures import REQUIRED, Argument
from files.errors import shown
from files.reading import read_yaml

SEAMS = {"launch": Seam("a launcher", ("start", "room")), "search": Seam("a search", ("run",))}
USUAL = {"launch": "local"}  # a command without search=... searches nothing


class Chosen(NamedTuple):
    """An option of a command's group. node: its class and arguments, for plug_in. rest: the other arguments."""

    option: str
    node: dict[str, Any]
    rest: list[str]


def choose(group: str, arguments: Sequence[str]) -> Chosen:
    """The option of the group that the arguments choose, or the usual one, with the keys that they set.

    Raises: ConfigError: if the option or a key does not exist, or a value is of another type.
    """
    own = [given(argument) for argument in arguments if is_of(group, argument)]
    option = USUAL.get(group)
    for each in own:
        if each.key == group:
            option = _option(group, each)
    if option is None:
        raise ConfigError(f"{own[0].text} is a key of {group}=...: add {group}={f' or {group}='.join(options(group))}")
    content, known = _read(group, option)
    for each in own:
        if each.key != group:
            _set(content, each, group, known)
    if missing := [name for name, each in known.items() if each.default is REQUIRED and name not in content]:
        raise ConfigError(f"{group}.{missing[0]} is missing; give it as {group}.{missing[0]}=...")
    return Chosen(option, content, [argument for argument in arguments if not is_of(group, argument)])


def is_of(group: str, argument: str) -> bool:
    """Whether an argument chooses an option of the group, or sets a key of it."""
    return argument.lstrip("+~").partition("=")[0].partition(".")[0] == group


def options(group: str) -> list[str]:
    """The names of the group's options, the usual one first."""
    return sorted(options_of(group), key=lambda name: (name != USUAL.get(group), name))


def arguments(group: str, option: str) -> dict[str, Any]:
    """What an option's class takes, with the values that stand in its file or are the class's own."""
    content, known = _read(group, option)
    return {name: content.get(name, argument.default) for name, argument in known.items()}


def _read(group: str, option: str) -> tuple[dict[str, Any], Mapping[str, Argument]]:
    """What an option's file holds, and what its class takes."""
    content = dict(read_yaml(FOLDER / group / f"{option}.yaml") or {})
    return content, plug_ins.settings(Node(group, SEAMS[group], content), may_import=True) or {}


def _option(group: str, each: Given) -> str:
    found = options(group)
    if each.is_delete or each.raw is None:
        raise ConfigError(f"{each.text}: a command needs {group}; choose {' or '.join(found)}")
    if (option := text(group, each.raw)) not in found:
        near = get_close_matches(option, found, 1)
        hint = f"the nearest is {near[0]!r} " if near else ""
        raise ConfigError(f"{group}={shown(option)} does not exist; {hint}(all: {', '.join(found)})")
    return option


def _set(content: dict[str, Any], each: Given, group: str, known: Mapping[str, Argument]) -> None:
    """Sets one key; what lies below a mapping keeps its dots: launch.options.gres=..., search.space.optim.lr=..."""
    name, _, below = each.key.removeprefix(f"{group}.").partition(".")
    argument = known.get(name)
    if argument is None or (below and not fits({}, argument.annotation)):
        if argument is None and (others := [each for each in options(group) if name in arguments(group, each)]):
            raise ConfigError(f"{shown(each.text)} is a key of {group}={others[0]}; choose that, too")
        near = get_close_matches(each.key, [f"{group}.{one}" for one in known], 1)
        listed = f"the nearest valid one is {near[0]!r}" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"unknown key {shown(each.key)!r}; {listed}")
    if each.is_delete or each.raw is None:
        raise ConfigError(f"{each.text}: give {each.key} another value, or leave it out")
    if below:
        content[name] = {**(content.get(name) or {}), below: value(each.key, each.raw, may_be_swept=False)}
        return
    content[name] = plug_ins.checked(each.key, _typed(each.key, each.raw, argument), argument, str(content[TARGET]))


def _typed(key: str, raw: str, argument: Argument) -> Any:
    if raw == "null" and (argument.default is None or allows_null(argument.annotation)):
        return None
    if is_text(argument.annotation):
        return text(key, raw)
    return value(key, raw, wanted=in_words(argument.annotation), may_be_swept=False)
