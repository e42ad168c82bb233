"""The optimizers of a model as one: what the training loop and checkpoints see."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import groups
from .base import RuleOptimizer
from .curvature import Curvature
from .member import ForeignMember, Member
from .sharding import local


class OptimizerSet:
    """Several optimizers, each of its own parameters.

    optimizers: ours or any torch.optim.Optimizer. names: the FQN of every parameter. members: the same optimizers, as
    what answers the set. estimators: of curvature, to be updated in every step, see curvature.py.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]) -> None:
        self.optimizers, self.names = list(optimizers), dict(names)
        self.members = [_member(optimizer) for optimizer in optimizers]
        found = map(curvature_of, optimizers)
        self.estimators = [curvature for curvature in found if curvature is not None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def step(self, *, measured: bool = False, is_finite: Tensor | None = None) -> None:
        """Updates all parameters; measured: also notes what diagnostics() then says about them, which costs a copy.

        is_finite: 0-dim, whether the step may be taken. Where not, parameters and state stay as they are, while ours
        count it as a step. On a CPU the tensor is read, on other devices it stays there, unless an optimizer, neither
        ours nor one of torch's fused ones, cannot do without.
        """
        for member in self.members:
            member.step_if_finite(is_finite, measured=measured)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for member in self.members:
            member.zero_grad()

    def diagnostics(self) -> dict[str, Tensor]:
        """The members' diagnostics, "optim/<name>" to 0-dim tensors on the device; the same on all ranks."""
        found: dict[str, Tensor] = {}
        for member in self.members:
            found |= {f"optim/{name}": value for name, value in member.diagnostics().items()}
        return found

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about values of diagnostics(), as floats, that are out of their usual range."""
        own = {name.removeprefix("optim/"): value for name, value in diagnostics.items()}
        return [hint for member in self.members for hint in member.hints(own)]

    @property
    def refresh_interval(self) -> int:
        """The least number of steps that hold every refresh, of curvature and preconditioners, equally often."""
        intervals = [interval for member in self.members for interval in member.refresh_intervals()]
        return math.lcm(*(estimator.every for estimator in self.estimators), *intervals)

    def flops(self, steps: int) -> float:
        """FLOPs of the matrix products and factorisations of the first `steps` steps; those of foreign members count 0.

        Without the estimators' passes, see Curvature.passes.
        """
        return sum(member.flops_of_all(steps) for member in self.members)

    def init_state(self) -> None:
        """Makes the state of every parameter; where members are foreign, only on the meta device."""
        for member in self.members:
            member.init_state()

    def state_bytes(self) -> int:
        """Bytes of all state tensors that exist on this rank; those of one number (steps) aside."""
        tensors = (value for _, state in self._states() for value in state.values() if isinstance(value, Tensor))
        return sum(local(tensor).nbytes for tensor in tensors if tensor.ndim)

    def save_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, named "<FQN>.<state name>", and all that is JSON: numbers in the state, and the groups.

        Across ranks the tensors are DTensors, the same everywhere, or on their owner alone, see sharding.py.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for param, state in self._states():
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
                    empty = member.empty_state(param, group, by_param[fqn]) if fqn in by_param else {}
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
            found = {param: states[self.names[param]] for param in params if self.names[param] in states}
            commits.append(member.prepare_load(own, found))
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

    def _states(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        for member in self.members:
            for group in member.param_groups:
                for param in group["params"]:
                    if param in member.state:
                        yield param, member.state[param]


def curvature_of(optimizer: torch.optim.Optimizer) -> Curvature | None:
    """The estimator that feeds an optimizer, if it has one."""
    found = getattr(optimizer, "curvature", None)
    return found if isinstance(found, Curvature) else None


def _member(optimizer: torch.optim.Optimizer) -> Member:
    return optimizer if isinstance(optimizer, RuleOptimizer) else ForeignMember(optimizer)


def _as_json(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a group is JSON, numbers as Python's; waits for those that are tensors on a device."""
    found = {key: groups.plain(value) for key, value in group.items() if key != "params"}
    return {key: value for key, value in found.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
