"""Whether a value of YAML or of the command line fits an annotation; what is no type of YAML's takes anything."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "None": "null"}
LISTS = ("tuple", "Tuple", "list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset")
MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
UNIONS = ("Optional", "Union")


def fits(value: Any, annotation: ast.expr | None) -> bool:
    """Whether a value may be given where the annotation stands. true and false are no numbers; 3.0 is a whole one."""
    options = list(_options(annotation))
    known = [option for option in options if _name(option) in {*WORDS, *LISTS, *MAPPINGS, "Literal"}]
    if any(_fits_one(value, option) for option in known):
        return True
    if len(known) == len(options):
        return False
    return not known or isinstance(value, Mapping | DictConfig)  # a node, which stands for an object


def is_text(annotation: ast.expr | None) -> bool:
    """Whether it wants a text, or null, and nothing else."""
    names = {_name(option) for option in _options(annotation)}
    return "str" in names and names <= {"str", "None"}


def is_fraction(annotation: ast.expr | None) -> bool:
    """Whether it wants a number that need not be whole, or null, and nothing else."""
    names = {_name(option) for option in _options(annotation)}
    return "float" in names and names <= {"float", "None"}


def is_list(annotation: ast.expr | None) -> bool:
    """Whether it may be a list."""
    return any(_name(option) in LISTS for option in _options(annotation))


def allows_null(annotation: ast.expr | None) -> bool:
    """Whether it names None."""
    return any(_name(option) == "None" for option in _options(annotation))


def in_words(annotation: ast.expr | None) -> str:
    """What it wants, for a message."""
    words = [_words(option) for option in _options(annotation)]
    return " or ".join(dict.fromkeys(word for word in words if word)) or "something else"


def _options(annotation: ast.expr | None) -> Iterator[ast.expr | None]:
    """The members of a union."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            annotation = None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _options(annotation.left)
        yield from _options(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _name(annotation) in UNIONS:
        for each in _arguments(annotation):
            yield from _options(each)
        if _name(annotation) == "Optional":
            yield ast.Constant(None)
    elif isinstance(annotation, ast.Subscript) and _name(annotation) == "Annotated":
        yield from _options(_arguments(annotation)[0])
    else:
        yield annotation


def _name(option: ast.expr | None) -> str:
    """int, tuple, Literal, ...; empty for what has no name, as if it were an unknown type."""
    if isinstance(option, ast.Subscript):
        option = option.value
    if isinstance(option, ast.Constant) and option.value is None:
        return "None"
    return option.id if isinstance(option, ast.Name) else option.attr if isinstance(option, ast.Attribute) else ""


def _arguments(option: ast.expr | None) -> list[ast.expr]:
    if not isinstance(option, ast.Subscript):
        return []
    return list(option.slice.elts) if isinstance(option.slice, ast.Tuple) else [option.slice]


def _fits_one(value: Any, option: ast.expr | None) -> bool:
    name, arguments = _name(option), _arguments(option)
    if name in LISTS:
        return _fits_list(value, name, arguments)
    if name in MAPPINGS:
        return isinstance(value, Mapping | DictConfig)
    if name == "Literal":
        return any(isinstance(each, ast.Constant) and each.value == value for each in arguments)
    if name == "None":
        return value is None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    checks = {
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "float": is_number,
        "int": is_number and (isinstance(value, int) or value.is_integer()),
    }
    return checks[name]


def _fits_list(value: Any, name: str, arguments: list[ast.expr]) -> bool:
    if not isinstance(value, list | tuple | ListConfig):
        return False
    if not arguments:
        return True
    is_any_length = isinstance(arguments[-1], ast.Constant) and arguments[-1].value is Ellipsis
    if name in ("tuple", "Tuple") and not is_any_length:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return all(fits(each, arguments[0]) for each in value)


def _words(option: ast.expr | None) -> str:
    name, arguments = _name(option), _arguments(option)
    if name == "Literal":
        return " or ".join(str(each.value) for each in arguments if isinstance(each, ast.Constant))
    if name not in LISTS:
        return "a mapping" if name in MAPPINGS else WORDS.get(name, "")
    kinds = " ".join({in_words(each) for each in arguments if not isinstance(each, ast.Constant)})
    things = {"a number": "numbers", "a whole number": "whole numbers", "a text": "texts"}.get(kinds, "")
    is_any_length = any(isinstance(each, ast.Constant) and each.value is Ellipsis for each in arguments)
    if name in ("tuple", "Tuple") and arguments and not is_any_length:
        return f"a list of {len(arguments)} {things or 'values'}"
    return f"a list of {things}" if things else "a list"
