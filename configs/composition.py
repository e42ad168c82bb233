"""Overrides to a configuration: options of groups by Hydra, then keys, each checked before it is set."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue

from configs import plug_ins
from configs.annotations import allows_null, fits, in_words, is_text
from configs.checks import check_values
from configs.errors import ConfigError
from configs.groups import FOLDER, GROUPS, options_of
from configs.overrides import (
    FREE_TEXTS,
    PATHS,
    Given,
    escaped,
    given,
    has_several,
    is_interpolation,
    is_readable,
    is_typed_text,
    text,
    value,
)
from configs.plug_ins import TARGET
from configs.runs import flat, plain, without
from configs.schema import SEAMS, DataConfig, RunConfig, default_of, holder_of, keys_that, rules, typed
from configs.signatures import Argument, arguments_of
from files.errors import LONGEST_SHOWN, PathError, one_line, shown
from files.paths import VARIABLE, expanded
from files.reading import read_yaml

NAMED_IF_SET = {name: default_of(each) for name, each, rule in rules() if rule.is_named_if_set}
LISTS = frozenset(place for place, seam in SEAMS.items() if seam.holds_several)
ARGUMENTS = {  # by group; what stands in a seam is checked when the configuration is complete
    group: {
        name: Argument(None, each.default) if f"{group}.{name}" in SEAMS else each
        for name, each in arguments_of(owner).items()
    }
    for group, owner in (("data", DataConfig), ("", RunConfig))
}


class Composed(NamedTuple):
    """A configuration, and what runs are named by.

    config: with the defaults of constructors. settings: its identity(), less the arguments that nobody set, or that an
    override sets to their defaults and the option's file does not list; so they stay the same when a constructor gets
    another argument, or an override says what is so anyway.
    """

    config: RunConfig
    settings: dict[str, Any]


def compose(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration of `python train.py *overrides`.

    Raises: ConfigError: if an override does not parse, its key or option does not exist, or a value is of another type
    or out of range.
    """
    return composed(overrides).config


def known_keys(overrides: Sequence[str] = ()) -> list[str]:
    """All keys that a run with these overrides can set, groups included."""
    return _known(plug_ins.literal(plain(compose(overrides))))


def of_options(overrides: Sequence[str]) -> dict[str, Any]:
    """What the chosen options and their constructors' defaults say, as plain data; ??? where a value must be given.

    Raises: ConfigError: if an option does not exist.
    """
    config = deepcopy(_base(FOLDER, _choices([given(each) for each in overrides]))[0])
    plug_ins.fill(config)
    found = OmegaConf.to_container(config)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def default_options() -> dict[str, str]:
    """By group, the option of a run without overrides; of several the first."""
    found = {
        group: option[0] if isinstance(option, list) else option
        for group, option in _chosen_in(FOLDER / "config.yaml").items()
    }
    for group, option in list(found.items()):
        below = _chosen_in(FOLDER / group / f"{option}.yaml")
        found |= {f"{group}/{name}": option_below for name, option_below in below.items()}
    return found


def _chosen_in(file: Path) -> dict[str, Any]:
    """The group: option of a file's defaults; read without Hydra, which would take a tenth of a second for them."""
    listed = (read_yaml(file) or {}).get("defaults", [])
    return {group: option for each in listed if isinstance(each, dict) for group, option in each.items()}


def composed(overrides: Sequence[str]) -> Composed:
    """As compose, with the settings. Raises: as compose."""
    parsed = [given(each) for each in overrides]
    choices = _choices([each for each in parsed if each.key in GROUPS])
    base, options = _base(FOLDER, choices)
    config = deepcopy(base)
    keys = [each for each in parsed if each.key not in GROUPS]
    for each in sorted(keys, key=lambda each: not each.key.endswith(f".{TARGET}")):  # classes say which keys there are
        _apply(each, config)
    content = _complete(config)  # plain from here on: OmegaConf's containers take ten times as long
    check_values(content)
    unfilled = plain(content)
    plug_ins.drop_defaults(unfilled, base)
    plug_ins.fill(content)
    found = {key: each for key, each in flat(unfilled).items() if key not in NAMED_IF_SET or each != NAMED_IF_SET[key]}
    if content["run_dir"] is None:
        content["run_dir"] = f"runs/{_run_name(unfilled, base, options, found)}"
    for key in PATHS:
        holder, name = holder_of(content, key)
        if (typed_path := holder.get(name)) is None:
            continue
        try:
            holder[name] = str(expanded(typed_path, key))
        except PathError as error:
            raise ConfigError(str(error)) from None
    return Composed(typed(content), without(found, keys_that("is_place") | keys_that("is_conduct")))


