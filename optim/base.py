"""The engine under every optimizer of this package: a paper's file writes the rule, the engine does the rest.

A rule is one class and one file (lion.py is the shortest). It has a constructor that names its hyperparameters and
passes them to super().__init__ as defaults, and
    state_spec(shape, hp)                  what is remembered of a parameter of this shape: name -> Spec
    direction(grad, param, state, hp)      the update direction u, its lines numbered as in the paper's box; changes
                                           state in place. Arithmetic without branches on numbers, so that it compiles
where needed also
    coefficients(hp)                       the numbers in the box that depend on t or lr, which direction does not see;
                                           direction reads them as attributes of hp
    refresh(grad, param, state, hp)        before every direction: what is rare or factorises (QR, eigh, SVD), or
                                           branches on t; never compiled. Not for elementwise rules
    moves(hp)                              whether this step moves the parameters at all; raises if an input is missing
    check(hp)                              the ranges of its own hyperparameters
    gate(state)                            a count in the state; the parameter does not move while it is 0
and declares
    elementwise = True                     if every number is updated from its own past alone, and all state has the
                                           parameter's shape. The rule then sees flat pieces of many parameters,
                                           otherwise every parameter whole
    splits_rows = True                     if, of a parameter cut along its rows across ranks, direction may see some
                                           rows alone: its sums over rows go through factored.py
    decays_after_update = True             if the box decays last. It matters in O(lr^2 weight_decay).
    apart = (name, ...)                    state that direction does not see: counts of a whole parameter, for the gate
hp is the parameter group as attributes. t, the parameter's 1-based step, and lr are Python numbers, and are there for
all but direction. There, in compiled code, every float is a 0-dim tensor: settings may change in every step. So
direction asks state, not hp, whether there is a momentum, and gives hp's floats to operations that take tensors.

The engine turns u into param <- (1 - lr weight_decay) param - lr u, and owns
* the state's life: made from its spec before the first step, plus "step", a 0-dim fp32 tensor in host memory;
* the working dtype: fp32 for narrower parameters, which get a working copy; float64 stays float64 throughout;
* the execution (execution.py): eager, or compiled from the same lines, unless there is no compiler;
* parameter groups (groups.py): what they may hold, and which saved ones are the same;
* load_state_dict: verbatim, where torch's own casts state to the parameter's dtype; all of it, or nothing;
* ranks (sharding.py): under FSDP2 by itself, under DDP where distribute(group) was called;
* skipping parameters without gradient or without numbers, closures, and messages about bad values.

Memory of a step beyond state: eager, a few pieces of execution.CACHED numbers for elementwise rules, otherwise what
direction makes for one parameter; compiled, less. Short tensors are copied into packs of about execution.PACK numbers,
for rules that split rows stacks of those of a shape, over which torch.vmap runs direction.
A measured step (diagnostics) copies the pieces of one call, at most execution.TOGETHER matrices.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from inspect import signature
from typing import Any, ClassVar, NamedTuple, Self, overload

import torch
import torch.distributed as dist
from torch import Tensor

from . import groups
from .execution import (
    COMPILED_FROM,
    EXECUTIONS,
    Compiled,
    Hyper,
    Piece,
    State,
    as_tensors,
    flat_pieces,
    owned_tensors,
    restore,
    stacked_tensors,
    uncompiled,
    update_pieces,
    whole_tensors,
    working_dtype,
)
from .groups import Group
from .member import step_where
from .sharding import Owners, group_of, groups_of, is_cut, total, zeros

__all__ = ["Hyper", "Params", "RuleOptimizer", "Shape", "Spec", "State", "within", "working_dtype"]

Shape = tuple[int, ...]
Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Spec(NamedTuple):
    """A tensor of state, zero at first, or ones on the diagonal."""

    shape: Shape
    dtype: torch.dtype | None = None  # None: the working dtype
    by_row: bool | None = None  # whether dimension 0 is the parameter's rows; None: yes if it has the parameter's shape
    is_identity: bool = False


class RuleOptimizer(torch.optim.Optimizer, ABC):
    """A torch.optim.Optimizer made of a rule; see the module.

    execution: "eager"; "compiled", worth its seconds of compilation for large models; "auto", compiled from
    execution.COMPILED_FROM parameters up. lr and the other numbers of a group may be NumPy's, or 0-dim tensors, which
    are read in every step.

    Raises: ValueError: if a hyperparameter lies outside its range, a group has a key that is no hyperparameter, or a
    parameter is not real. From step(): if a gradient is sparse.
    """

    elementwise: ClassVar[bool] = False
    splits_rows: ClassVar[bool] = False
    decays_after_update: ClassVar[bool] = False
    apart: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str = "auto") -> None:
        # What a group may have of its own; other defaults are counts.
        self.settings = [name for name in defaults if name in signature(type(self)).parameters]
        self._owners: Owners | None = None
        super().__init__(params, defaults)
        if execution not in EXECUTIONS:
            raise ValueError(f"{type(self).__name__}: execution={execution!r} must be one of {', '.join(EXECUTIONS)}")
        self.execution = execution
        self.measures = False  # whether steps take down what diagnostics() then says about updates
        self.found_inf: Tensor | None = None  # as torch's fused optimizers: a step does nothing where it is not 0
        self._changes: dict[str, list[Tensor]] = {}  # by role: sums of squares of update and parameter, (2,) each
        self._followed: dict[int, dict[str, Any]] = {}  # settings by group, as of the last step
        self._compiled: Compiled | None = None
        self._group: dist.ProcessGroup | None = None  # of ranks with the same plain parameters and gradients

    def __getstate__(self) -> dict[str, Any]:
        """All that belongs to a copy: what torch's has, and what a rule keeps on itself.

        Not what others put on this very object, as torch's schedulers do with a step() that steps it for ever: their
        methods and, as torch does, hooks. Compiled code is made anew, ranks are of this process.
        """
        own = {
            name: value
            for name, value in vars(self).items()
            if not (
                callable(getattr(type(self), name, None)) or name.startswith("_optimizer_") or name == "_opt_called"
            )
        }
        return {**own, "_compiled": None, "_group": None, "_owners": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy on the same ranks, which have the rest of its state."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        state = deepcopy(self.__getstate__(), memo) | {"_owners": deepcopy(self._owners, memo), "_group": self._group}
        other.__setstate__(state)
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it in, and would put it in later groups

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Shares the work among the ranks of a group that have the same plain parameters and gradients, as under DDP.

        Only for rules that are neither elementwise nor split rows: each parameter's owner alone keeps its state and
        computes. To be called before there is any state. FSDP2's parameters know their ranks themselves.
        """
        self._group = group

    @abstractmethod
    def state_spec(self, shape: Shape, hp: Hyper) -> Mapping[str, Spec]:
        """The state tensors of a parameter of this shape, by name."""

    @abstractmethod
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        """The update direction, in the working dtype and the parameter's shape; updates state in place.

        Must not change grad or param.
        """

    def coefficients(self, hp: Hyper) -> dict[str, float]:
        """Numbers of the box that depend on hp.t or hp.lr, for direction to read from its hp."""
        return {}

    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        """Updates state in place before direction, or instead of it on a step that does not move; all fp32 or wider."""

    def moves(self, hp: Hyper) -> bool:
        """Whether step hp.t changes the parameters; a first step may only fill the state."""
        return True

    def gate(self, state: State) -> Tensor | None:
        """A count in the state, 0-dim on the device: while it is 0, the parameter is updated as with lr 0.

        No host has to know. Parameters that share the tensor are updated together.
        """
        return None

    def check(self, hp: Hyper) -> None:
        """Raises ValueError, with the value and its range, for hyperparameters that make no sense."""
        within(self, "lr", hp.lr, 0, math.inf)
        within(self, "weight_decay", hp.weight_decay, 0, math.inf)
        if "betas" in vars(hp):
            usual = signature(type(self)).parameters["betas"].default
            if len(hp.betas) != len(usual):
                raise ValueError(f"{type(self).__name__}: betas={hp.betas} must be {len(usual)} numbers, as {usual}")
            for i, beta in enumerate(hp.betas):
                within(self, f"betas[{i}]", beta, 0, 1)

    @classmethod
    def check_parameter(cls, name: str, param: Tensor) -> None:
        """Raises ValueError for a parameter that is not real; its imaginary part would be lost without a message."""
        if not param.is_floating_point():
            raise ValueError(
                f"{cls.__name__}: {name} is {param.dtype}; optimizers here take real floating-point parameters: "
                "optimize torch.view_as_real of a complex one"
            )

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

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; returns what closure, run first, returns.

        Raises: ValueError: if a gradient is sparse; then nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._changes = {}
        is_compiled = self._is_compiled()
        for hp, params in self._due():
            self._advance(params, hp, is_compiled)
        return loss

    def step_if_finite(self, is_finite: Tensor | None, *, measured: bool) -> None:
        """A step where is_finite, 0-dim, is true (or None); where not, only counts it.

        On a CPU the tensor is read, on other devices it stays there. measured: see diagnostics().
        """
        self.measures = measured
        if is_finite is not None and is_finite.device.type != "cpu":
            step_where(is_finite, self)
        elif is_finite is None or is_finite:
            self.step()
        else:
            self.skip()

    def skip(self) -> None:
        """Counts a step for every parameter that has a gradient, and changes nothing else."""
        for hp, params in self._due():
            self._count(params, hp.t)

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    def diagnostics(self) -> dict[str, Tensor]:
        """What users tune by, as 0-dim tensors on the device.

        update_ratio/<role>: RMS of the last step's update, decay included, over that of the parameters before it; there
        only if `measures` was true, and 0 if the step did not move. Rules add their own. All ranks must ask, and get
        the same.
        """
        nothing = torch.zeros(2, device=self.device)
        sums = {
            role: self.total(torch.stack(found).sum(0) if found else nothing.clone())
            for role, found in self._changes.items()
        }
        return {f"update_ratio/{role}": (s[0] / s[1].clamp(min=1e-30)).sqrt() for role, s in sums.items()}

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about diagnostics out of their usual range."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """As torch's, without numbers of NumPy's, which torch.load(weights_only=True) would refuse."""
        found: dict[str, Any] = super().state_dict()
        for group in found["param_groups"]:
            group |= {key: groups.without_numpy(value) for key, value in group.items() if key not in groups.NO_SETTINGS}
        return found

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
        owners, cut = self._sharing(), self._first_cut()
        ranks = None if cut is None else group_of(cut)
        return total(tensor, ranks if owners is None else owners.group)

    def total_of_all(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks that train these parameters, those with copies of the same state included."""
        cut = self._first_cut()
        for ranks in [self._group] if cut is None else groups_of(cut):
            tensor = total(tensor, ranks)
        return tensor

    def _due(self) -> list[tuple[Hyper, list[Tensor]]]:
        """The parameters that have a gradient, with what tells how they are updated: those of one group and one step.

        Beside the group's numbers that is t, the 1-based step that comes next, and the gate.
        """
        found: dict[tuple[int, int, int], tuple[Hyper, list[Tensor]]] = {}
        for number, group in enumerate(self.param_groups):
            self._follow_settings(number, group)
            for index, param in enumerate(group["params"]):
                if (grad := param.grad) is None:
                    continue
                if grad.layout is not torch.strided:
                    raise ValueError(groups.not_dense(type(self).__name__, group, number, index))
                state = self.state.get(param) or self._state_of(param, group)
                t, gate = int(state["step"]) + 1, self.gate(state)
                kind = (number, t, id(gate))
                if kind not in found:
                    found[kind] = self._hyper(group, t=t, gate=gate), []
                found[kind][1].append(param)
        return list(found.values())

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

    def _count(self, params: Sequence[Tensor], t: int) -> None:
        steps = [self.state[param]["step"] for param in params]
        torch._foreach_copy_(steps, [torch.tensor(float(t))] * len(steps))

    def _advance(self, params: Sequence[Tensor], hp: Hyper, is_compiled: bool) -> None:
        moves = self.moves(hp)
        self._count(params, hp.t)
        params = [param for param in params if param.numel()]
        if not params:
            return
        # Collectives in compiled code are another story; whoever cuts parameters has small pieces anyway.
        is_compiled = is_compiled and not (self.splits_rows and is_cut(params[0]))
        update = self._update(hp, is_compiled)
        if self.measures:
            update = self._measured(update, getattr(hp, groups.ROLE, "all"))
        for pieces in self._pieces(params, is_compiled):
            if self._refreshes_state:
                self._refresh(pieces, hp)
            if moves:
                update(pieces)

    def _pieces(self, params: Sequence[Tensor], is_compiled: bool) -> Iterator[list[Piece]]:
        if self.elementwise:
            return flat_pieces(params, self.state, self.apart, compiled=is_compiled)
        if (owners := self._sharing()) is not None:
            return owned_tensors(params, self.state, owners, self.apart)
        if self.splits_rows and not (is_compiled or is_cut(params[0]) or self._refreshes_state):
            return stacked_tensors(params, self.state, self.apart)
        return whole_tensors(params, self.state, self.apart)

    @property
    def _refreshes_state(self) -> bool:
        return type(self).refresh is not RuleOptimizer.refresh

    def _sharing(self) -> Owners | None:
        """Who computes what, where ranks share parameters that the rule needs whole."""
        if self._owners is None and not (self.elementwise or self.splits_rows):
            cut = self._first_cut()
            ranks = self._group if cut is None else group_of(cut)
            if ranks is not None:
                costs = {p: self._cost(p, group) for group in self.param_groups for p in group["params"]}
                self._owners = Owners(costs, ranks)
        return self._owners

    def _first_cut(self) -> Tensor | None:
        """A parameter of which ranks hold different rows, if there are any."""
        return next((param for group in self.param_groups for param in group["params"] if is_cut(param)), None)

    def _cost(self, param: Tensor, group: Group) -> float:
        """Arithmetic of a step, relative: square state multiplies the parameter and is factorised."""
        shape = tuple(param.shape)
        found = [spec.shape for spec in self.state_spec(shape, self._hyper(group)).values()]
        squares = [s[0] for s in found if len(s) == 2 and s[0] == s[1] and s != shape]
        return float(param.numel() + sum(n**3 + n * param.numel() for n in squares))

    def _refresh(self, pieces: Sequence[Piece], hp: Hyper) -> None:
        for param, grad, state, _ in pieces:
            dtype = working_dtype(param)
            before = {} if self.found_inf is None else {name: tensor.clone() for name, tensor in state.items()}
            self.refresh(grad.to(dtype), param.to(dtype), state, hp)
            restore(before, state, self.found_inf)

    def _update(self, hp: Hyper, is_compiled: bool) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces, for this step's numbers."""
        lr = hp.lr
        if hp.gate is not None:
            is_open = (hp.gate > 0).double()  # 0-dim
            lr = lr * (float(is_open) if is_open.device.type == "cpu" else is_open)
        numbers = self.coefficients(hp) | {"lr": lr, "shrink": 1 - lr * hp.weight_decay}
        hidden = ("lr", "t", "gate", *groups.MOVING)
        settings = {name: value for name, value in vars(hp).items() if name not in hidden} | numbers
        function: Callable[..., None] = update_pieces
        if is_compiled:
            self._compiled = self._compiled or Compiled(update_pieces)
            function, settings = self._compiled, as_tensors(settings)
        lr, shrink, found_inf = settings.pop("lr"), settings.pop("shrink"), self.found_inf
        visible = Hyper(settings)
        return lambda pieces: function(self, pieces, visible, lr, shrink, found_inf)

    def _measured(self, update: Callable[[Sequence[Piece]], None], role: str) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces that also notes how far it went, at the cost of a copy of them."""
        found = self._changes.setdefault(role, [])

        def measured(pieces: Sequence[Piece]) -> None:
            before = [piece.param.to(working_dtype(piece.param), copy=True) for piece in pieces]
            sizes = [torch.linalg.vector_norm(tensor) for tensor in before]
            update(pieces)
            for piece, tensor, size in zip(pieces, before, sizes, strict=True):
                found.append(torch.stack([torch.linalg.vector_norm(tensor.sub_(piece.param)), size]).square())

        return measured

    def _is_compiled(self) -> bool:
        if self._compiled is not None and not self._compiled.works:
            return False
        if self.execution == "auto":
            numbers: int = sum(param.numel() for group in self.param_groups for param in group["params"])
            return numbers >= COMPILED_FROM
        return self.execution == "compiled"

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


def within(owner: object, name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises ValueError unless low <= value < high (low < value with open_low); high = inf means no limit."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and (low < value if open_low else low <= value) and value < high):
        wanted = f"> {low}" if open_low else f">= {low}"
        wanted = wanted if math.isinf(high) else f"in {'(' if open_low else '['}{low}, {high})"
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")
