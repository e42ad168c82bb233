"""What the values of a configuration must be, whatever the classes that get them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from configs import plug_ins
from configs.errors import ConfigError
from configs.schema import AT_LEAST, CHOICES
from configs.signatures import REQUIRED, signature
from files.errors import shown
from model.config import GPTConfig

MOST = 1 << 63  # what 64 bits count to


def check_values(config: DictConfig) -> None:
    """Raises: ConfigError: if a value is out of range, of another type, or no argument of the class that it is for.

    Whole numbers become ints, choices lower case.
    """
    _check_leaves(OmegaConf.to_container(config, resolve=True), "")
    for key, allowed in CHOICES.items():
        value = str(config[key]).lower()
        if value not in allowed:
            raise ConfigError(f"{key}={shown(config[key])} must be one of {', '.join(allowed)}")
        config[key] = value
    for key, least in AT_LEAST.items():
        if config[key] is not None and config[key] < least:
            raise ConfigError(f"{key}={config[key]} must be >= {least}")
    if config.grad_clip is not None and not config.grad_clip > 0:
        raise ConfigError(f"grad_clip={config.grad_clip} must be > 0, or null for no clipping")
    _check_fields(config.data, "data", "configs.schema.DataConfig")
    _check_model(config)
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


def _check_fields(node: DictConfig, key: str, owner: str, *, null: Sequence[str] = ()) -> None:
    """The types of a group that fills a dataclass."""
    found = signature(owner, may_import=False)
    assert found is not None  # it is one of ours
    for name, argument in found.arguments.items():
        if name in node and not (name in null and node[name] is None):
            kept = plug_ins.checked(f"{key}.{name}", value := node[name], argument, owner.rpartition(".")[2])
            if kept is not value:  # a text must stay as it is, escaped
                node[name] = kept
        elif name not in node and argument.default is REQUIRED:
            raise ConfigError(f"{key}.{name} is missing; give it as {key}.{name}=...")


def _check_model(config: DictConfig) -> None:
    _check_fields(config.model, "model", "model.config.GPTConfig", null=("vocab_size",))
    shape = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(shape, dict)
    known = {str(key): value for key, value in shape.items()}
    try:
        GPTConfig(**{**known, "vocab_size": 1 if known.get("vocab_size") is None else known["vocab_size"]})
    except TypeError as error:
        raise ConfigError(f"model: {error}".replace("GPTConfig.__init__()", "GPTConfig")) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


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
