"""The optimizers of a model as one: what the training loop and checkpoints see."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .curvature import Curvature
from .saved_set import SavedSet


class OptimizerSet(SavedSet):
    """Several optimizers, each of its own parameters.

    estimators: of curvature, to be updated in every step, see curvature.py.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]) -> None:
        super().__init__(optimizers, names)
        found = map(curvature_of, optimizers)
        self.estimators = [curvature for curvature in found if curvature is not None]

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


def curvature_of(optimizer: torch.optim.Optimizer) -> Curvature | None:
    """The estimator that feeds an optimizer, if it has one."""
    found = getattr(optimizer, "curvature", None)
    return found if isinstance(found, Curvature) else None
