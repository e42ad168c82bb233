"""What the class that an import path names takes, without importing it: read from its source.

So the command line knows every hyperparameter, its type and its default, of torch.optim's classes too, before torch is
imported. A class whose source does not say it (written in C, made at run time) is imported, if the caller allows that.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import ConfigError
from files.errors import one_line

REQUIRED, UNKNOWN = object(), object()  # no default; one that is no literal
DEEPEST = 20  # re-exports or bases to follow
PLAIN_BASES = ("abc.", "typing.", "typing_extensions.", "torch.nn.Module")  # whose constructors take no arguments


class Argument(NamedTuple):
    """One that a constructor takes by name. annotation: an expression, its names without scope; None if it has none."""

    annotation: ast.expr | None
    default: Any


@dataclass(frozen=True)
class Signature:
    """A class: its constructor's arguments, whether it takes any others, and the names that it and its bases define."""

    arguments: Mapping[str, Argument]
    takes_any: bool = False
    members: frozenset[str] = field(default_factory=frozenset)


def signature(target: str, *, may_import: bool) -> Signature | None:
    """The signature of the class that the import path names, None if that cannot be said.

    may_import: imports the class if its source does not say it.

    Raises: ConfigError: if it is no class, or is not there.
    """
    found = _from_source(target)
    if found is None and may_import and target.partition(".")[0] != "torch":
        return imported(target)
    return found


def arguments_of(owner: type) -> dict[str, Argument]:
    """The fields of a dataclass that is at hand."""
    return {each.name: Argument(_parsed(inspect.formatannotation(each.type)), _usual(each)) for each in fields(owner)}


def _usual(each: Field[Any]) -> Any:
    return REQUIRED if each.default is MISSING else each.default


@lru_cache(maxsize=256)
def _from_source(target: str) -> Signature | None:
    """Raises: ConfigError: if the source of its module says that there is no such class."""
    found = _definition(target)
    if found is None:
        return None
    module, node = found
    if not isinstance(node, ast.ClassDef):
        raise ConfigError(f"{target} is a function; name a class")
    chain = _chain(module, node)
    if chain is None:
        return None
    members = frozenset(name for _, each in chain for name in _members(each))
    arguments, takes_any = _constructor(chain)
    return Signature(arguments, takes_any, members)


def _constructor(chain: "_Chain") -> tuple[dict[str, Argument], bool]:
    """Of a class with its bases. What **kwargs takes, a base in the same file says; one elsewhere may not be meant."""
    for place, (module, node) in enumerate(chain):
        init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        if init is not None:
            arguments, takes_any = _arguments(module, init.args)
            if takes_any and (above := [each for each in chain[place + 1 :] if each[0] is module]):
                passed_on, takes_any = _constructor(above)
                arguments = passed_on | arguments
            return arguments, takes_any
        if _is_dataclass(node):
            return _fields(chain[place:]), False
    return {}, False


class _Module:
    """A parsed source file. names: what its top level defines or imports; "a.b.c" for an imported name."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.is_package = name, path.name == "__init__.py"
        self.names: dict[str, ast.stmt | str] = {}
        self.is_open = False  # whether it may have names that its source does not show
        for statement in _top_level(ast.parse(path.read_bytes())):
            self._take(statement)

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self.names[statement.name] = statement
            self.is_open |= statement.name == "__getattr__"
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                self.names[name] = alias.name if alias.asname else name
        elif isinstance(statement, ast.ImportFrom):
            base = self._base(statement)
            for alias in statement.names:
                self.is_open |= alias.name == "*"
                self.names[alias.asname or alias.name] = f"{base}.{alias.name}"
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            self.names |= {target.id: statement for target in targets if isinstance(target, ast.Name)}

    def _base(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - statement.level + self.is_package]
        return ".".join([*parts, *([statement.module] if statement.module else [])])


_Chain = Sequence[tuple[_Module, ast.ClassDef]]


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, those in if and try included."""
    for statement in tree.body:
        if isinstance(statement, ast.If | ast.Try):
            bodies = [statement.body, statement.orelse, getattr(statement, "finalbody", [])]
            yield from (inner for body in bodies for inner in body)
        else:
            yield statement