def _choices(groups: Sequence[Given]) -> tuple[str, ...]:
    """group=option, each checked; of one that is chosen twice the last, as of a key."""
    found: dict[str, str] = {}
    for each in groups:
        options = options_of(each.key)
        listed = f"(all: {', '.join(options)})"
        if each.is_delete or each.raw is None:
            raise ConfigError(f"{each.text} leaves a run without {each.key}; choose an option instead {listed}")
        chosen = _options(each.key, each.raw)
        for option in chosen:
            if option not in options:
                several = [part for part in option.split(",") if part in options]
                raise ConfigError(_no_option(each.key, option, several, listed))
        found[each.key] = f"[{','.join(chosen)}]" if each.key in LISTS else chosen[0]
    return tuple(f"{group}={option}" for group, option in found.items())


def _options(group: str, raw: str) -> list[str]:
    """The names in group=name, or in group=[name,name] where options are merged."""
    if group in LISTS and raw.startswith("["):
        names = value(group, raw, wanted="a list of options")
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return list(dict.fromkeys(names))
    return [text(group, raw)]


def _no_option(group: str, option: str, several: Sequence[str], listed: str) -> str:
    is_call = "(" in option and has_several(option)  # glob(*)
    if len(several) > 1 or is_call:
        both = f", give them as a list '{group}=[{option}]'" if group in LISTS and not is_call else ""
        return f"{group}={shown(option)} names several options; add -m to run each{both}, or choose one"
    return f"{group}={shown(option)} does not exist; {_nearest(option, options_of(group))} {listed}"


@lru_cache(maxsize=128)
def _base(folder: Path, choices: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, str]]:
    """The options as their files have them, and the name of each; to be copied before it is changed."""
    store = ConfigStore.instance()
    store.store(name="base_config", node={name: default_of(each) for name, each, _ in rules() if "." not in name})
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = hydra_compose("config", list(choices), return_hydra_config=True)
        options = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config["hydra"]
    except Exception as error:  # Hydra's, OmegaConf's and the YAML parser's own
        raise ConfigError(
            f"the options {' '.join(choices) or '(defaults)'} do not compose: {one_line(error)}"
        ) from None
    return config, options


def _apply(each: Given, config: DictConfig) -> None:
    """Sets or deletes one key."""
    argument = _argument(each.key, config)
    if argument is None:
        _refuse_below_a_value(each.key, config)
        if each.key.partition(".")[0] == "hydra":
            raise ConfigError(
                f"{shown(each.key)}: Hydra's own settings are not used; run_dir=... names a run's directory"
            )
        nearest, hint = _nearest(each.key, _known(config)), _hint(each.key, config)
        raise ConfigError(f"unknown key {shown(each.key)!r}; {nearest}{hint}")
    if each.is_delete:
        _delete(each, config)
        return
    assert each.raw is not None  # given() lets nothing else through
    found = _typed(each, argument)
    if not (isinstance(found, str) and "${" in found):  # what is looked up is checked when all is there
        found = plug_ins.checked(each.key, found, argument)
    try:
        with open_dict(config):
            OmegaConf.update(config, each.key, found, merge=True, force_add=True)
    except Exception as error:  # of many types, for values that do not fit and keys below a value
        raise ConfigError(f"{each.key}={shown(each.raw)}: {str(error).partition(chr(10))[0][:LONGEST_SHOWN]}") from None


def _typed(each: Given, argument: Argument) -> Any:
    """The value of an override, as its key wants it."""
    key, raw = each.key, each.raw or ""
    if key in FREE_TEXTS:
        return escaped(raw)
    if is_typed_text(key) and _holds_a_text(argument, raw):
        if raw == "null" and (argument.default is None or allows_null(argument.annotation)):
            return None
        return _typed_text(key, text(key, raw))
    no_text = argument.annotation is not None and not fits("", argument.annotation)
    found = value(key, raw, wanted=in_words(argument.annotation) if no_text else "")
    if is_text(argument.annotation) and isinstance(found, bool | int | float):
        return raw
    return found


