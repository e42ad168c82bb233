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
and declares
    elementwise = True                     if every number is updated from its own past alone, and all state has the
                                           parameter's shape. The rule then sees flat pieces of many parameters,
                                           otherwise every parameter whole
    splits_rows = True                     if, of a parameter cut along its rows across ranks, direction may see some
                                           rows alone: its sums over rows go through factored.py
    decays_after_update = True             if the box decays last. It matters in O(lr^2 weight_decay).
hp is the parameter group as attributes. t, the parameter's 1-based step, and lr are Python numbers, and are there for
all but direction.

The engine turns u into param <- (1 - lr weight_decay) param - lr u, and owns
* the state's life: made from its spec before the first step, plus "step", a 0-dim fp32 tensor in host memory;
* the working dtype: fp32 for narrower parameters, which get a working copy; float64 stays float64 throughout;
* the execution (execution.py): eager, or compiled from the same lines; a new lr compiles nothing anew;
* load_state_dict: verbatim, where torch's own casts state to the parameter's dtype;
* ranks (sharding.py): under FSDP2 by itself, under DDP where distribute(group) was called;
* skipping parameters without gradient, closures, and messages about bad values.

Memory of a step beyond state: eager, a few pieces of execution.CACHED numbers for elementwise rules, otherwise what
direction makes for one parameter; compiled, less. Short tensors are copied into packs of about execution.PACK numbers.
A measured step (diagnostics) copies the pieces of one call, at most execution.TOGETHER matrices.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor

from .execution import (
    COMPILED_FROM,
    EXECUTIONS,
    Hyper,
    Piece,
    State,
    Update,
    compiled,
    flat_pieces,
    owned_tensors,
    restore,
    update_pieces,
    whole_tensors,
    working_dtype,
)
from .sharding import Owners, group_of, is_cut, total, zeros

__all__ = ["Hyper", "Optimizer", "Params", "Shape", "Spec", "State", "within", "working_dtype"]

