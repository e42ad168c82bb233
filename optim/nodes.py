"""The nodes of a config of optimizers, checked and made into objects.

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
from collections.abc import Mapping
from typing import Any

from .member import refusal

ROLES = ("embedding", "matrix", "head", "vector")
OURS = ("_target_", "decay_roles", "role_settings")  # keys that are no arguments
Node = Mapping[str, Any]


def check(config: Node) -> None:
    """Raises ValueError if build could not make the optimizers of this config, whatever the model."""
    for node in nodes(config).values():
        _check_node(node, "optim")


def nodes(config: Node) -> dict[str, Node]:
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


def main_node(config: Node) -> Node:
    """The node of the matrices, after whose optimizer an option of several is named; else the one there is."""
    return next(node for roles, node in nodes(config).items() if not roles or "matrix" in roles.split(","))


def construct(node: Any, *arguments: Any) -> Any:
    """The object a node describes; values that are nodes are constructed first."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return tuple(node) if isinstance(node, list) else node
    settings = {key: construct(value) for key, value in node.items() if key not in OURS}
    try:
        return locate(node["_target_"])(*arguments, **settings)
    except Exception as error:  # whatever a class raises that is not ours
        numbers = {key: value for key, value in settings.items() if type(value) in (int, float)}
        named = ", ".join(f"{key}={value}" for key, value in numbers.items() if str(error).endswith(f": {value}"))
        raise ValueError(refusal(node["_target_"], error) + f" ({named})" * bool(named)) from error


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
    known = accepted(locate(node["_target_"]))
    settings = {key: value for key, value in node.items() if key not in OURS}
    if unknown := sorted(settings.keys() - known.keys()):
        raise ValueError(
            f"{where}.{unknown[0]}: {node['_target_']} takes no such argument; it accepts {', '.join(known)}"
        )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing: {node['_target_']} needs it")
    for key in ("decay_roles", "role_settings"):
        for role in node.get(key, ()):
            if role not in ROLES:
                raise ValueError(f"{where}.{key}: {role!r} must be one of {', '.join(ROLES)}")
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _check_node(value, f"{where}.{key}")


def accepted(target: Any) -> dict[str, inspect.Parameter]:
    """The arguments that a constructor takes by keyword, an optimizer's params aside."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p for p in parameters if p.kind in kinds and p.name != "params"}
