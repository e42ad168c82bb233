"""A rule's state: which tensors each parameter has."""

from typing import Any

import torch
from torch import Tensor

from . import groups
from .formats import FORMATS, MAXIMA, Place, coded, decoded, encode, kept
from .grouped import Params
from .groups import Group
from .hyper import Spec, State, working_dtype
from .ranges import one_of
from .sharding import Rows, local, rows_of, zeros
from .shared import SharedRule


class StatefulRule(SharedRule):
    """A SharedRule that knows the state of its parameters. state_format: one of FORMATS."""

    def __init__(self, params: Params, defaults: dict[str, Any], state_format: str) -> None:
        one_of(self, "state", state_format, FORMATS)
        self.state_format = state_format
        self._followed: dict[int, dict[str, Any]] = {}  # settings by group, as of the last step
        super().__init__(params, defaults)

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    def _follow_settings(self, number: int, group: Group) -> None:
        """Makes the state that settings changed since the last step call for (a momentum, say), and drops the rest.

        Raises: ValueError: if a setting lies outside its range, or state that there is would have another shape.
        """
        settings = {key: group[key] for key in self.settings if key != "lr"}
        if settings == self._followed.get(number):
            return
        self.check(self._hyper(group))
        found: dict[Tensor, State] = {}
        for index, param in enumerate(group["params"]):
            if state := self.state.get(param):
                specs = self._spec(param, group) if self._keeps_state_of(param) else {}
                where = groups.name_of(group, number, index)
                for name, spec in specs.items():
                    if name in state and (shape := tuple(state[name].shape)) != spec.shape:
                        raise ValueError(
                            f"{type(self).__name__}: state {name!r} of {where} has shape {shape}, but the settings now "
                            f"want {spec.shape}; a rank stays as in the first step: make a new optimizer for another"
                        )
                names = {"step", *specs}
                if state.keys() != names:
                    found[param] = {n: t for n, t in (self._new_state(param, group) | state).items() if n in names}
        self.state.update(found)
        self._followed[number] = settings

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
        encode(numbers, held, local(state[name + MAXIMA]), self.place(rows_of(param), int(state["step"])))

    def place(self, rows: Rows | None, step: int) -> Place | None:
        """Of rows of a parameter in a step, for stochastic rounding; None where numbers go to the nearest."""
        first = 0 if rows is None else rows.first
        return Place(first, step) if self.state_format == "int8_stochastic" else None

    def _spec(self, param: Tensor, group: Group) -> dict[str, Spec]:
        """The state of a parameter, dtypes filled in."""
        shape = tuple(param.shape)
        specs = kept(self.state_spec(shape, self._hyper(group)), shape, self.state_format)
        return {name: spec._replace(dtype=spec.dtype or working_dtype(param)) for name, spec in specs.items()}