@lru_cache(maxsize=256)
def _module(name: str) -> _Module | None:
    """None if there is no such module, or no source of it."""
    path = _source(name)
    try:
        return None if path is None else _Module(name, path)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _source(name: str) -> Path | None:
    """The file of a module; of packages, only the topmost is looked up, as Python imports it to find what is below."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations or ():
        path = Path(location, *below)
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.is_file():
                return candidate
    return None


def _definition(target: str, depth: int = 0) -> tuple[_Module, ast.stmt] | None:
    """The statement that defines what an import path names, re-exports followed, and its module.

    None if that cannot be said. Raises: ConfigError: if the module is there and has no such name.
    """
    module_name, _, name = target.rpartition(".")
    module = _module(module_name) if module_name else None
    if module is None or depth > DEEPEST:
        return None
    found = module.names.get(name)
    if found is None:
        if module.is_open or _source(target) is not None:
            return None
        raise ConfigError(f"{module_name} has no {name}; it has {_classes(module)}")
    if isinstance(found, str):
        return _definition(found, depth + 1)
    if isinstance(found, ast.Assign) and isinstance(found.value, ast.Name | ast.Attribute):
        aliased = _dotted(module, found.value)
        return _definition(aliased, depth + 1) if aliased else None
    is_known = isinstance(found, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return (module, found) if is_known else None


def _classes(module: _Module) -> str:
    found = [name for name, what in module.names.items() if isinstance(what, str | ast.ClassDef) and name[0].isupper()]
    return ", ".join(sorted(found)[:30]) or "no classes"


def _dotted(module: _Module, node: ast.expr) -> str | None:
    """The import path of a name or a.b.c in a module."""
    if isinstance(node, ast.Subscript):  # Generic[T]
        node = node.value
    if isinstance(node, ast.Attribute):
        base = _dotted(module, node.value)
        return f"{base}.{node.attr}" if base else None
    if not isinstance(node, ast.Name):
        return None
    found = module.names.get(node.id)
    return found if isinstance(found, str) else f"{module.name}.{node.id}" if found is not None else None


def _chain(module: _Module, node: ast.ClassDef, depth: int = 0) -> list[tuple[_Module, ast.ClassDef]] | None:
    """The class and its bases, in the order in which Python looks (but for diamonds); None if one is not known."""
    found = [(module, node)]
    for base in node.bases:
        path = _dotted(module, base)
        if path is None:
            if isinstance(base, ast.Name) and base.id in ("object", "Exception"):
                continue
            return None
        if path.startswith(PLAIN_BASES):
            continue
        there = _definition(path) if depth < DEEPEST else None
        if there is None or not isinstance(there[1], ast.ClassDef):
            return None
        above = _chain(there[0], there[1], depth + 1)
        if above is None:
            return None
        found += above
    return found


def _members(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def _arguments(module: _Module, args: ast.arguments) -> tuple[dict[str, Argument], bool]:
    """Those that can be given by name, self aside, and whether there is a **kwargs."""
    by_place = [*args.posonlyargs, *args.args]
    places = [*[None] * (len(by_place) - len(args.defaults)), *args.defaults]
    named = list(zip(by_place, places, strict=True))[max(1, len(args.posonlyargs)) :]
    named += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    found = {arg.arg: Argument(arg.annotation, _literal(module, default)) for arg, default in named}
    return found, args.kwarg is not None


def _fields(chain: _Chain) -> dict[str, Argument]:
    """The arguments of a dataclass, those of its bases first."""
    found: dict[str, Argument] = {}
    for module, node in reversed(chain):
        annotated = [each for each in node.body if isinstance(each, ast.AnnAssign)] if _is_dataclass(node) else []
        for each in annotated:
            if isinstance(each.target, ast.Name) and "ClassVar" not in ast.dump(each.annotation):
                found[each.target.id] = Argument(each.annotation, _literal(module, each.value))
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)


def _literal(module: _Module, node: ast.expr | None, depth: int = 0) -> Any:
    """The value of a default, that of a constant of its module included."""
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    constant = module.names.get(node.id) if isinstance(node, ast.Name) else None
    if isinstance(constant, ast.Assign | ast.AnnAssign) and constant.value is not None and depth < DEEPEST:
        return _literal(module, constant.value, depth + 1)
    return UNKNOWN


def imported(target: str) -> Signature:
    """By Python's own means. Raises: ConfigError: if it cannot be imported, or is no class."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"it cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    if not inspect.isclass(found):
        raise ConfigError(f"{target} is {type(found).__name__}; name a class")
    try:
        parameters = inspect.signature(found).parameters.values()
    except (ValueError, TypeError):
        return Signature({}, takes_any=True, members=frozenset(dir(found)))
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    arguments = {p.name: Argument(_expression(p), _default(p)) for p in parameters if p.kind in kinds}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return Signature(arguments, takes_any, frozenset(dir(found)))


def _expression(parameter: inspect.Parameter) -> ast.expr | None:
    if parameter.annotation is parameter.empty:
        return None
    annotation = parameter.annotation
    return _parsed(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return REQUIRED
    try:
        return ast.literal_eval(repr(parameter.default))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
