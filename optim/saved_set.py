"""What checkpoints see of a model's optimizers: their state by name, and their groups."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import groups, saved_groups
from .base import RuleOptimizer
from .foreign import ForeignMember
from .member import Member
from .sharding import local


class SavedSet:
    """Several optimizers, each of its own parameters; ensemble.py has what training sees of them.

    optimizers: ours or any torch.optim.Optimizer. names: the FQN of every parameter. members: the same optimizers, as
    what answers the set.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]) -> None:
        self.optimizers, self.names = list(optimizers), dict(names)
        self.members = [_member(optimizer) for optimizer in optimizers]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def state_tensors(self) -> list[Tensor]:
        """All state tensors of this rank but those of one number (steps), its parts of those that are sharded."""
        tensors = (value for _, state in self._states() for value in state.values() if isinstance(value, Tensor))
        return [local(tensor) for tensor in tensors if tensor.ndim]

    def state_bytes(self) -> int:
        """Bytes of state_tensors()."""
        return sum(tensor.nbytes for tensor in self.state_tensors())

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
        saved_groups.check_same("optim", self._named_groups(), rest["groups"], settings)
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
