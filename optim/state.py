"""A rule's parameter groups and state: which tensors each parameter has, and which rank keeps them."""

from collections import Counter
from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from . import groups
from .formats import FORMATS, MAXIMA, Place, coded, decoded, encode, kept
from .groups import Group
from .rule import Hyper, Rule, Spec, State, working_dtype
from .sharding import Owners, Rows, group_of, groups_of, is_sharded, local, rows_of, total, zeros

COST_STEPS = 1000  # whose mean work decides which rank computes a parameter
Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class StatefulRule(torch.optim.Optimizer, Rule):
    """A torch.optim.Optimizer that knows the state of a rule's parameters.

    defaults: of a group's settings, and of counts that rules keep there. Raises: ValueError: if a hyperparameter lies
    outside its range, a group has a key that is no hyperparameter, or a parameter is not real.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], state_format: str) -> None:
        if state_format not in FORMATS:
            raise ValueError(f"{type(self).__name__}: state={state_format!r} must be one of {', '.join(FORMATS)}")
        self.state_format = state_format
        # What a group may have of its own; other defaults are counts.
        self.settings = [name for name in defaults if name in signature(type(self)).parameters]
        self._owners: Owners | None = None
        self._followed: dict[int, dict[str, Any]] = {}  # settings by group, as of the last step
        self._group: dist.ProcessGroup | None = None  # of ranks with the same plain parameters and gradients
        super().__init__(params, defaults)

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
        """Adds a group as torch does; a group that is refused is not added.

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

    def flops_of_all(self, steps: int) -> float:
        """FLOPs of the first `steps` steps of all parameters, see Rule.flops."""
        if type(self).flops is Rule.flops:
            return 0.0  # asked for in every step, of optimizers whose steps may be short
        found = 0.0
        for group in self.param_groups:
            hp, shapes = self._hyper(group), Counter(tuple(param.shape) for param in group["params"])
            found += sum(n * self.flops(shape, hp, steps) for shape, n in shapes.items())
        return found

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU if there is none."""
        return next((param.device for group in self.param_groups for param in group["params"]), torch.device("cpu"))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that keep parts of the state; where this rank keeps all, the tensor itself."""
        owners, sharded = self.owners(), self._first_sharded()
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
        for param in group["params"]:
            if state := self.state.get(param):
                names = {"step", *(self._spec(param, group) if self._keeps_state_of(param) else {})}
                if state.keys() != names:
                    self.state[param] = {n: t for n, t in (self._new_state(param, group) | state).items() if n in names}

    def owners(self) -> Owners | None:
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
        """The work of a step, in operations, to the precision that sharing it needs."""
        return param.numel() + self.flops(tuple(param.shape), self._hyper(group), COST_STEPS) / COST_STEPS

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
        is_owned = self.owners() is not None
        for name, spec in self._spec(param, group).items():
            assert spec.dtype is not None
            by_row = not is_owned and (spec.shape == tuple(param.shape) if spec.by_row is None else spec.by_row)
            state[name] = zeros(param, spec.shape, spec.dtype, by_row=by_row)
            if spec.is_identity:
                state[name].fill_diagonal_(1)
        return state

    def numbers(self, param: Tensor, name: str) -> Tensor:
        """A tensor of a parameter's state in the working dtype, or of one that is sharded this rank's part.

        It may be the state itself, or a copy: see set_numbers.
        """
        state: State = self.state[param]
        held = local(state[name])
        if name in coded(state):
            held = decoded(held, local(state[name + MAXIMA]))
        return held.to(working_dtype(param))

    def set_numbers(self, param: Tensor, name: str, numbers: Tensor) -> None:
        """Keeps numbers, of the shape that numbers() gave, as that tensor of the state."""
        state: State = self.state[param]
        held = local(state[name])
        if name not in coded(state):
            held.copy_(numbers)
            return
        maxima = local(state[name + MAXIMA])
        encode(numbers, held, maxima, self.place(rows_of(param), int(state["step"]), maxima))

    def place(self, rows: Rows | None, step: int, maxima: Tensor) -> Place | None:
        """Of rows of a parameter in a step, for stochastic rounding; None where numbers go to the nearest."""
        first = 0 if rows is None else rows.first * maxima.shape[-1]
        return Place(first, step) if self.state_format == "int8_stochastic" else None

    def _keeps_state_of(self, param: Tensor) -> bool:
        owners = self.owners()
        return owners is None or owners.owns(param)

    def _spec(self, param: Tensor, group: Group) -> dict[str, Spec]:
        """The state of a parameter, dtypes filled in."""
        shape = tuple(param.shape)
        specs = kept(self.state_spec(shape, self._hyper(group)), shape, self.state_format)
        return {name: spec._replace(dtype=spec.dtype or working_dtype(param)) for name, spec in specs.items()}
