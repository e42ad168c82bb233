"""What becomes of a rule's groups and state beyond this process: copied, saved, and loaded verbatim or not at all."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from . import groups, saved_groups
from .execution import uncompiled
from .groups import Group
from .hyper import Shape, State
from .state import StatefulRule


class SavedRule(StatefulRule):
    """A StatefulRule that torch.save, pickle, deepcopy and checkpoints take.

    torch's own load_state_dict casts state to the parameter's dtype; this one takes over every bit.
    """

    def __getstate__(self) -> dict[str, Any]:
        """All that belongs to a copy: what torch's has, and what a rule keeps on itself.

        Not what others put on this very object, as torch's schedulers do with a step() that steps it for ever: their
        methods and, as torch does, hooks. Ranks are of this process.
        """
        others = {name for name in vars(self) if callable(getattr(type(self), name, None))} | {"_opt_called"}
        own = {n: v for n, v in vars(self).items() if n not in others and not n.startswith("_optimizer_")}
        return {**own, "_group": None, "_owners": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy on the same ranks, which have the rest of its state."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        state = deepcopy(self.__getstate__(), memo) | {"_owners": deepcopy(self._owners, memo), "_group": self._group}
        other.__setstate__(state)
        return other

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it in, and would put it in later groups

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state_dict, but without NumPy's numbers, which torch.load(weights_only=True) refuses."""
        found: dict[str, Any] = super().state_dict()
        for group in found["param_groups"]:
            group |= {key: groups.without_numpy(value) for key, value in group.items() if key not in groups.NO_SETTINGS}
        return found

    @override
    @uncompiled
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes state and hyperparameters over bit for bit; tensors go to their parameter's device, steps stay.

        Raises: ValueError: if groups or state do not belong to these parameters; then nothing has changed.
        """
        owner = type(self).__name__
        saved_groups.check_form(owner, state_dict)
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
            saved_groups.check_form(owner, state_dict)
        saved, states = state_dict["param_groups"], state_dict["state"]
        saved_groups.check_same(owner, self.param_groups, saved, self.settings)
        saved_ids = [i for group in saved for i in group["params"]]
        if odd := [i for i in states if i not in saved_ids]:
            raise ValueError(f"{owner}: the saved optimizer state has state {odd[0]!r}, which belongs to no group")
        params = [param for group in self.param_groups for param in group["params"]]
        named = {param: states[i] for i, param in zip(saved_ids, params, strict=True) if i in states}
        self.take_over(*self.fitting(saved, named))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def prepare_load(self, saved: Sequence[Group], states: Mapping[Tensor, Mapping[str, Tensor]]) -> Callable[[], None]:
        """What makes this optimizer take over saved groups, known to be these, and states by parameter.

        Raises: ValueError: as fitting; nothing has changed before the result is called.
        """
        return partial(self.take_over, *self.fitting(saved, states))

    def fitting(
        self, saved: Sequence[Group], states: Mapping[Tensor, Mapping[str, Tensor]]
    ) -> tuple[list[dict[str, Any]], dict[Tensor, State]]:
        """Saved groups, known to be these, and states by parameter, as take_over wants them; changes nothing.

        Raises: ValueError: if a group has other keys or values than such a group may have, or the names, shapes or
        dtypes of a state are not those of the spec.
        """
        for ours, theirs in zip(self.param_groups, saved, strict=True):
            saved_groups.check_kinds(type(self).__name__, ours, theirs)
        fresh = [saved_groups.adopted(ours, theirs) for ours, theirs in zip(self.param_groups, saved, strict=True)]
        for ours, group in zip(self.param_groups, fresh, strict=True):
            groups.check_keys(type(self).__name__, group, self.settings, also=ours, is_saved=True)
            self.check(self._hyper(group))
        pairs = [(param, group) for group in fresh for param in group["params"] if param in states]
        return fresh, {param: self._fitting_state(param, group, states[param]) for param, group in pairs}

    def take_over(self, fresh: Sequence[Group], states: Mapping[Tensor, State]) -> None:
        """Replaces all settings and all state by those that fitting made."""
        for group, settings in zip(self.param_groups, fresh, strict=True):
            group.update(settings)
        self.state = defaultdict(dict, states)
        self._followed = {}

    def _fitting_state(self, param: Tensor, group: Group, state: Mapping[str, Tensor]) -> State:
        keeps = self._keeps_state_of(param)
        own = {name: tensor for name, tensor in state.items() if keeps or name == "step"}
        self._check_fit(param, group, {name: _kind(tensor) for name, tensor in own.items()}, keeps)
        place = {name: torch.device("cpu") if name == "step" else param.device for name in own}
        return {
            name: tensor.clone(memory_format=torch.contiguous_format).to(place[name]) for name, tensor in own.items()
        }

    def empty_state(self, param: Tensor, group: Group, saved: Mapping[str, tuple[Shape, torch.dtype]]) -> State:
        """Tensors for a checkpoint to be read into: what this rank keeps for a parameter.

        saved: shape and dtype of what the checkpoint has for it, by name. Raises: ValueError: if that does not fit.
        """
        self._check_fit(param, group, saved, keeps=True)
        return self._new_state(param, group)

    def _check_fit(self, param: Tensor, group: Group, found: Mapping[str, object], keeps: bool) -> None:
        specs = self._spec(param, group) if keeps else {}
        expected = {name: (spec.shape, spec.dtype) for name, spec in specs.items()} | {"step": ((), torch.float32)}
        if found != expected:
            names = sorted(found.keys() | expected.keys())
            odd = [name for name in names if found.get(name, "absent") != expected.get(name, "absent")]
            where = f"{type(self).__name__}: state {odd[0]!r} of a parameter of shape {tuple(param.shape)}"
            wanted, came = expected.get(odd[0], "absent"), found.get(odd[0], "absent")
            raise ValueError(
                f"{where} should be {wanted}, is {came}: make the optimizer with the settings of the saved one, "
                "state= among them, and for the same parameters"
            )


def _kind(tensor: object) -> object:
    """What the spec determines of a tensor of state."""
    if not isinstance(tensor, Tensor):
        return tensor
    is_dense = tensor.layout is torch.strided and not tensor.is_meta
    return (tuple(tensor.shape), tensor.dtype) if is_dense else f"{tensor.layout} on {tensor.device}"