Shape = tuple[int, ...]
Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Spec(NamedTuple):
    """A tensor of state, zero at first, or ones on the diagonal."""

    shape: Shape
    dtype: torch.dtype | None = None  # None: the working dtype
    by_row: bool | None = None  # whether dimension 0 is the parameter's rows; None: yes if it has the parameter's shape
    is_identity: bool = False


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch.optim.Optimizer made of a rule; see the module.

    execution: "eager"; "compiled", worth its seconds of compilation for large models; "auto", compiled from
    execution.COMPILED_FROM parameters up.

    Raises: ValueError: if a hyperparameter lies outside its range.
    """

    elementwise: ClassVar[bool] = False
    splits_rows: ClassVar[bool] = False
    decays_after_update: ClassVar[bool] = False

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str = "auto") -> None:
        super().__init__(params, defaults)
        if execution not in EXECUTIONS:
            raise ValueError(f"{type(self).__name__}: execution={execution!r} must be one of {', '.join(EXECUTIONS)}")
        self.execution = execution
        self.measures = False  # whether steps take down what diagnostics() then says about updates
        self.found_inf: Tensor | None = None  # as torch's fused optimizers: a step does nothing where it is not 0
        self._changes: dict[str, list[Tensor]] = {}  # by role: sums of squares of update and parameter, (2,) each
        self._compiled: Update | None = None
        self._group: dist.ProcessGroup | None = None  # of ranks with the same plain parameters and gradients
        self._owners: Owners | None = None

    def __getstate__(self) -> dict[str, Any]:
        # torch's own leaves out what a rule keeps on itself; compiled code is made anew, ranks are of this process.
        return {**vars(self), "_compiled": None, "_group": None, "_owners": None}

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

    def check(self, hp: Hyper) -> None:
        """Raises ValueError, with the value and its range, for hyperparameters that make no sense."""
        within(self, "lr", hp.lr, 0, math.inf, open_low=True)
        within(self, "weight_decay", hp.weight_decay, 0, math.inf)
        if "betas" in vars(hp):
            usual = signature(type(self)).parameters["betas"].default
            if len(hp.betas) != len(usual):
                raise ValueError(f"{type(self).__name__}: betas={hp.betas} must be {len(usual)} numbers, as {usual}")
            for i, beta in enumerate(hp.betas):
                within(self, f"betas[{i}]", beta, 0, 1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Raises: ValueError: if a hyperparameter lies outside its range.
        """
        super().add_param_group(param_group)
        self.check(Hyper(self.param_groups[-1]))
        self._owners = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; returns what closure, run first, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._changes = {}
        for group in self.param_groups:
            for t, params in self._due(group).items():
                self._advance(params, Hyper({**group, "t": t}))
        return loss

    def skip(self) -> None:
        """Counts a step for every parameter that has a gradient, and changes nothing else."""
        for group in self.param_groups:
            for t, params in self._due(group).items():
                self._count(params, t)

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

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes state and hyperparameters over bit for bit; tensors go to their parameter's device, steps stay.

        Raises: ValueError: if groups or state do not belong to these parameters.
        """
        super().load_state_dict(dict(state_dict))
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        ours = [(param, group) for group in self.param_groups for param in group["params"]]
        for index, (param, group) in zip(saved, ours, strict=True):
            state = state_dict["state"].get(index)
            if state is not None:
                self.load_state(param, group, state)

    def load_state(self, param: Tensor, group: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Sets a parameter's state, bit for bit.

        Raises: ValueError: if names, shapes or dtypes are not those of the spec.
        """
        keeps = self._keeps_state_of(param)
        own = {name: tensor for name, tensor in state.items() if keeps or name == "step"}
        self._check_fit(param, group, {name: (tuple(t.shape), t.dtype) for name, t in own.items()}, keeps)
        place = {name: torch.device("cpu") if name == "step" else param.device for name in own}
        self.state[param] = {
            name: tensor.clone(memory_format=torch.contiguous_format).to(place[name]) for name, tensor in own.items()
        }

    def empty_state(
        self, param: Tensor, group: Mapping[str, Any], saved: Mapping[str, tuple[Shape, torch.dtype]]
    ) -> State:
        """Tensors for a checkpoint to be read into: what this rank keeps for a parameter.

        saved: shape and dtype of what the checkpoint has for it, by name. Raises: ValueError: if that does not fit.
        """
        self._check_fit(param, group, saved, keeps=True)
        return self._new_state(param, group)

    def _check_fit(
        self,
        param: Tensor,
        group: Mapping[str, Any],
        found: Mapping[str, tuple[Shape, torch.dtype]],
        keeps: bool,
    ) -> None:
        specs = self._spec(param, group) if keeps else {}
        expected = {name: (spec.shape, spec.dtype) for name, spec in specs.items()} | {"step": ((), torch.float32)}
        if found != expected:
            odd = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
            raise ValueError(
                f"{type(self).__name__}: state {odd[0]!r} of a parameter of shape {tuple(param.shape)} should be "
                f"{expected.get(odd[0], 'absent')}, is {found.get(odd[0], 'absent')}"
            )

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        found: torch.device = self.param_groups[0]["params"][0].device
        return found

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that keep parts of the state; where this rank keeps all, the tensor itself."""
        first = self.param_groups[0]["params"][0]
        owners = self._sharing()
        return total(tensor, group_of(first) if owners is None else owners.group)

    def _due(self, group: Mapping[str, Any]) -> dict[int, list[Tensor]]:
        """The parameters that have a gradient, by the 1-based step that comes next."""
        due: dict[int, list[Tensor]] = {}
        for param in group["params"]:
            if param.grad is not None:
                due.setdefault(int(self._state_of(param, group)["step"]) + 1, []).append(param)
        return due

    def _count(self, params: Sequence[Tensor], t: int) -> None:
        for param in params:
            self.state[param]["step"].fill_(t)

    def _advance(self, params: Sequence[Tensor], hp: Hyper) -> None:
        moves = self.moves(hp)
        self._count(params, hp.t)
        # Collectives in compiled code are another story; whoever cuts parameters has small pieces anyway.
        is_compiled = self._is_compiled() and not (self.splits_rows and is_cut(params[0]))
        update = self._update(hp, is_compiled)
        if self.measures:
            update = self._measured(update, getattr(hp, "role", "all"))
        for pieces in self._pieces(params, is_compiled):
            if not self.elementwise:
                self._refresh(pieces, hp)
            if moves:
                update(pieces)

    def _pieces(self, params: Sequence[Tensor], is_compiled: bool) -> Iterator[list[Piece]]:
        if self.elementwise:
            return flat_pieces(params, self.state, compiled=is_compiled)
        owners = self._sharing()
        return whole_tensors(params, self.state) if owners is None else owned_tensors(params, self.state, owners)

    def _sharing(self) -> Owners | None:
        """Who computes what, where ranks share parameters that the rule needs whole."""
        if self._owners is None and not (self.elementwise or self.splits_rows):
            costs = {p: self._cost(p, group) for group in self.param_groups for p in group["params"]}
            ranks = group_of(next(iter(costs))) or self._group
            self._owners = None if ranks is None else Owners(costs, ranks)
        return self._owners

    def _cost(self, param: Tensor, group: Mapping[str, Any]) -> float:
        """Arithmetic of a step, relative: square state multiplies the parameter and is factorised."""
        shape = tuple(param.shape)
        found = [spec.shape for spec in self.state_spec(shape, Hyper(group)).values()]
        squares = [s[0] for s in found if len(s) == 2 and s[0] == s[1] and s != shape]
        return float(param.numel() + sum(n**3 + n * param.numel() for n in squares))

    def _refresh(self, pieces: Sequence[Piece], hp: Hyper) -> None:
        for param, grad, state in pieces:
            dtype = working_dtype(param)
            before = {} if self.found_inf is None else {name: tensor.clone() for name, tensor in state.items()}
            self.refresh(grad.to(dtype), param.to(dtype), state, hp)
            restore(before, state, self.found_inf)

    def _update(self, hp: Hyper, is_compiled: bool) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces, for this step's numbers."""
        numbers = self.coefficients(hp) | {"lr": hp.lr, "shrink": 1 - hp.lr * hp.weight_decay}
        function: Update = update_pieces
        if is_compiled:
            if self._compiled is None:
                self._compiled = compiled(update_pieces)
            function = self._compiled
            tensors = torch.tensor(list(numbers.values()), dtype=torch.float64).unbind()
            numbers = dict(zip(numbers, tensors, strict=True))
        lr, shrink, found_inf = numbers.pop("lr"), numbers.pop("shrink"), self.found_inf
        settings = {name: value for name, value in vars(hp).items() if name not in ("params", "lr", "initial_lr", "t")}
        visible = Hyper(settings | numbers)
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
        if self.execution == "auto":
            numbers: int = sum(param.numel() for group in self.param_groups for param in group["params"])
            return numbers >= COMPILED_FROM
        return self.execution == "compiled"

    def _state_of(self, param: Tensor, group: Mapping[str, Any]) -> State:
        if not self.state[param]:
            self.state[param] = self._new_state(param, group)
        state: State = self.state[param]
        return state

    def _new_state(self, param: Tensor, group: Mapping[str, Any]) -> State:
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

    def _spec(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Spec]:
        """The state of a parameter, dtypes filled in."""
        specs = self.state_spec(tuple(param.shape), Hyper(group))
        return {name: spec._replace(dtype=spec.dtype or working_dtype(param)) for name, spec in specs.items()}


def within(owner: object, name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises ValueError unless low <= value < high (low < value with open_low); high = inf means no limit."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and (low < value if open_low else low <= value) and value < high):
        wanted = f"> {low}" if open_low else f">= {low}"
        wanted = wanted if math.isinf(high) else f"in {'(' if open_low else '['}{low}, {high})"
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")
