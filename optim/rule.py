"""What the author of an optimizer writes: one class in one file (lion.py is the shortest); the engine does the rest.

A rule has a constructor that names its hyperparameters and passes them to super().__init__ as defaults, and
    state_spec(shape, hp)                  what is remembered of a parameter of this shape: name -> Spec
    direction(grad, param, state, hp)      the update direction u, its lines numbered as in the paper's box; changes
                                           state in place. Arithmetic without branches on numbers, so that it compiles
where needed also
    coefficients(hp)                       the numbers in the box that depend on t or lr, which direction does not see;
                                           direction reads them as attributes of hp
    refresh(grad, param, state, hp)        before every direction: what is rare or factorises (QR, eigh, SVD), or
                                           branches on t; never compiled. Not for elementwise rules. Its hp also has
                                           taken: see is_due
    is_due(hp)                             whether this refresh does its rare part, on CUDA for several parameters at
                                           once, and from copies of all state where the device may say that the step is
                                           not taken; where it is not due, refresh itself heeds taken
    refresh_interval(hp)                   how often refresh does its rare part, for those who time steps
    flops(shape, hp, steps)                what its matrix products and factorisations cost, 0 without any: for a run's
                                           FLOPs, and for ranks that share parameters
    moves(hp)                              whether this step moves the parameters at all; raises if an input is missing
    check(hp)                              the ranges of its own hyperparameters
    seen(shape)                            the shape, of as many numbers, in which direction sees a parameter
    gate(state)                            a count in the state; the parameter does not move while it is 0
and declares
    elementwise = True                     if every number is updated from its own past alone, and all state has the
                                           parameter's shape. The rule then sees flat pieces of many parameters,
                                           otherwise every parameter in its shape
    splits_rows = True                     if, of a parameter whose rows are sharded across ranks, direction may see
                                           this rank's rows alone: its sums and maxima over rows go through hp.rows
    decays_after_update = True             if the box decays last. It matters in O(lr^2 weight_decay).
    decays_in_direction = True             if the box's decay is no multiple of the parameter: direction adds its own
    apart = (name, ...)                    state that direction does not see: counts of a parameter, for the gate
    read_only = (name, ...)                state that direction sees and does not change, as refresh alone does
    takes_stacks = True                    if direction also takes stacks of matrices of a shape, with one more, first
                                           dimension. Other rules are applied to them by torch.vmap, which makes a
                                           product and a sum of baddbmm, and in torch 2.11 has no views as another dtype
hp is the parameter group as attributes (hyper.py). t, the parameter's 1-based step, and lr are Python numbers, and are
there for all but direction. There, in compiled code, every float is a 0-dim tensor: settings may change in every step.
So direction asks state, not hp, whether there is a momentum, and gives hp's floats to operations that take tensors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import signature
from typing import ClassVar

from torch import Tensor

from .hyper import Hyper, Shape, Spec, State
from .ranges import of_kind, within


class Rule(ABC):
    """The base class of our optimizers' update rules; the module says what one defines."""

    elementwise: ClassVar[bool] = False
    splits_rows: ClassVar[bool] = False
    decays_after_update: ClassVar[bool] = False
    decays_in_direction: ClassVar[bool] = False
    apart: ClassVar[tuple[str, ...]] = ()
    read_only: ClassVar[tuple[str, ...]] = ()
    takes_stacks: ClassVar[bool] = False

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

    def seen(self, shape: Shape) -> Shape:
        """The shape in which direction and refresh see a parameter of this shape, if it lies in one piece of memory."""
        return shape

    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:  # noqa: B027 - most need none
        """Updates state in place before direction, or instead of it on a step that does not move; all fp32 or wider.

        Where it is due, other threads may be in it with other parameters, in any order.
        """

    def is_due(self, hp: Hyper) -> bool:
        """Whether refresh, in step hp.t, does its rare part; else a little, or nothing.

        Where not, it changes no state if hp.taken is false, though the gradient may hold NaN. hp.taken: 0-dim bool on
        the device, or None: the step is taken. Never anything else where this returns True.
        """
        return True

    def refresh_interval(self, hp: Hyper) -> int | None:
        """Steps from one expensive refresh to the next; None if every step is the same work."""
        return None

    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        """FLOPs of the matrix products and factorisations of the first `steps` steps of a parameter of this shape.

        A multiply-add is two. Operations per number, such as Adam's, do not count, nor on how many ranks they happen.
        """
        return 0.0

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
        for name, parameter in signature(type(self)).parameters.items():
            if name in hp.settings:
                of_kind(self, name, hp.settings[name], parameter.default)
        within(self, "lr", hp.lr, 0, math.inf)
        within(self, "weight_decay", hp.weight_decay, 0, math.inf)
        if "betas" in hp.settings:
            for i, beta in enumerate(hp.betas):
                within(self, f"betas[{i}]", beta, 0, 1)
