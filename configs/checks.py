"""What the values of a configuration must be, whatever the classes that get them."""

import math
from collections.abc import Mapping
from typing import Any

from configs import plug_ins
from configs.annotations import is_fraction
from configs.errors import ConfigError
from configs.schema import DataConfig, Rule, RunConfig, holder_of, rules
from configs.signatures import REQUIRED, Argument, arguments_of
from configs.start import check_start
from files.errors import shown

MOST = 1 << 63  # what 64 bits count to


def check_values(config: dict[str, Any]) -> None:
    """Raises: ConfigError: if a value is out of range, of another type, or no argument of the class that it is for.

    config: complete plain data, in which whole numbers become ints, choices lower case.
    """
    _check_leaves(config, "")
    _check_arguments(config, "", arguments_of(RunConfig))
    _check_arguments(config["data"], "data.", arguments_of(DataConfig))
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


def _check_rule(config: dict[str, Any], key: str, rule: Rule) -> None:
    holder, name = holder_of(config, key)
    value = holder.get(name)
    if rule.choices:
        chosen = str(value).lower()
        if chosen not in rule.choices:
            raise ConfigError(f"{key}={shown(value)} must be one of {', '.join(rule.choices)}")
        holder[name] = chosen
    if value is None:
        return
    values = value if isinstance(value, list) else [value]
    if rule.least is not None and any(each < rule.least for each in values):
        raise ConfigError(f"{key}={value} must be >= {rule.least:g}")
    if rule.above is not None and not value > rule.above:
        raise ConfigError(f"{key}={value} must be > {rule.above:g}, or null for off")


def _check_steps(config: Mapping[str, Any]) -> None:
    """Steps that other keys name must lie within the run."""
    max_steps, save_at = config["max_steps"], config["save_at"]
    check_start(config["start_from"], config["start"], max_steps)
    if max(save_at or [], default=0) > max_steps:
        raise ConfigError(f"save_at={shown(save_at)} has a step beyond the run's last, max_steps={max_steps}")


def _check_arguments(node: dict[str, Any], prefix: str, arguments: Mapping[str, Argument]) -> None:
    """The types of what fills a dataclass; prefix: of its keys."""
    for name, argument in arguments.items():
        if name in node:
            kept = plug_ins.checked(f"{prefix}{name}", node[name], argument)
            if isinstance(kept, int) and is_fraction(argument.annotation):
                kept = float(kept)  # grad_clip=1 is the same run as grad_clip=1.0
            node[name] = kept
        elif name not in node and argument.default is REQUIRED:
            raise ConfigError(f"{prefix}{name} is missing; give it as {prefix}{name}=...")


def _check_roles(key: str, value: Any) -> None:
    """decay_roles lists names; role_settings maps names to mappings."""
    if key.endswith("decay_roles"):
        is_right = isinstance(value, list) and all(isinstance(each, str) for each in value)
        wanted = "a list of roles such as [embedding,matrix]"
    else:
        is_right = isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())
        wanted = "a mapping of roles to settings such as {embedding: {lr: 1e-4}}"
    if not is_right:
        raise ConfigError(f"{key}={shown(value)} must be {wanted}")
