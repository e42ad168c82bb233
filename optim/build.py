"""From YAML to optimizers: every parameter is owned exactly once, and decays only where its role says so.

A config is either one node for all parameters or, under `roles`, a node for each role:
    _target_: optim.Sophia                 roles:
    lr: 6e-4                                 matrix: {_target_: optim.Lion, lr: 1e-4}
    decay_roles: [embedding, matrix]         head,vector: {_target_: optim.SGD, lr: 0.1}
    role_settings: {embedding: {lr: 3e-4}}   rest: {_target_: torch.optim.AdamW, lr: 6e-4}
A node is an import path and its constructor's arguments, nested ones too; anyone's torch.optim.Optimizer will do.
decay_roles are the roles whose weight_decay is not 0 (without it, all). role_settings are arguments that differ for the
parameters of a role. `rest` stands for the roles not named.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .ensemble import OptimizerSet, curvature_of
from .member import refusal

ROLES = ("embedding", "matrix", "head", "vector")
OURS = ("_target_", "decay_roles", "role_settings")  # keys that are no arguments
Node = Mapping[str, Any]


def check(config: Node) -> None:
    """Raises ValueError if build could not make the optimizers of this config, whatever the model."""
    for node in _nodes(config).values():
        _check_node(node, "optim")


def build(
    config: Node,
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, str],
    *,
    seed: int,
    global_batch: int,
    group: dist.ProcessGroup | None = None,
) -> OptimizerSet:
    """The optimizers of a config for a model's parameters.

    parameters, roles: by FQN. seed: of whatever an optimizer draws. global_batch: in sequences, for curvature. group:
    the ranks that have the same plain parameters and gradients (DDP), to share the work of matrix methods.

    Raises: ValueError: if the config is wrong, or a parameter is owned by no optimizer or by two.
    """
    check(config)
    nodes, owned = _nodes(config), _ownership(_nodes(config), parameters, roles)
    optimizers = []
    for key, node in nodes.items():
        if not owned[key]:
            raise ValueError(f"optim.roles.{key}: the model has no parameter with such a role; leave that node out")
        _check_parameters(node, {name: parameters[name] for name in owned[key]})
        optimizer = _construct(node, _groups(node, owned[key], parameters, roles))
        _check_role_settings(node, optimizer)
        if (curvature := curvature_of(optimizer)) is not None:
            curvature.bind(optimizer, parameters.values(), seed=seed, global_batch=global_batch)
        optimizers.append(optimizer)
    found = OptimizerSet(optimizers, {param: name for name, param in parameters.items()})
    for member in found.members:
        member.distribute(group)
    return found


def _nodes(config: Node) -> dict[str, Node]:
    """The node of each set of roles, keyed by the roles it owns ("" means all)."""
    if "roles" not in config:
        return {"": config}
    if extra := sorted(config.keys() - {"roles"}):
        raise ValueError(f"optim has roles and beside them {', '.join(extra)}; move them into the roles' nodes")
    named = [role for key in config["roles"] if key != "rest" for role in key.split(",")]
    for role in named:
        if role not in ROLES:
            raise ValueError(f"optim.roles: {role!r} must be rest, or one of {', '.join(ROLES)}")
    rest = ",".join(role for role in ROLES if role not in named)
    if "rest" in config["roles"] and not rest:
        raise ValueError("optim.roles: no role is left for rest; all are named")
    return {rest if key == "rest" else key: node for key, node in config["roles"].items()}


def _ownership(
    nodes: Mapping[str, Node], parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]
) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {name: [] for name in parameters}
    for key in nodes:
        for name in parameters:
            if not key or roles[name] in key.split(","):
                owners[name].append(key)
    for name, found in owners.items():
        if len(found) != 1:
            whom = f"by {len(found)} optimizers" if found else "by no optimizer"
            raise ValueError(f"optim.roles: {name} (role {roles[name]}) is owned {whom}; give each role exactly one")
    return {key: [name for name, found in owners.items() if found == [key]] for key in nodes}


def _groups(
    node: Node, names: Sequence[str], parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One parameter group per role, with the role's settings, and without weight decay where it has none."""
    decays = node.get("decay_roles", ROLES)
    found = []
    for role in (role for role in ROLES if any(roles[name] == role for name in names)):
        group: dict[str, Any] = {"params": [parameters[n] for n in names if roles[n] == role], "role": role}
        if role not in decays and "weight_decay" in _accepted(locate(node["_target_"])):
            group["weight_decay"] = 0.0
        found.append(group | {k: _construct(v) for k, v in node.get("role_settings", {}).get(role, {}).items()})
    return found


def _check_parameters(node: Node, parameters: Mapping[str, nn.Parameter]) -> None:
    check_parameter = getattr(locate(node["_target_"]), "check_parameter", None)  # others' classes have none
    if check_parameter is not None:
        for name, param in parameters.items():
            check_parameter(name, param)


def _check_role_settings(node: Node, optimizer: torch.optim.Optimizer) -> None:
    for role, settings in node.get("role_settings", {}).items():
        if odd := sorted(settings.keys() - optimizer.defaults.keys()):
            raise ValueError(
                f"optim.role_settings.{role}.{odd[0]}: {node['_target_']} has no such setting for a part of its "
                f"parameters; it has {', '.join(optimizer.defaults)}"
            )
        own = {name: value for name, value in settings.items() if name in _accepted(type(optimizer))}
        for group in (group for group in optimizer.param_groups if group["role"] == role):
            _construct({**node, **own}, group["params"])  # others check the ranges of what their constructor gets alone


def _construct(node: Any, *arguments: Any) -> Any:
    """The object a node describes; values that are nodes are constructed first."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return tuple(node) if isinstance(node, list) else node
    settings = {key: _construct(value) for key, value in node.items() if key not in OURS}
    try:
        return locate(node["_target_"])(*arguments, **settings)
    except Exception as error:  # whatever a class raises that is not ours
        raise ValueError(refusal(node["_target_"], error)) from error


def locate(path: str) -> Any:
    """The class that an import path names.

    Raises: ValueError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"optim._target_={path} cannot be imported: {error}") from None


def _check_node(node: Node, where: str) -> None:
    if not node.get("_target_"):
        raise ValueError(f"{where}: a node needs _target_, the import path of an optimizer; it has {sorted(node)}")
    accepted = _accepted(locate(node["_target_"]))
    settings = {key: value for key, value in node.items() if key not in OURS}
    if unknown := sorted(settings.keys() - accepted.keys()):
        raise ValueError(
            f"{where}.{unknown[0]}: {node['_target_']} takes no such argument; it accepts {', '.join(accepted)}"
        )
    missing = [name for name, p in accepted.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing: {node['_target_']} needs it")
    for key in ("decay_roles", "role_settings"):
        for role in node.get(key, ()):
            if role not in ROLES:
                raise ValueError(f"{where}.{key}: {role!r} must be one of {', '.join(ROLES)}")
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _check_node(value, f"{where}.{key}")


def _accepted(target: Any) -> dict[str, inspect.Parameter]:
    """The arguments that a constructor takes by keyword, an optimizer's params aside."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p for p in parameters if p.kind in kinds and p.name != "params"}
