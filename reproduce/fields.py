"""How a mapping of a claim file becomes a dataclass: OmegaConf's structured configs check keys and types.

A number may be written as a text that reads as one. Limits stand beside a field's default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from configs.plug_ins import literal
from files.errors import shown

T = TypeVar("T")
WORDS: dict[Any, tuple[str, str]] = {  # of one value, of several
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false each"),
}


class ClaimError(ValueError):
    """A claim that cannot be run; one clear line that names the file and the field."""


@dataclass(frozen=True)
class Limits:
    """What a field must be beyond its type; words: what it must be, where its type says too little."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    words: str = ""


def limited(default: Any = MISSING, **limits: Any) -> Any:
    """A field of a dataclass, required unless it has a default; limits: what Limits has."""
    return field(default=default, metadata={"limits": Limits(**limits)})


def typed(kind: type[T], content: Mapping[str, Any], where: str, owner: str = "", at: str = "") -> T:
    """The dataclass that the content describes; null is as good as left out, but within another mapping.

    where: the file. owner: who has the fields, for people. at: the key of the content, dotted, within another mapping.

    Raises: ClaimError: if a key is unknown or missing, or a value of another type or out of its limits.
    """
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    hints, node = get_type_hints(kind), OmegaConf.structured(kind)
    for name, value in content.items():
        if name not in known:
            prefix = f"{where}: {owner or at}" if owner or at else where
            raise ClaimError(f"{prefix} has no field {name!r}; {nearest(str(name), list(known))}")
        if value is not None or at:
            key, words = _below(at, name), known[name].metadata.get("limits", Limits()).words
            _check_inner(hints[name], value, where, key)
            _set(node, name, value, where, key, words)
    try:
        made = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        raise ClaimError(f"{where}: {_missing(at, str(error.key))}") from None
    except OmegaConfBaseException:
        raise
    except ValueError as error:  # of a dataclass that checks itself
        raise ClaimError(f"{where}: {error}") from None
    _check_limits(made, where, at)
    assert isinstance(made, kind)
    return made


def nearest(key: str, known: Sequence[str]) -> str:
    """In words, what the user may have meant, and all there is."""
    found = get_close_matches(key, known, 1)
    near = f"the nearest one is {found[0]!r} " if found else ""
    return f"{near}(all: {', '.join(known)})"


def in_words(annotation: Any, *, several: bool = False) -> str:
    """What a value of the type is."""
    annotation = _without_none(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation][several]
    if origin is list:
        return f"{'lists' if several else 'a list'} of {in_words(arguments[0], several=True)}"
    names = [each.name for each in fields(annotation)] if is_dataclass(annotation) else []
    return ("mappings" if several else "a mapping") + (f" with {', '.join(names)}" if names else "")


def _without_none(annotation: Any) -> Any:
    """The type that stands in `X | None`; any other as it is."""
    if get_origin(annotation) is not UnionType:
        return annotation
    return next(each for each in get_args(annotation) if each is not NoneType)


def _below(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _check_inner(hint: Any, value: Any, where: str, key: str, *, is_inside: bool = False) -> None:
    """Checks what lies in a value: mappings that become dataclasses, so that what is wrong in one is named by its key.

    And that a list of numbers or texts holds no lists or mappings, which OmegaConf lets through.
    """
    hint = _without_none(hint)
    if hint in WORDS and isinstance(value, list | Mapping) and is_inside:
        raise ClaimError(f"{where}: {key}={shown(value)} must be {in_words(hint)}")
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        typed(hint, value, where, at=key)
    if get_origin(hint) is list and isinstance(value, list):
        (each,) = get_args(hint)
        for n, row in enumerate(value):
            _check_inner(each, row, where, f"{key}[{n}]", is_inside=True)
    if get_origin(hint) is dict and isinstance(value, Mapping):
        for name, row in value.items():
            _check_inner(get_args(hint)[1], row, where, f"{key}.{name}", is_inside=True)


def _set(node: DictConfig, name: str, value: Any, where: str, key: str, words: str) -> None:
    """words: what the value must be; empty: what its type says."""
    try:
        node.merge_with(literal({name: value}))  # literal: ${...} is a text like any other
    except OmegaConfBaseException as error:
        hint, at, wrong = _found(get_type_hints(OmegaConf.get_type(node))[name], value, str(error.full_key or ""), name)
        which = f"field {name!r}" if at == key else f"{key.removesuffix(name)}{at}={shown(wrong)}"
        got = f", not {shown(wrong)}" if at == key else ""
        raise ClaimError(f"{where}: {which} must be {words or in_words(hint)}{got}") from None


def _found(hint: Any, value: Any, full_key: str, name: str) -> tuple[Any, str, Any]:
    """The type, the key and the value that OmegaConf means, or as near to it as both can be followed."""
    at = name
    for part in re.findall(r"[^.\[\]]+", full_key.removeprefix(name)):
        is_list, arguments = get_origin(hint) is list, get_args(hint)
        try:
            value = value[int(part)] if is_list else value[part]
        except (KeyError, TypeError, IndexError, ValueError):
            break
        hint, at = arguments[-1], f"{at}[{part}]" if is_list else f"{at}.{part}"
    return hint, at, value


def _missing(at: str, name: str) -> str:
    if at.endswith("]"):
        return f"{at} lacks {name!r}"
    return f"{at}.{name} is missing" if at else f"field {name!r} is missing"


def _check_limits(made: Any, where: str, at: str) -> None:
    for each in fields(made):
        value, limits = getattr(made, each.name), each.metadata.get("limits", Limits())
        if value is None:
            continue
        said = f"{where}: {_below(at, each.name)}={shown(value)} must be"
        if limits.choices and value not in limits.choices:
            raise ClaimError(f"{where}: {_below(at, each.name)}={value!r} must be one of {', '.join(limits.choices)}")
        if limits.least is not None and value < limits.least:
            raise ClaimError(f"{said} >= {limits.least:g}")
        if limits.above is not None and not value > limits.above:
            raise ClaimError(f"{said} > {limits.above:g}")
        if limits.most is not None and value > limits.most:
            raise ClaimError(f"{said} <= {limits.most:g}")
