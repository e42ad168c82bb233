"""From command line overrides to one checked configuration; imports hydra, never torch.

compose(overrides)  the configuration with its run_dir, or ConfigError: an unknown key names the nearest valid one
identity(config)    what makes two runs the same run, as a flat mapping; differences() compares two
expand(overrides)   the jobs of a sweep
"""

import hashlib
import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, Protocol

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from configs.schema import AT_LEAST, CHOICES, CONDUCT, PLACE, RunConfig
from model.config import GPTConfig

FOLDER = Path(__file__).parent
GROUPS = ("model", "data", "data/tokenizer", "optim", "schedule", "parallel", "logging", "experiment")


class ConfigError(ValueError):
    """One clear line for the user: which key, what was expected, what came, what to do."""


class Sweep(Protocol):
    """Runs the script once for each combination of overrides; the exit status."""

    def __call__(self, script: str, combinations: Sequence[Sequence[str]], /, *, at_once: int, ranks: int) -> int:
        """at_once: processes at a time. ranks: of each, under torchrun if > 1."""


def compose(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of `python train.py *overrides`.

    Raises: ConfigError: if an override does not parse, its key or option does not exist, or a value is out of range.
    """
    parsed = _parse(overrides)
    _register_schema()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        _check_keys(parsed)
        config, choices = _composed(overrides)
    _check_values(config)
    if config.run_dir is None:
        config.run_dir = f"runs/{_run_name(config, choices)}"
    return config


def identity(config: DictConfig) -> dict[str, Any]:
    """Every setting that the result of the run depends on, by dotted key."""
    return {key: value for key, value in flat(config).items() if not _belongs(key, PLACE | CONDUCT)}


def differences(config: DictConfig, path: Path) -> list[str]:
    """How the configuration is another run than the one in the config.yaml at path: "key=ours (there: theirs)"."""
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    ours, theirs = identity(config), identity(saved)
    return [
        f"{key}={ours.get(key, '<absent>')} (there: {theirs.get(key, '<absent>')})"
        for key in sorted(ours.keys() | theirs.keys())
        if (key in ours, ours.get(key)) != (key in theirs, theirs.get(key))
    ]


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep: the product over `key=a,b` and `key=range(...)`, in order."""
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [text]
        for o, text in zip(_parse(overrides), overrides, strict=True)
    ]
    return [list(job) for job in product(*choices)]


