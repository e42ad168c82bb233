"""Nodes of a configuration that name a class by _target_: what they hold, and what they leave to constructors."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from configs.annotations import allows_null, fits, in_words
from configs.errors import ConfigError
from configs.overrides import escaped
from configs.schema import SEAMS, Seam, holder_of
from configs.signatures import REQUIRED, UNKNOWN, Argument, Signature, imported, signature
from files.errors import one_line, shown

TARGET = "_target_"
ARGUMENT = Seam("an argument", ())  # the seam of a node inside another one
TRUSTED = ("model.", "optim.", "trainer.", "data.", "torch.optim.")  # what a file that others wrote may name


class Node(NamedTuple):
    """A mapping with _target_. key: where it stands, dotted."""

    key: str
    seam: Seam
    content: Any  # a DictConfig or a dict

    @property
    def target(self) -> str:
        """The import path."""
        return str(self.content[TARGET])


def nodes(config: Any, around: str = "") -> Iterator[Node]:
    """All of a configuration, plain or OmegaConf's, those inside others included; around: those a key may be in."""
    for place, seam in SEAMS.items():
        if around and not around.startswith(f"{place}."):
            continue
        found = config
        for part in place.split("."):
            found = found.get(part) if _is_mapping(found) else None
        if place == "optim" and _is_mapping(found) and "roles" in found and _is_mapping(found["roles"]):
            for role, content in found["roles"].items():
                yield from _node(f"optim.roles.{role}", seam, content)
        elif seam.holds_several and _is_mapping(found):
            for name, content in found.items():
                yield from _node(f"{place}.{name}", seam, content)
        else:
            yield from _node(place, seam, found)


def _places(config: dict[str, Any]) -> Iterator[str]:
    """Where a node must be."""
    for place, seam in SEAMS.items():
        holder, name = holder_of(config, place)
        found = holder[name]
        if seam.holds_several:
            yield from (f"{place}.{name}" for name in found)
        elif place == "optim" and "roles" in found:
            roles = list(found["roles"]) if _is_mapping(found["roles"]) else []
            yield from (f"optim.roles.{role}" for role in roles or ["<role>"])
        else:
            yield place


def settings(node: Node, *, may_import: bool) -> dict[str, Argument] | None:
    """The arguments that a configuration may set; None if the class takes any, or cannot be read.

    Raises: ConfigError: if there is no such class.
    """
    found = _signature(node, may_import=may_import)
    if found is None or found.takes_any:
        return None
    return {name: argument for name, argument in found.arguments.items() if name not in node.seam.given}


def check(config: dict[str, Any]) -> None:
    """config: complete plain data, in which whole numbers become ints.

    Raises: ConfigError: if a class is not there or of another kind, or its arguments are not what it takes.
    """
    found = {node.key: node for node in nodes(config)}
    for key in _places(config):
        if key not in found:
            raise ConfigError(f"{key} must be a mapping with {TARGET}, the import path of a class")
    for node in found.values():
        _check_class(node)
        _check_arguments(node)


def fill(config: Any, *, only: frozenset[str] | None = None) -> None:
    """Adds the arguments that nodes leave to the defaults of their constructors; only: for these classes alone.

    Files that others wrote are filled with `only`: nothing that they name is looked at then.
    """
    for node in nodes(config):
        _fill(node, _known(node, only))


def _fill(node: Node, known: Mapping[str, Argument]) -> None:
    for name, argument in known.items():
        if name not in node.content and argument.default is not REQUIRED and argument.default is not UNKNOWN:
            value = argument.default
            _add(node.content, name, list(value) if isinstance(value, tuple) else value)


def _known(node: Node, only: frozenset[str] | None) -> Mapping[str, Argument]:
    if only is None:
        return settings(node, may_import=True) or {}
    with suppress(ConfigError):  # a class that was there when the file was written
        return (settings(node, may_import=False) or {}) if node.target in only else {}
    return {}


def drop_defaults(config: dict[str, Any], base: Any) -> None:
    """Removes from plain config the arguments that base does not list and that have their constructor's default.

    So the name of a run stays when a constructor gets another argument. Where a class went unnamed, all its arguments
    of then were listed, and the class was not: names of runs from then are still theirs.
    """
    listed = {node.key: node for node in nodes(base)}
    for node in nodes(config):
        before = listed.get(node.key)
        names = set(before.content) if before and before.target == node.target else set()
        if was_unnamed := node.target == node.seam.unnamed:
            _fill(node, {name: each for name, each in _known(node, None).items() if name not in node.seam.since})
            names = set(node.content) - node.seam.since
        for name, argument in (settings(node, may_import=True) or {}).items():
            if name not in names and name in node.content and _is_default(node.content[name], argument):
                del node.content[name]
        if was_unnamed:
            del node.content[TARGET]


def check_fields(owner: type, values: Mapping[str, Any], where: str) -> None:
    """Raises: ConfigError: if a value does not fit its field of the dataclass; where: what precedes a field's name."""
    found = signature(f"{owner.__module__}.{owner.__qualname__}", may_import=True)
    for name, argument in (found.arguments if found else {}).items():
        if name in values:
            checked(f"{where}{name}", values[name], argument)


def is_trusted(target: str) -> bool:
    """Whether a file that others wrote may name the class: one of our packages, or of torch.optim."""
    return target.startswith(TRUSTED)


