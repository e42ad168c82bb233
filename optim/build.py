"""From YAML (nodes.py) to optimizers: every parameter is owned exactly once, and decays only where its role says so."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .ensemble import OptimizerSet, curvature_of
from .nodes import ROLES, Node, accepted, check, construct, locate, nodes


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
    by_roles = nodes(config)
    owned = _ownership(by_roles, parameters, roles)
    optimizers = []
    for key, node in by_roles.items():
        if not owned[key]:
            raise ValueError(f"optim.roles.{key}: the model has no parameter with such a role; leave that node out")
        _check_parameters(node, {name: parameters[name] for name in owned[key]})
        optimizer = construct(node, _groups(node, owned[key], parameters, roles))
        _check_role_settings(node, optimizer)
        if (curvature := curvature_of(optimizer)) is not None:
            curvature.bind(optimizer, parameters.values(), seed=seed, global_batch=global_batch)
        optimizers.append(optimizer)
    found = OptimizerSet(optimizers, {param: name for name, param in parameters.items()})
    for member in found.members:
        member.distribute(group)
    return found


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
        if role not in decays and "weight_decay" in accepted(locate(node["_target_"])):
            group["weight_decay"] = 0.0
        found.append(group | {k: construct(v) for k, v in node.get("role_settings", {}).get(role, {}).items()})
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
        own = {name: value for name, value in settings.items() if name in accepted(type(optimizer))}
        for group in (group for group in optimizer.param_groups if group["role"] == role):
            construct({**node, **own}, group["params"])  # others check the ranges of what their constructor gets alone
