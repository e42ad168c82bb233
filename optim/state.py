"""Parameter groups and state of a rule: made from the spec, copied, saved, loaded verbatim, shared among ranks."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from inspect import signature
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from . import groups
from .execution import uncompiled
from .groups import Group
from .rule import Hyper, Rule, Shape, Spec, State, working_dtype
from .sharding import Owners, group_of, groups_of, is_sharded, total, zeros

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class StatefulRule(torch.optim.Optimizer, Rule):
    """A torch.optim.Optimizer in all but step(). defaults: of a group's settings, and of counts that rules keep there.

    Raises: ValueError: if a hyperparameter lies outside its range, a group has a key that is no hyperparameter, or a
    parameter is not real.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        # What a group may have of its own; other defaults are counts.
        self.settings = [name for name in defaults if name in signature(type(self)).parameters]
        self._owners: Owners | None = None
        self._followed: dict[int, dict[str, Any]] = {}  # settings by group, as of the last step
        self._group: dist.ProcessGroup | None = None  # of ranks with the same plain parameters and gradients
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """All that belongs to a copy: what torch's has, and what a rule keeps on itself.

        Not what others put on this very object, as torch's schedulers do with a step() that steps it for ever: their
        methods and, as torch does, hooks. Ranks are of this process.
        """
        own = {
            name: value
            for name, value in vars(self).items()
            if not (
                callable(getattr(type(self), name, None)) or name.startswith("_optimizer_") or name == "_opt_called"
            )
        }
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

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Shares the work among the ranks of a group that have the same plain parameters and gradients, as under DDP.

        Only for rules that are neither elementwise nor split rows: each parameter's owner alone keeps its state and
        computes. To be called before there is any state. FSDP2's parameters know their ranks themselves.
        """
        self._group = group

    @classmethod
    def check_parameter(cls, name: str, param: Tensor) -> None:
        """Raises ValueError for a parameter that is not real; its imaginary part would be lost without a message."""
        if not param.is_floating_point():
            raise ValueError(
                f"{cls.__name__}: {name} is {param.dtype}; optimizers here take real floating-point parameters: "
                "optimize torch.view_as_real of a complex one"
            )

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; a group that is refused is not added.

        Raises: ValueError: as the constructor.
        """
        super().add_param_group(param_group)
        group, number = self.param_groups[-1], len(self.param_groups) - 1
        group |= {key: groups.without_numpy(value) for key, value in group.items() if key not in groups.NO_SETTINGS}
        try:
            groups.check_keys(type(self).__name__, group, self.settings, also=self.defaults)
            for index, param in enumerate(group["params"]):
                self.check_parameter(groups.name_of(group, number, index), param)
            self.check(self._hyper(group))
        except ValueError:
            self.param_groups.pop()
            raise
        if self._owners is not None:
            self._owners.add({param: self._cost(param, group) for param in group["params"]})

    def refresh_intervals(self) -> list[int]:
        """Steps between expensive refreshes, of every group that has them."""
        found = [self.refresh_interval(self._hyper(group)) for group in self.param_groups]
        return [interval for interval in found if interval is not None]

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    @override
    def state_dict(self) -> dict[str, Any]:
        """As torch's, without numbers of NumPy's, which torch.load(weights_only=True) would refuse."""
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
        state_dict = dict(state_dict)  # hooks may change it
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        owner = type(self).__name__
        groups.check_form(owner, state_dict)
        saved, states = state_dict["param_groups"], state_dict["state"]
        groups.check_same(owner, self.param_groups, saved, self.settings)
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
        fresh = [groups.adopted(ours, theirs) for ours, theirs in zip(self.param_groups, saved, strict=True)]
        for ours, group in zip(self.param_groups, fresh, strict=True):
            groups.check_keys(type(self).__name__, group, self.settings, also=ours)
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

    def _check_fit(
        self,
        param: Tensor,
        group: Group,
        found: Mapping[str, object],
        keeps: bool,
    ) -> None:
        specs = self._spec(param, group) if keeps else {}
        expected = {name: (spec.shape, spec.dtype) for name, spec in specs.items()} | {"step": ((), torch.float32)}
        if found != expected:
            names = sorted(found.keys() | expected.keys())
            odd = [name for name in names if found.get(name, "absent") != expected.get(name, "absent")]
            raise ValueError(
                f"{type(self).__name__}: state {odd[0]!r} of a parameter of shape {tuple(param.shape)} should be "
                f"{expected.get(odd[0], 'absent')}, is {found.get(odd[0], 'absent')}"
            )

    @property
    def device(self) -> torch.device:
        """Of the first parameter; the CPU, if there is none."""
        return next((param.device for group in self.param_groups for param in group["params"]), torch.device("cpu"))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that keep parts of the state; where this rank keeps all, the tensor itself."""
        owners, sharded = self._sharing(), self._first_sharded()
        ranks = None if sharded is None else group_of(sharded)
        return total(tensor, ranks if owners is None else owners.group)

    def total_of_all(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks that train these parameters, those with copies of the same state included."""
        sharded = self._first_sharded()
        for ranks in [self._group] if sharded is None else groups_of(sharded):
            tensor = total(tensor, ranks)
        return tensor

    def _follow_settings(self, number: int, group: Group) -> None:
        """Makes the state that settings changed since the last step call for (a momentum, say), and drops the rest."""
        settings = {key: group[key] for key in self.settings if key != "lr"}
        if settings == self._followed.get(number):
            return
        self._followed[number] = settings
        hp = self._hyper(group)
        for param in group["params"]:
            if state := self.state.get(param):
                spec = self.state_spec(tuple(param.shape), hp) if self._keeps_state_of(param) else {}
                names = {"step", *spec}
                if state.keys() != names:
                    self.state[param] = {n: t for n, t in (self._new_state(param, group) | state).items() if n in names}

    def _sharing(self) -> Owners | None:
        """Who computes what, where ranks share parameters that the rule needs in full."""
        if self._owners is None and not (self.elementwise or self.splits_rows):
            sharded = self._first_sharded()
            ranks = self._group if sharded is None else group_of(sharded)
            if ranks is not None:
                costs = {p: self._cost(p, group) for group in self.param_groups for p in group["params"]}
                self._owners = Owners(costs, ranks)
        return self._owners

    def _first_sharded(self) -> Tensor | None:
        """A parameter of which ranks hold different rows, if there are any."""
        return next((param for group in self.param_groups for param in group["params"] if is_sharded(param)), None)

    def _cost(self, param: Tensor, group: Group) -> float:
        return self.cost(tuple(param.shape), self._hyper(group))

    def _hyper(self, group: Group, **more: Any) -> Hyper:
        """A group as attributes, its settings as numbers of Python's."""
        plain = {name: groups.plain(group[name]) for name in self.settings}
        return Hyper({name: value for name, value in group.items() if name not in groups.NO_SETTINGS} | plain | more)

    def _state_of(self, param: Tensor, group: Group) -> State:
        if not self.state[param]:
            self.state[param] = self._new_state(param, group)
        state: State = self.state[param]
        return state

    def _new_state(self, param: Tensor, group: Group) -> State:
        state = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
        if not self._keeps_state_of(param):
            return state
        is_owned = self._sharing() is not None
        for name, spec in self._spec(param, group).items():
            assert spec.dtype is not None
            by_row = not is_owned and (spec.shape == tuple(param.shape) if spec.by_row is None else spec.by_row)
            state[name] = zeros(param, spec.shape, spec.dtype, by_row=by_row)
            if spec.is_identity:
                state[name].fill_diagonal_(1)
        return state

    def _keeps_state_of(self, param: Tensor) -> bool:
        owners = self._sharing()
        return owners is None or owners.owns(param)

    def _spec(self, param: Tensor, group: Group) -> dict[str, Spec]:
        """The state of a parameter, dtypes filled in."""
        specs = self.state_spec(tuple(param.shape), self._hyper(group))
        return {name: spec._replace(dtype=spec.dtype or working_dtype(param)) for name, spec in specs.items()}


def _kind(tensor: object) -> object:
    """What the spec determines of a tensor of state."""
    return (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, Tensor) else tensor