def _holds_a_text(argument: Argument, raw: str) -> bool:
    """By its annotation; without one, by its default, or as the value is none that could be anything else."""
    if argument.annotation is not None:
        return is_text(argument.annotation)
    return isinstance(argument.default, str) or not is_readable(raw)


def _typed_text(key: str, typed: str) -> str:
    """${VARIABLE} is the environment's, as in a shell; any other ${...} is OmegaConf's where it can be."""

    def replaced(match: re.Match[str]) -> str:
        name = match[2]
        if name is None or name not in os.environ:
            return match[0]
        return os.environ[name] if key in PATHS else rf"\{match[0]}"

    found = VARIABLE.sub(replaced, typed)
    return found if "${" not in found or is_interpolation(found) else escaped(typed)


def _delete(each: Given, config: DictConfig) -> None:
    """Only what a constructor has a default for, or a sink, can be left out."""
    parent, _, name = each.key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    is_argument = isinstance(node, DictConfig) and TARGET in node and name != TARGET
    if not isinstance(node, DictConfig) or not (is_argument or parent in LISTS):
        raise ConfigError(f"{each.text}: a run needs {each.key}; give it another value")
    if name not in node:
        raise ConfigError(f"{each.text}: the configuration does not have {each.key} anyway; leave this out")
    with open_dict(config):
        del node[name]


def _argument(key: str, config: DictConfig) -> Argument | None:
    """What is known of the key: an argument of a class or a field of a dataclass; None if there is no such key."""
    anything = Argument(None, None)
    for node in sorted(plug_ins.nodes(config, around=key), key=lambda node: -len(node.key)):
        if not key.startswith(f"{node.key}."):
            continue
        name, _, below = key.removeprefix(f"{node.key}.").partition(".")
        if name == TARGET:
            return anything
        known = plug_ins.settings(node, may_import=True)
        if known is None or name in node.content or name in node.seam.besides:
            argument = (known or {}).get(name, anything)
            return argument if not below or _may_have_keys(node.content.get(name), argument) else None
        found = known.get(name)
        return anything if found and below and _may_have_keys(None, found) else None if below else found
    parent, _, name = key.rpartition(".")
    if name in (of_group := ARGUMENTS.get(parent, {})):
        return of_group[name]
    parent = key.removesuffix(f".{TARGET}").rpartition(".")[0]
    is_new_node = parent in LISTS or (parent == "optim.roles" and OmegaConf.select(config, parent) is not None)
    return anything if is_new_node or key in _existing(config, "") else None


def _refuse_below_a_value(key: str, config: DictConfig) -> None:
    parent = key.rpartition(".")[0]
    value = OmegaConf.select(config, parent) if parent in _existing(config, "") else None
    if value is not None and not isinstance(value, DictConfig):
        raise ConfigError(
            f"unknown key {shown(key)!r}: {parent} is the value {shown(value)}; give all of it, {parent}=..."
        )


def _may_have_keys(value: Any, argument: Argument) -> bool:
    """Whether keys below an argument make sense: it holds a mapping, or nothing and may get one."""
    return isinstance(value, DictConfig) or (value is None and fits({}, argument.annotation))


def _hint(key: str, config: DictConfig) -> str:
    """Which options of its group have the key, else what the class takes that it would be an argument of."""
    for group, place in ((group, group.replace("/", ".")) for group in reversed(GROUPS)):
        if not key.startswith(f"{place}."):
            continue
        files = {path.stem: read_yaml(path, may_be_link=True) or {} for path in sorted((FOLDER / group).glob("*.yaml"))}
        if found := [name for name, content in files.items() if key.removeprefix(f"{place}.") in flat(content)]:
            return f" ({group}={' or '.join(found)} {'has' if len(found) == 1 else 'have'} it)"
    parent = key.rpartition(".")[0]
    for node in (node for node in plug_ins.nodes(config) if node.key == parent):
        return f" ({node.target} takes {', '.join(plug_ins.settings(node, may_import=True) or ()) or 'no arguments'})"
    return ""


