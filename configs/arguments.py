"""The key=value arguments of a script that takes few: a dataclass whose fields setting() makes.

A text is taken as typed, whatever it is. A list of texts collects those of a key that is given several times.
"""

from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import ConfigError
from configs.schema import Rule
from files.errors import shown

T = TypeVar("T")
BELOW = 1 << 63  # numbers that torch takes


def setting(meaning: str, default: Any = MISSING, **rule: Any) -> Any:
    """Returns a field of a dataclass of settings; without default it must be given. rule: what schema.Rule has."""
    metadata = {"rule": Rule(meaning, **rule)}
    if default == []:
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


def described(kind: type) -> str:
    """Returns the settings with their defaults and meanings, a line each, for --help."""
    typed = {each.name: f"{each.name}={_default(each)}" for each in fields(kind)}
    width = max(map(len, typed.values()))
    return "\n".join(f"{typed[each.name]:<{width}}  {each.metadata['rule'].meaning}" for each in fields(kind))


def _default(of: Field[Any]) -> str:
    if of.default is MISSING:
        return "" if of.default_factory is MISSING else "..."
    return shown(of.default)


def parse(kind: type[T], arguments: Sequence[str]) -> T:
    """Returns the dataclass that the arguments describe.

    Raises: ConfigError: if a key is unknown or missing, or a value has another type or is out of range.
    """
    known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    found: dict[str, Any] = {}
    for argument in arguments:
        name, is_pair, text = argument.partition("=")
        if not is_pair:
            raise ConfigError(f"{shown(argument)!r} must read key=value, for example run=runs/<name>")
        if name not in known:
            raise ConfigError(f"unknown key {shown(name)!r}; {_nearest(name, list(known))}")
        if known[name].type == list[str]:
            found.setdefault(name, []).append(text)
        else:
            found[name] = text if known[name].type in (str, str | None) else _number(kind, known[name], text)
    for name, each in known.items():
        rule: Rule = each.metadata["rule"]
        if name not in found and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{name}=<{rule.meaning.partition(';')[0]}> is missing")
        if rule.choices and (value := found.get(name)) not in (None, *rule.choices):
            raise ConfigError(f"{name}={shown(value)} must be one of {', '.join(rule.choices)}")
    return kind(**found)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = [each for each in known if name and each.startswith(name)] or get_close_matches(name, known, 1)
    return f"the nearest valid one is {near[0]!r}" if near else f"there are {', '.join(known)}"


def _number(kind: type, of: Field[Any], text: str) -> int | float | bool | None:
    """The value of a field that is no text."""
    config: Any = OmegaConf.structured(kind)
    wanted = {int: "a whole number", float: "a number", bool: "true or false"}
    name, rule = of.name, of.metadata["rule"]
    try:
        config[name] = None if text == "null" and type(None) in get_args(of.type) else text
    except OmegaConfBaseException:
        words = next(words for each, words in wanted.items() if of.type in (each, each | None))
        raise ConfigError(f"{name}={shown(text)} must be {words}") from None
    value: int | float | bool | None = config[name]
    if value is not None and rule.least is not None and not rule.least <= value < BELOW:
        more = " and less than 2**63" if value > rule.least else ""
        raise ConfigError(f"{name}={value} must be >= {rule.least:g}{more}")
    return value