def from_command_line(script: str, doc: str, sweep: Sweep | None = None) -> DictConfig:
    """The configuration that the command line asks for; --help, --cfg, -m and bad input end the process.

    sweep: what -m runs, on the script and the combinations of overrides; None: the script has no -m.
    """
    try:
        asked = _asked(sys.argv[1:])
        if asked.help:
            sys.exit(print(doc))
        if asked.multirun:
            if sweep is None:
                raise ConfigError(f"{Path(script).name} runs no sweeps; leave out -m")
            sys.exit(sweep(script, expand(asked.overrides), at_once=asked.at_once or 1, ranks=asked.ranks or 1))
        config = compose(asked.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if asked.cfg:
        sys.exit(print(OmegaConf.to_yaml(config)))
    return config


def plug_in(node: DictConfig, /, **arguments: Any) -> Any:
    """The object that a node with _target_ describes.

    Raises: ConfigError: if its constructor does not accept it, in the constructor's own words.
    """
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        raise ConfigError(str(error.__cause__ or error).partition("\n")[0]) from error


def flat(config: DictConfig) -> dict[str, Any]:
    """Dotted keys to plain values; lists stay whole."""
    return dict(_leaves(OmegaConf.to_container(config, resolve=True, throw_on_missing=True), ""))


class _Arguments(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _asked(arguments: Sequence[str]) -> Namespace:
    """The flags, and the overrides around them."""
    parser = _Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", action="store_true")
    parser.add_argument("--at-once", type=_count)
    parser.add_argument("--ranks", type=_count)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args(arguments)
    if asked.cfg and asked.multirun:
        parser.error("--cfg shows the configuration of one run; leave out -m and give every key one value")
    if (asked.at_once or asked.ranks) and not asked.multirun:
        parser.error("--at-once and --ranks are for sweeps; add -m")
    return asked


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _belongs(key: str, keys: frozenset[str]) -> bool:
    return any(key == known or key.startswith(known + ".") for known in keys)


def _register_schema() -> None:
    store = ConfigStore.instance()
    store.store(name="base_config", node=RunConfig)
    defaults = {field.name: "???" if field.default is MISSING else field.default for field in fields(GPTConfig)}
    store.store(group="model", name="gpt", node={**defaults, "vocab_size": None})


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{_one_line(error)}; overrides read key=value, for example optim.lr=1e-3") from None


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, str]]:
    """The configuration, and the option that each group got."""
    try:
        config = hydra_compose("config", list(overrides), return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from None
    return config, choices


def _run_name(config: DictConfig, choices: Mapping[str, str]) -> str:
    """<model>-<data>-<optim>-s<seed>-<8 hex digits>: the same for every rank and every time the run is started."""
    settings = {key: value for key, value in flat(config).items() if not _belongs(key, PLACE)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{choices['model']}-{choices['data']}-{choices['optim']}-s{config.seed}-{digest}"


def _check_keys(parsed: Sequence[Override]) -> None:
    """Composes the chosen options alone and looks every other key up in what that gives."""
    chosen = [override for override in parsed if override.key_or_group in GROUPS]
    for override in chosen:
        _check_option(override)
    try:
        config = hydra_compose("config", [str(override.input_line) for override in chosen])
    except HydraException as error:
        raise ConfigError(_one_line(error)) from None
    known = sorted({*_all_keys(config, ""), *GROUPS})
    for override in parsed:
        key = override.key_or_group
        if key not in known and not _extends_a_plugin(override, config):
            raise ConfigError(f"unknown key {key!r}; {_nearest(key, known)}")


def _check_option(override: Override) -> None:
    found = sorted(path.stem for path in (FOLDER / override.key_or_group).glob("*.yaml"))
    option = "null" if override.is_delete() else override.get_value_element_as_str()
    if option not in found and option != "null":
        raise ConfigError(
            f"{override.key_or_group}={option} does not exist; {_nearest(option, found)} (all: {', '.join(found)})"
        )


def _extends_a_plugin(override: Override, config: DictConfig) -> bool:
    """+key=value may add an argument to a plug-in, whose constructor knows them, or a sink to logging."""
    parent_key = override.key_or_group.rpartition(".")[0]
    parent = OmegaConf.select(config, parent_key)
    is_plugin = isinstance(parent, DictConfig) and "_target_" in parent
    return override.is_add() and (is_plugin or parent_key.startswith("logging."))


def _all_keys(node: Any, prefix: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for key in node:
        path = f"{prefix}.{key!s}" if prefix else str(key)
        yield path
        if not OmegaConf.is_missing(node, key):
            yield from _all_keys(node[key], path)


def _nearest(key: str, known: Sequence[str]) -> str:
    """In words, the known key that the user most likely meant: misplaced, misspelt, or both."""
    ends = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
    end = key.rpartition(".")[2]
    same_depth = [candidate for candidate in known if candidate.count(".") == key.count(".")]
    found = [ends[end]] if end in ends else get_close_matches(key, same_depth, 1) or get_close_matches(key, known, 1)
    found = found or [ends[near] for near in get_close_matches(end, ends, 1)]
    return f"the nearest valid one is {found[0]!r}" if found else "nothing valid is near it"


def _check_values(config: DictConfig) -> None:
    for key, allowed in CHOICES.items():
        value = str(config[key]).lower()
        if value not in allowed:
            raise ConfigError(f"{key}={config[key]} must be one of {', '.join(allowed)}")
        config[key] = value
    for key, least in AT_LEAST.items():
        if config[key] is not None and config[key] < least:
            raise ConfigError(f"{key}={config[key]} must be >= {least}")
    if config.grad_clip is not None and not config.grad_clip > 0:
        raise ConfigError(f"grad_clip={config.grad_clip} must be > 0, or null for no clipping")


def _one_line(error: Exception) -> str:
    """The reason, in one line: hydra's own first line for a bad value says only which override it was."""
    if error.__cause__ is not None and str(error).startswith("Error merging override"):
        reason = str(error.__cause__).partition("\n")[0]
        return f"{str(error).removeprefix('Error merging override ')}: {reason}"
    return " ".join(str(error).split())