def plug_in(node: Mapping[str, Any], /, **arguments: Any) -> Any:
    """The object that a node with _target_ describes.

    Raises: ConfigError: if its constructor does not accept it, whatever it raises, in the constructor's own words.
    """
    try:
        return instantiate(literal(node), **arguments)
    except InstantiationException as error:
        raise ConfigError(_refusal(str(node[TARGET]), error.__cause__ or error)) from error


def _refusal(target: str, error: BaseException) -> str:
    """What a constructor says, after the import path of its class unless its own words name that or a key."""
    said, kind = one_line(error), type(error).__name__
    if isinstance(error, ValueError):
        is_named = target.rpartition(".")[2] in said or said.startswith(tuple(f"{place}." for place in SEAMS))
        return said if is_named else f"{target}: {said}"
    return (
        f"{target}: {said}"
        if said == kind or isinstance(error, InstantiationException)
        else f"{target}: {kind}: {said}"
    )


def literal(content: Mapping[str, Any]) -> DictConfig:
    """Plain data as OmegaConf's, in which ${...} stays what it is."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: kept(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [kept(each) for each in value]
        return escaped(value) if isinstance(value, str) else value

    found = OmegaConf.create(kept(content))
    assert isinstance(found, DictConfig)
    return found


def _node(key: str, seam: Seam, content: Any) -> Iterator[Node]:
    if not _is_mapping(content) or not _names_a_class(content):
        return
    yield Node(key, seam, content)
    for name in content:
        if name not in seam.besides and not _is_open(content, name):
            yield from _node(f"{key}.{name}", ARGUMENT, content[name])


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | DictConfig)


def _names_a_class(content: Any) -> bool:
    try:
        return content.get(TARGET) is not None
    except OmegaConfBaseException:  # ${...} that leads nowhere, as completing the configuration will find out
        return False


def _is_open(content: Any, name: Any) -> bool:
    """Whether the value is still missing, or is to be looked up elsewhere."""
    return isinstance(content, DictConfig) and (
        OmegaConf.is_missing(content, name) or OmegaConf.is_interpolation(content, name)
    )


def _add(content: Any, name: str, value: Any) -> None:
    if isinstance(content, DictConfig):
        with open_dict(content):
            content[name] = value
    else:
        content[name] = value


def _is_default(value: Any, argument: Argument) -> bool:
    default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    return (
        argument.default is not REQUIRED and isinstance(value, bool) == isinstance(default, bool) and value == default
    )


def _signature(node: Node, *, may_import: bool, of_torch: bool = False) -> Signature | None:
    if "." not in node.target:
        raise ConfigError(f"{node.key}._target_={shown(node.target)} must be an import path such as package.Class")
    try:
        return imported(node.target) if of_torch else signature(node.target, may_import=may_import)
    except ConfigError as error:
        raise ConfigError(f"{node.key}._target_={shown(node.target)} cannot be used: {error}") from None


def _check_class(node: Node) -> None:
    found = _signature(node, may_import=True) or _signature(node, may_import=True, of_torch=True)
    if found is None:
        raise ConfigError(f"{node.key}._target_={shown(node.target)} does not exist")
    if missing := [method for method in node.seam.methods if method not in found.members]:
        raise ConfigError(f"{node.key}._target_={shown(node.target)} is not {node.seam.what}: it has no {missing[0]}()")


def _check_arguments(node: Node) -> None:
    known = settings(node, may_import=True)
    if known is None:
        return
    for name, value in list(node.content.items()):
        if name in (TARGET, *node.seam.besides):
            continue
        if name in node.seam.given:
            raise ConfigError(f"{node.key}.{name} is no setting of {node.key}: the run passes its own; leave it out")
        if name not in known:
            raise ConfigError(
                f"{node.key}.{name}: {node.target} got an unexpected keyword argument {name!r}; it takes "
                f"{', '.join(known) or 'none'} ('~{node.key}.{name}' leaves it out)"
            )
        kept = checked(f"{node.key}.{name}", value, known[name], node.target)
        if kept is not value:
            node.content[name] = kept
    if "role_settings" in node.seam.besides:
        for role, settings_of_role in (node.content.get("role_settings") or {}).items():
            for name in settings_of_role.keys() & known.keys():
                checked(f"{node.key}.role_settings.{role}.{name}", settings_of_role[name], known[name], node.target)
    if missing := [name for name, each in known.items() if each.default is REQUIRED and name not in node.content]:
        raise ConfigError(f"{node.key}.{missing[0]} is missing: {node.target} needs it")


def checked(key: str, value: Any, argument: Argument, owner: str = "") -> Any:
    """The value, if it fits the argument's annotation; 1e3 where a whole number is wanted is 1000.

    owner: whose argument it is, for the message.

    Raises: ConfigError: if it does not fit.
    """
    if value is None and (argument.default is None or argument.annotation is None):
        return value
    if not fits(value, argument.annotation):
        null = "" if allows_null(argument.annotation) else " and not null" * (value is None)
        of = f" ({owner})" if owner else ""
        raise ConfigError(f"{key}={shown(value)} must be {in_words(argument.annotation)}{null}{of}")
    is_whole = isinstance(value, float) and value.is_integer() and not fits(0.5, argument.annotation)
    return int(value) if is_whole else value
