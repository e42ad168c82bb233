"""What the values of a configuration must be, whatever the classes that get them."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from configs import plug_ins
from configs.annotations import is_fraction
from configs.errors import ConfigError
from configs.schema import DataConfig, Rule, RunConfig, rules
from configs.signatures import REQUIRED, Argument, arguments_of
from configs.start import check_start
from files.errors import shown

MOST = 1 << 63  # what 64 bits count to


def check_values(config: DictConfig) -> None:
    """Raises: ConfigError: if a value is out of range, of another type, or no argument of the class that it is for.

    Whole numbers become ints, choices lower case.
    """
    _check_leaves(OmegaConf.to_container(config, resolve=True), "")
    _check_arguments(config, "", arguments_of(RunConfig))
    _check_arguments(config.data, "data.", arguments_of(DataConfig))
    for key, _, rule in rules():
        _check_rule(config, key, rule)
    _check_steps(config)
    for node in plug_ins.nodes(config):
        for key in node.seam.besides & set(node.content):
            _check_roles(f"{node.key}.{key}", node.content[key])
    plug_ins.check(config)


def _check_leaves(value: Any, key: str) -> None:
    """No number may be infinite or too large for tensors, and every text must be writable to config.yaml."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for each in value:
            _check_leaves(each, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a finite number (null is off, where a key can be off)")
    elif isinstance(value, int) and abs(value) >= MOST:
        raise ConfigError(f"{key}={shown(value)} must lie between -2**63 and 2**63")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key}={value!a} is not UTF-8 text") from None


def _check_rule(config: DictConfig, key: str, rule: Rule) -> None:
    value = OmegaConf.select(config, key)
    if rule.choices:
        chosen = str(value).lower()
        if chosen not in rule.choices:
            raise ConfigError(f"{key}={shown(value)} must be one of {', '.join(rule.choices)}")
        OmegaConf.update(config, key, chosen)
    if value is None:
        return
    values = list(value) if isinstance(value, ListConfig) else [value]
    if rule.least is not None and any(each < rule.least for each in values):
        raise ConfigError(f"{key}={value} must be >= {rule.least:g}")
    if rule.above is not None and not value > rule.above:
        raise ConfigError(f"{key}={value} must be > {rule.above:g}, or null for off")


def _check_steps(config: DictConfig) -> None:
    """Steps that other keys name must lie within the run."""
    check_start(config.start_from, config.start, config.max_steps)
    if max(config.save_at or [], default=0) > config.max_steps:
        raise ConfigError(
            f"save_at={shown(config.save_at)} has a step beyond the run's last, max_steps={config.max_steps}"
        )


def _check_arguments(node: DictConfig, prefix: str, arguments: Mapping[str, Argument]) -> None:
    """The types of what fills a dataclass; prefix: of its keys."""
    for name, argument in arguments.items():
        if name in node:
            kept = plug_ins.checked(f"{prefix}{name}", value := node[name], argument)
            if isinstance(kept, int) and is_fraction(argument.annotation):
                kept = float(kept)  # grad_clip=1 is the same run as grad_clip=1.0
            if kept is not value:  # a text must stay as it is, escaped
                node[name] = kept
        elif name not in node and argument.default is REQUIRED:
            raise ConfigError(f"{prefix}{name} is missing; give it as {prefix}{name}=...")


def _check_roles(key: str, value: Any) -> None:
    """decay_roles lists names; role_settings maps names to mappings."""
    if key.endswith("decay_roles"):
        is_right = isinstance(value, ListConfig) and all(isinstance(each, str) for each in value)
        wanted = "a list of roles such as [embedding,matrix]"
    else:
        is_right = isinstance(value, DictConfig) and all(isinstance(each, DictConfig) for each in value.values())
        wanted = "a mapping of roles to settings such as {embedding: {lr: 1e-4}}"
    if not is_right:
        raise ConfigError(f"{key}={shown(value)} must be {wanted}")
