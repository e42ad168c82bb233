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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from . import groups
from .base import Optimizer
from .curvature import Curvature
from .sharding import local, zeros

ROLES = ("embedding", "matrix", "head", "vector")
OURS = ("_target_", "decay_roles", "role_settings")  # keys that are no arguments
Node = Mapping[str, Any]


class OptimizerSet:
    """The optimizers of a model as one: what the training loop and checkpoints see.

    members: torch.optim.Optimizer objects. names: the FQN of every parameter.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]) -> None:
        self.members, self.names = list(members), dict(names)
        self._untried = [member for member in members if not isinstance(member, Optimizer)]
        curvatures = (getattr(member, "curvature", None) for member in members)
        self.estimators = [curvature for curvature in curvatures if isinstance(curvature, Curvature)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def step(self, *, measured: bool = False, is_finite: Tensor | None = None) -> None:
        """Updates all parameters; measured: also takes down update_ratio for diagnostics(), which costs some time.

        is_finite: 0-dim, whether the step may be taken. Where not, parameters and state stay as they are, while ours
        count it as a step. On a CPU the tensor is read, on other devices it stays there, unless an optimizer, neither
        ours nor one of torch's fused ones, cannot do without.

        Raises: ValueError: if the first step of an optimizer that is not ours fails: it is not for such a model.
        """
        for member in self.members:
            if isinstance(member, Optimizer):
                member.measures = measured
            try:
                _step(member, is_finite)
            except Exception as error:
                if any(member is untried for untried in self._untried) and not _is_of_the_machine(member, error):
                    raise ValueError(f"optim: in the first step, {_refusal(_path(member), error)}") from error
                raise
        self._untried = []

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for member in self.members:
            member.zero_grad()

    def diagnostics(self) -> dict[str, Tensor]:
        """What the members have to say, as "optim/..." to 0-dim tensors on the device; the same on all ranks."""
        found: dict[str, Tensor] = {}
        for member in self.members:
            if isinstance(member, Optimizer):
                found |= {f"optim/{name}": value for name, value in member.diagnostics().items()}
        return found

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about values of diagnostics(), as floats, that are out of their usual range."""
        own = {name.removeprefix("optim/"): value for name, value in diagnostics.items()}
        return [hint for member in self.members if isinstance(member, Optimizer) for hint in member.hints(own)]

    def state_bytes(self) -> int:
        """Bytes of all state tensors that exist on this rank; those of one number (steps) aside."""
        tensors = (value for _, _, state in self._states() for value in state.values() if isinstance(value, Tensor))
        return sum(local(tensor).nbytes for tensor in tensors if tensor.ndim)

    def save_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, named "<FQN>.<state name>", and all that is JSON: numbers in the state, and the groups.

        Across ranks the tensors are DTensors, the same everywhere, or on their owner alone, see sharding.py.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for _, param, state in self._states():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{self.names[param]}.{name}"] = value
                else:
                    numbers.setdefault(self.names[param], {})[name] = value
        return tensors, {"numbers": numbers, "groups": [_as_json(group) for group in self._named_groups()]}

    def empty_state(self, saved: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
        """Tensors for a checkpoint to be read into, then to be given to load_state: those that this rank keeps.

        saved: shape and dtype of all that was saved, by name, whatever the ranks it was saved on. Raises: ValueError:
        if it is not the state of these optimizers and parameters.
        """
        by_param: dict[str, dict[str, Any]] = {}
        for full_name, found in saved.items():
            fqn, _, name = full_name.rpartition(".")
            by_param.setdefault(fqn, {})[name] = found
        self._check_known(by_param)
        tensors: dict[str, Tensor] = {}
        for member in self.members:
            for group in member.param_groups:
                for param in group["params"]:
                    fqn = self.names[param]
                    empty = _empty(member, param, group, by_param[fqn]) if fqn in by_param else {}
                    tensors |= {f"{fqn}.{name}": tensor for name, tensor in empty.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Takes over what save_state gave, bit for bit.

        Raises: ValueError: if a name belongs to no parameter, the groups are others or in another order, or the state
        does not fit its optimizer; then nothing has changed.
        """
        states: dict[str, dict[str, Any]] = {name: dict(found) for name, found in rest["numbers"].items()}
        for full_name, tensor in tensors.items():
            fqn, _, name = full_name.rpartition(".")
            states.setdefault(fqn, {})[name] = tensor
        self._check_known(states)
        settings = list(dict.fromkeys(key for member in self.members for key in member.defaults))
        groups.check_same("optim", self._named_groups(), rest["groups"], settings)
        saved, commits = iter(rest["groups"]), []
        for member in self.members:
            own = [next(saved) for _ in member.param_groups]
            params = [param for group in member.param_groups for param in group["params"]]
            commits.append(
                _prepared(member, own, {p: states[self.names[p]] for p in params if self.names[p] in states})
            )
        for commit in commits:
            commit()

    def _named_groups(self) -> list[dict[str, Any]]:
        """The groups with the FQNs of their parameters."""
        return [
            group | {"param_names": [self.names[param] for param in group["params"]]} for group in self.param_groups
        ]

    def _check_known(self, names: Iterable[str]) -> None:
        if unknown := sorted(set(names) - set(self.names.values())):
            raise ValueError(f"the saved optimizer state is of a parameter that the model lacks: {unknown[0]}")

    def _states(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter, dict[str, Any]]]:
        for member in self.members:
            for group in member.param_groups:
                for param in group["params"]:
                    if param in member.state:
                        yield member, param, member.state[param]


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
    members = []
    for key, node in nodes.items():
        if not owned[key]:
            raise ValueError(f"optim.roles.{key}: the model has no parameter with such a role; leave that node out")
        _check_parameters(node, {name: parameters[name] for name in owned[key]})
        member = _construct(node, _groups(node, owned[key], parameters, roles))
        _check_role_settings(node, member)
        curvature = getattr(member, "curvature", None)
        if isinstance(curvature, Curvature):
            curvature.bind(member, parameters.values(), seed=seed, global_batch=global_batch)
        if isinstance(member, Optimizer):
            member.distribute(group)
        members.append(member)
    return OptimizerSet(members, {param: name for name, param in parameters.items()})


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
    if isinstance(target := locate(node["_target_"]), type) and issubclass(target, Optimizer):
        for name, param in parameters.items():
            groups.check_parameter(target.__name__, name, param)


def _check_role_settings(node: Node, member: torch.optim.Optimizer) -> None:
    for role, settings in node.get("role_settings", {}).items():
        if odd := sorted(settings.keys() - member.defaults.keys()):
            raise ValueError(
                f"optim.role_settings.{role}.{odd[0]}: {node['_target_']} has no such setting for a part of its "
                f"parameters; it has {', '.join(member.defaults)}"
            )
        if not isinstance(member, Optimizer):  # others look at the ranges of what their constructor gets alone
            own = {name: value for name, value in settings.items() if name in _accepted(type(member))}
            for group in (group for group in member.param_groups if group["role"] == role):
                _construct({**node, **own}, group["params"])


def _construct(node: Any, *arguments: Any) -> Any:
    """The object a node describes; values that are nodes are constructed first."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return tuple(node) if isinstance(node, list) else node
    settings = {key: _construct(value) for key, value in node.items() if key not in OURS}
    try:
        return locate(node["_target_"])(*arguments, **settings)
    except Exception as error:  # whatever a class raises that is not ours
        raise ValueError(_refusal(node["_target_"], error)) from error


def _refusal(target: str, error: Exception) -> str:
    """What a class says in one line, after its import path unless its own words name the class."""
    said, kind = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, ValueError):
        return said if target.rpartition(".")[2] in said else f"{target}: {said or kind}"
    return f"{target}: {kind}: {said}" if said else f"{target}: {kind}"


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


def _prepared(
    member: torch.optim.Optimizer,
    saved: Sequence[Mapping[str, Any]],
    states: Mapping[Tensor, Mapping[str, Any]],
) -> Callable[[], None]:
    """What makes a member take saved groups and states over.

    Raises: ValueError: if they do not fit it.
    """
    if isinstance(member, Optimizer):
        return partial(member.take_over, *member.fitting(saved, states))
    fresh = [groups.adopted(ours, theirs) for ours, theirs in zip(member.param_groups, saved, strict=True)]
    owners = {param: group for group in fresh for param in group["params"]}
    found: dict[Tensor, dict[str, Any]] = {p: _foreign_state(p, owners[p], state) for p, state in states.items()}

    def commit() -> None:
        for group, settings in zip(member.param_groups, fresh, strict=True):
            group.update(settings)
        member.state = defaultdict(dict, found)

    return commit


def _foreign_state(param: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    # As torch keeps them: steps in host memory unless a fused or capturable kernel counts them on the device.
    on_device = group.get("fused") or group.get("capturable")
    return {
        name: value.to(param.device if name != "step" or on_device else "cpu", copy=True)
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }


def _empty(
    member: torch.optim.Optimizer,
    param: nn.Parameter,
    group: Mapping[str, Any],
    saved: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> dict[str, Tensor]:
    if isinstance(member, Optimizer):
        return member.empty_state(param, group, saved)
    return {
        name: zeros(param, shape, dtype, by_row=shape == tuple(param.shape)) for name, (shape, dtype) in saved.items()
    }


def _stops_on_device(member: torch.optim.Optimizer) -> bool:
    return isinstance(member, Optimizer) or all(group.get("fused") for group in member.param_groups)


def _step(member: torch.optim.Optimizer, is_finite: Tensor | None) -> None:
    if is_finite is None:
        member.step()
    elif is_finite.device.type == "cpu" or not _stops_on_device(member):
        _step_if(bool(is_finite), member)
    else:
        _step_where(is_finite, member)


def _path(member: torch.optim.Optimizer) -> str:
    return f"{type(member).__module__}.{type(member).__qualname__}"


def _is_of_the_machine(member: torch.optim.Optimizer, error: Exception) -> bool:
    """Whether memory, a device or another rank may be at fault, not what the optimizer was given."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError | dist.DistError):
        return True
    return any(isinstance(param, DTensor) for group in member.param_groups for param in group["params"])


def _step_where(is_finite: Tensor, member: torch.optim.Optimizer) -> None:
    member.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # torch's name for it
    try:
        member.step()
    finally:
        member.found_inf = None  # type: ignore[attr-defined]  # or it would stop steps that do not ask


def _step_if(is_finite: bool, member: torch.optim.Optimizer) -> None:
    if is_finite:
        member.step()
    elif isinstance(member, Optimizer):
        member.skip()


def _as_json(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a group is JSON, numbers as Python's; waits for those that are tensors on a device."""
    found = {key: groups.plain(value) for key, value in group.items() if key != "params"}
    return {key: value for key, value in found.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
