"""How a mapping of a claim file becomes a dataclass: OmegaConf's structured configs check keys and types.

A number may be written as a text that reads as one. Limits stand beside a field's default. All
mistakes are found, not the first alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from configs.overrides import escaped
from configs.plug_ins import literal
from files.errors import shown
from reproduce.mistakes import ClaimError, Mistakes, incomplete

T = TypeVar("T")
UNKNOWN = object()
WORDS: dict[Any, tuple[str, str]] = {  # of one value, of several
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false each"),
}


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

    Raises: ClaimError: if keys are unknown or missing, or values of another type or out of their limits.
    """
    mistakes = Mistakes()
    found = typed_so_far(kind, content, where, mistakes, owner, at)
    mistakes.raise_all()
    return found


def typed_so_far(
    kind: type[T], content: Mapping[str, Any], where: str, mistakes: Mistakes, owner: str = "", at: str = ""
) -> T:
    """What `typed` returns; if there are mistakes, adds them and returns it without what is wrong, incomplete."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    hints, node, own = get_type_hints(kind), OmegaConf.structured(kind), Mistakes()
    wrong: dict[str, Any] = {}  # what is right of fields that are wrong
    for name, value in content.items():
        if name not in known:
            prefix = f"{where}: {owner or at}" if owner or at else where
            own.lines.append(f"{prefix} has no field {name!r}; {nearest(str(name), list(known))}")
        elif value is not None or at:
            key, words, before = _below(at, name), _limits(known[name]).words, len(own.lines)
            right = _right_of(hints[name], value, where, key, own)
            if len(own.lines) == before:
                with own.collected():
                    _set(node, name, value, where, key, words)
            if len(own.lines) > before:
                wrong[name] = right
    found = {name: right for name, right in wrong.items() if right is not UNKNOWN}
    for name in (each for each in known if each not in wrong):
        with own.collected():
            found[name] = _value(node, known[name], where, at)
    if not own.lines:
        with own.collected(f"{where}: "):
            return kind(**found)  # a dataclass may check itself
    mistakes.lines += own.lines
    return incomplete(kind, found)


def nearest(key: str, known: Sequence[str]) -> str:
    """In words, what the user may have meant, and all there is."""
    found = get_close_matches(key, known, 1)
    listed = ", ".join(known)
    return f"the nearest one is {found[0]!r} (all: {listed})" if found else f"there are {listed}"


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


def _right_of(hint: Any, value: Any, where: str, key: str, mistakes: Mistakes, *, is_inside: bool = False) -> Any:
    """What is right of a value: dataclasses, incomplete where they are wrong, or UNKNOWN if it is to hold none.

    So what is wrong in a mapping is named by its key. And what OmegaConf lets through is found: ${...} in place of any
    value, and lists or mappings in lists of numbers or texts.
    """
    hint = _without_none(hint)
    looks_up = isinstance(value, str) and escaped(value) != value and hint not in (str, Any)
    if looks_up or (hint in WORDS and isinstance(value, list | Mapping) and is_inside):
        mistakes.lines.append(f"{where}: {key}={shown(value)} must be {in_words(hint)}")
    if is_dataclass(hint) and isinstance(hint, type):
        is_mapping = isinstance(value, Mapping)
        return typed_so_far(hint, value, where, mistakes, at=key) if is_mapping else incomplete(hint, {})
    rows: list[Any] | dict[str, Any] = []
    if get_origin(hint) is list and isinstance(value, list):
        (each,) = get_args(hint)
        rows = [_right_of(each, row, where, f"{key}[{n}]", mistakes, is_inside=True) for n, row in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, Mapping):
        each = get_args(hint)[1]
        rows = {k: _right_of(each, row, where, f"{key}.{k}", mistakes, is_inside=True) for k, row in value.items()}
    is_known = rows and UNKNOWN not in (rows.values() if isinstance(rows, dict) else rows)
    return rows if is_known else UNKNOWN


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


def _value(node: DictConfig, field_: Field[Any], where: str, at: str) -> Any:
    """The value of a field. Raises: ClaimError: if it is missing or out of its limits."""
    try:
        value: Any = node[field_.name]
        value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    except MissingMandatoryValue as error:
        raise ClaimError(f"{where}: {_missing(at, str(error.key))}") from None
    limits = _limits(field_)
    if value is None:
        return value
    said = f"{where}: {_below(at, field_.name)}={shown(value)} must be"
    if limits.choices and value not in limits.choices:
        raise ClaimError(f"{where}: {_below(at, field_.name)}={value!r} must be one of {', '.join(limits.choices)}")
    if limits.least is not None and value < limits.least:
        raise ClaimError(f"{said} >= {limits.least:g}")
    if limits.above is not None and not value > limits.above:
        raise ClaimError(f"{said} > {limits.above:g}")
    if limits.most is not None and value > limits.most:
        raise ClaimError(f"{said} <= {limits.most:g}")
    return value


def _limits(field_: Field[Any]) -> Limits:
    found = field_.metadata.get("limits", Limits())
    assert isinstance(found, Limits)
    return found
