"""Member, the interface of an optimizer in OptimizerSet: base.py implements it, foreign.py adapts others to it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .owners import Owners

State = dict[str, Any]  # by name: tensors, and of foreign optimizers also numbers
Saved = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # by name: shape and dtype of what a checkpoint has


class Member(Protocol):
    """One optimizer of a set; parameters, groups and state as torch.optim.Optimizer has them."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """By parameter."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings of a group that has none of its own."""

    def zero_grad(self) -> None:
        """Forgets all gradients."""

    def step_if_finite(self, is_finite: Tensor | None, *, measured: bool) -> None:
        """A step where is_finite, 0-dim, is true (or None); otherwise parameters and state stay as they are.

        measured: the step also notes what diagnostics() then says about it. Raises: ValueError: if the first step of a
        foreign optimizer fails: it is not for such a model.
        """

    def diagnostics(self) -> Mapping[str, Tensor]:
        """What users tune by, 0-dim tensors on the device by name; the same on all ranks, which must all ask."""

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about diagnostics out of their usual range."""

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Records the ranks that hold the same full parameters and gradients, which share the work."""

    def owners(self) -> Owners | None:
        """Who computes which parameter, where ranks share full parameters."""

    def refresh_intervals(self) -> list[int]:
        """Steps between expensive refreshes, of every group that has them."""

    def flops_of_all(self, steps: int) -> float:
        """FLOPs of matrix products and factorisations in the first `steps` steps; 0 of a foreign optimizer: unknown."""

    def init_state(self) -> None:
        """Makes the state of every parameter; of a foreign optimizer only on the meta device."""

    def empty_state(self, param: Tensor, group: Mapping[str, Any], saved: Saved) -> State:
        """Tensors for a checkpoint to be read into: what this rank keeps for a parameter.

        Raises: ValueError: if what was saved does not fit.
        """

    def prepare_load(
        self, saved: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> Callable[[], None]:
        """What makes this optimizer take over saved groups, known to be these, and states by parameter.

        Raises: ValueError: if they do not fit; nothing has changed before the result is called.
        """


def refusal(target: str, error: Exception) -> str:
    """What a class says in one line, after its import path unless its own words name the class."""
    said, kind = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, ValueError):
        return said if target.rpartition(".")[2] in said else f"{target}: {said or kind}"
    return f"{target}: {kind}: {said}" if said else f"{target}: {kind}"