def _known(config: DictConfig) -> list[str]:
    """All keys that can be set."""
    arguments = {
        f"{node.key}.{name}"
        for node in plug_ins.nodes(config)
        for name in plug_ins.settings(node, may_import=True) or ()
    }
    return sorted(key for key in {*_existing(config, ""), *arguments, *GROUPS} if not key.endswith(f".{TARGET}"))


def _existing(node: Any, prefix: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for key in map(str, node):
        path = f"{prefix}.{key!s}" if prefix else str(key)
        yield path
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from _existing(node[key], path)


# Names of nanoGPT's options that none of ours is near to, or the wrong one.
NANOGPTS = {
    "batch_size": "micro_batch",
    "decay_lr": "schedule",
    "dtype": "precision",
    "eval_interval": "eval_every",
    "eval_iters": "eval_sequences",
    "gradient_accumulation_steps": "global_batch",
    "init_from": "start_from, or nothing for init_from=resume: the same command goes on",
    "learning_rate": "optim.lr",
    "lr_decay_iters": "max_steps",
    "max_iters": "max_steps",
    "min_lr": "schedule.final_lr_fraction",
    "wandb_log": "logging=wandb",
    "wandb_project": "logging.wandb.project",
    "warmup_iters": "schedule.warmup_steps",
}


def _nearest(key: str, known: Sequence[str]) -> str:
    """In words, the known key that the user most likely meant: misplaced, misspelt, or both."""
    if key in NANOGPTS:
        return f"nanoGPT's {key} is here {NANOGPTS[key]} (docs/nanogpt.md)"
    ends = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
    end = key.rpartition(".")[2]
    known = [candidate for candidate in known if not key.startswith(f"{candidate}.")]
    same_depth = [candidate for candidate in known if candidate.count(".") == key.count(".")]
    found = [ends[end]] if end in ends else get_close_matches(key, same_depth, 1) or get_close_matches(key, known, 1)
    found = found or [ends[near] for near in get_close_matches(end, ends, 1)]
    return f"the nearest valid one is {found[0]!r}" if found else "nothing valid is near it"


def _complete(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, every ${...} looked up.

    Raises: ConfigError: if a key is missing, or refers to one that is not there.
    """
    try:
        content = plain(config)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; give it as {error.full_key}=...") from None
    except Exception as error:  # OmegaConf's, and those of resolvers
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{f'{key}: ' if key else ''}{str(error).partition(chr(10))[0]}") from None
    for place in SEAMS:
        holder, name = holder_of(content, place)
        if not isinstance(node := holder.get(name), dict):
            group = place.replace(".", "/")
            choose = f" (an option is chosen by {group}=...)" if group in GROUPS else ""
            raise ConfigError(f"{place}={shown(node)} must be a mapping{choose}")
    return content


def _run_name(config: Mapping[str, Any], base: Any, options: Mapping[str, str], found: Mapping[str, Any]) -> str:
    """<model>-<data>-<optim>-s<seed>-<8 hex digits>: the same for every rank and every time the run is started."""
    digest = hashlib.sha256(json.dumps(without(found, keys_that("is_place")), sort_keys=True).encode()).hexdigest()[:8]
    data, optim = (_option_or_class(config, base, options, group) for group in ("data", "optim"))
    return f"{options['model']}-{data}-{optim}-s{config['seed']}-{digest}"


def _option_or_class(config: Any, base: Any, options: Mapping[str, str], group: str) -> str:
    """The option's name, or those of the classes if they are others than the option's."""
    of_group = [
        [node.target for node in plug_ins.nodes(each) if names_a_run(node.key, group)] for each in (config, base)
    ]
    if of_group[0] == of_group[1]:
        return options[group]
    return "+".join(dict.fromkeys(target.rpartition(".")[2].lower() for target in of_group[0]))


def names_a_run(key: str, group: str) -> bool:
    """Whether the class in a node at this place tells which option of the group a run has."""
    return key in (group, f"{group}.source") or (key.startswith(f"{group}.roles.") and key.count(".") == 2)
