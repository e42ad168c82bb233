"""CurvatureCallback: see the class."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .curvature_pass import CurvaturePass
from .user_batches import LogitsFn, logits_of


class CurvatureCallback:
    """The extra pass of Sophia in Hugging Face's Trainer: Trainer(..., callbacks=[CurvatureCallback()]).

    It notes the batches that the model is called with, and makes a CurvaturePass on them just before the optimizer's
    step. seed, logits: see CurvaturePass. Wants a Trainer that calls on_pre_optimizer_step.
    No subclass of transformers.TrainerCallback, since this package needs torch alone: of the other events it makes
    nothing.
    """

    def __init__(self, *, seed: int = 0, logits: LogitsFn = logits_of) -> None:
        self._seed, self._logits = seed, logits
        self._batches: list[dict[str, Any]] = []
        self._is_noting = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Any, **others: Any
    ) -> None:
        """Begins to follow the model's calls."""
        self._pass = CurvaturePass(model, optimizer, seed=self._seed, logits=self._logits)
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begins to note the batches of a step."""
        self._batches, self._is_noting = [], True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Makes the pass on the batches of the step."""
        self._is_noting = False
        self._pass.update(*self._batches)
        self._batches = []

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Follows the model's calls no more."""
        self._hook.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_noting and module.training:
            self._batches.append(kwargs)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"CurvatureCallback has no {name}")


def _nothing(*args: Any, **others: Any) -> None:
    """What is done at an event of no interest."""
