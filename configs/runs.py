"""What makes two runs the same run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, DictConfig, OmegaConf

from configs import plug_ins, schema
from configs.errors import ConfigError
from configs.schema import SEAMS, RunConfig, default_of, keys_that, rules
from configs.start import recorded, start_differences
from files.errors import shown
from files.reading import read_yaml

ABSENT = "<absent>"


class Difference(NamedTuple):
    """A key whose values differ; ABSENT: it is not there."""

    key: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.key}={shown(self.ours)} (there: {shown(self.theirs)})"


def identity(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that the result of the run depends on, by dotted key."""
    return without(flat(config), keys_that("is_place") | keys_that("is_conduct"))


def differences(config: RunConfig, path: Path) -> list[str]:
    """How the configuration is another run than the one in the config.yaml at path: "key=ours (there: theirs)".

    Both with the defaults of their constructors, so that a setting may be left out or written down.

    Raises: ReadingError: if a file of the run cannot be read. ConfigError: if there is no config.yaml.
    """
    found = map(str, differing(config, path))
    return [*found, *start_differences(config.start_from, config.start, recorded(path.parent))]


def differing(config: RunConfig, path: Path, may_differ: frozenset[str] = frozenset()) -> list[Difference]:
    """As differences, key by key, without where the runs begin. may_differ: keys that do not count."""
    known = frozenset(node.target for node in plug_ins.nodes(plain(config)))
    both = filled(config, known), read_config(path, known)
    ours, theirs = (without(identity(each), may_differ) for each in both)
    return [
        Difference(key, ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in sorted(ours.keys() | theirs.keys())
        if (key in ours, ours.get(key)) != (key in theirs, theirs.get(key))
    ]


def read_config(path: Path, known: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The configuration in a run's config.yaml, as plain data with all defaults.

    Only the sources of classes in known, and of ours and torch.optim's, are read for that; nothing is imported.

    Raises: ReadingError: if the file cannot be read. ConfigError: if it is not there.
    """
    saved = read_yaml(path)
    if saved is None:
        raise ConfigError(f"{path} does not exist; it is the configuration of a run")
    named = frozenset(node.target for node in plug_ins.nodes(saved))
    return filled(saved, known | {target for target in named if plug_ins.is_trusted(target)})


def filled(config: RunConfig | Mapping[str, Any], only: frozenset[str]) -> dict[str, Any]:
    """A plain copy with all defaults, those of constructors for these classes alone."""
    usual = {name: default_of(each) for name, each, _ in rules() if "." not in name}
    found = {name: default for name, default in usual.items() if default != MISSING} | plain(config)
    for place, seam in SEAMS.items():
        if seam.unnamed and isinstance(found.get(place), dict):
            found[place] = {plug_ins.TARGET: seam.unnamed, **found[place]}
    plug_ins.fill(found, only=only)
    return found


def as_yaml(config: RunConfig | Mapping[str, Any]) -> str:
    """What config.yaml holds, and --cfg shows."""
    return OmegaConf.to_yaml(plug_ins.literal(plain(config)), resolve=True)


def flat(config: RunConfig | DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to plain values; lists stay whole."""
    return dict(_leaves(plain(config), ""))


def plain(config: RunConfig | DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain dicts, lists and values; what is no OmegaConf already is taken as it is, ${...} unresolved."""
    if isinstance(config, RunConfig):
        return schema.plain(config)
    if isinstance(config, DictConfig):
        found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return found if isinstance(found, dict) else {}  # type: ignore[return-value]  # its keys are texts
    return {str(key): plain(value) if isinstance(value, Mapping) else value for key, value in config.items()}


def without(settings: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The settings but for those keys, and those below them."""
    return {key: value for key, value in settings.items() if not any(belongs(key, known) for known in keys)}


def belongs(key: str, parent: str) -> bool:
    """Whether a dotted key is the parent or lies below it."""
    return key == parent or key.startswith(f"{parent}.")


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
