"""The engine under every optimizer of this package: a paper's file writes the rule, the engine does the rest.

A rule is one class with
    state_spec(shape, hp)                the state of a parameter: name -> shape; tensors in the working dtype
    direction(grad, param, state, hp)    the update direction, lines numbered as in the paper's box; updates state
and a constructor that names its hyperparameters and passes them to super().__init__ as defaults. The engine turns the
direction u into param <- (1 - lr weight_decay) param - lr u, and owns

* the state's life: made from its spec before the first step, plus "step", a 0-dim fp32 tensor in host memory;
* the working dtype: fp32 for narrower parameters, which get a working copy; float64 stays float64 throughout;
* load_state_dict: verbatim, where torch's own casts state to the parameter's dtype;
* skipping parameters without gradient, closures, and messages about bad values.

hp is the parameter group as attributes, with t, the parameter's 1-based step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

Shape = tuple[int, ...]
Hyper = SimpleNamespace
Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch.optim.Optimizer made of a rule; see the module.

    Raises: ValueError: if a hyperparameter lies outside its range.
    """

    decays_after_update: ClassVar[bool] = False  # the algorithm box decides; it matters in O(lr^2 weight_decay)

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for group in self.param_groups:
            self.check(Hyper(**group))

    @abstractmethod
    def state_spec(self, shape: Shape, hp: Hyper) -> Mapping[str, Shape]:
        """Shapes of the state tensors of a parameter of this shape, by name."""

    @abstractmethod
    def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
        """The update direction, in the working dtype and the parameter's shape; updates state in place.

        May reuse and overwrite grad; must not change param.
        """

    def check(self, hp: Hyper) -> None:
        """Raises ValueError, with the value and its range, for hyperparameters that make no sense."""
        within(self, "lr", hp.lr, 0, math.inf, open_low=True)
        within(self, "weight_decay", hp.weight_decay, 0, math.inf)
        for i, beta in enumerate(getattr(hp, "betas", ())):
            within(self, f"betas[{i}]", beta, 0, 1)

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
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)
        return loss

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    def diagnostics(self) -> dict[str, Tensor]:
        """What users tune by, as 0-dim tensors on the device; costs nothing unless called."""
        return {}

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
        expected = {name: (shape, working_dtype(param)) for name, shape in self._spec(param, group).items()}
        expected["step"] = ((), torch.float32)
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
        if found != expected:
            odd = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
            raise ValueError(
                f"{type(self).__name__}: state {odd[0]!r} of a parameter of shape {tuple(param.shape)} should be "
                f"{expected.get(odd[0], 'absent')}, is {found.get(odd[0], 'absent')}"
            )
        own = {name: tensor.to(param.device, copy=True) for name, tensor in state.items() if name != "step"}
        self.state[param] = {"step": state["step"].cpu().clone(), **own}

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(param, group)
        state["step"] += 1
        dtype = working_dtype(param)
        hp = Hyper(**group, t=int(state["step"]))
        working, grad = param.to(dtype), param.grad.to(dtype)  # type: ignore[union-attr]  # step() has looked
        update = self.direction(grad, working, state, hp)
        if not self.decays_after_update:
            working.mul_(1 - hp.lr * hp.weight_decay)
        working.add_(update, alpha=-hp.lr)
        if self.decays_after_update:
            working.mul_(1 - hp.lr * hp.weight_decay)
        if working is not param:
            param.copy_(working)

    def _state_of(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name, shape in self._spec(param, group).items():
                state[name] = torch.zeros(shape, dtype=working_dtype(param), device=param.device)
        return state

    def _spec(self, param: Tensor, group: Mapping[str, Any]) -> Mapping[str, Shape]:
        return self.state_spec(tuple(param.shape), Hyper(**group))


def working_dtype(param: Tensor) -> torch.dtype:
    """The dtype in which a parameter's update is computed and its state kept."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def within(owner: object, name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises ValueError unless low <= value < high (low < value with open_low); high = inf means no limit."""
    if not (low < value if open_low else low <= value) or not (value < high):
        wanted = f"> {low}" if open_low else f">= {low}"
        wanted = wanted if math.isinf(high) else f"in {'(' if open_low else '['}{low}, {high})"
        raise ValueError(f"{type(owner).__name__}: {name}={value} must be {wanted}")
