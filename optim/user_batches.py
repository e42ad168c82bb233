"""What CurvaturePass makes of a user's batches, and of what a model returns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .sampling import Inputs

LogitsFn = Callable[[nn.Module, Inputs, Tensor], Tensor]  # of a model, inputs and targets
UNCOUNTED = -1  # a target that does not count, like any below 0


class Sequences(NamedTuple):
    """A micro-batch as curvature.py has it. targets: (B, T), negative where a position does not count."""

    inputs: Inputs
    targets: Tensor
    indices: Sequence[int] = ()


def read(batch: Any) -> Sequences:
    """A micro-batch in either of the forms that CurvaturePass.update names.

    Raises: ValueError: if it is in neither.
    """
    if isinstance(batch, Mapping):
        labels = batch.get("labels", batch.get("input_ids"))
        if isinstance(labels, Tensor) and labels.ndim == 2:
            rows = {name: value for name, value in batch.items() if _has_rows(value, len(labels)) and name != "labels"}
            return Sequences(rows, labels[:, 1:])
    elif isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        inputs, targets = batch
        if targets.ndim == 2 and _has_rows(inputs, len(targets)):
            return Sequences(inputs, targets)
    raise ValueError(
        "CurvaturePass: a batch must be a pair of tensors (inputs, targets), targets of shape (B, T), or a mapping "
        f"with input_ids and labels (B, T); got {_shown(batch)}"
    )


def _has_rows(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def _shown(batch: Any) -> str:
    """The kind of a batch and the shapes in it."""
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "a mapping of " + ", ".join(f"{name} ({_shown(value)})" for name, value in batch.items())
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of " + ", ".join(map(_shown, batch))
    return f"a {type(batch).__name__}"


def lengthened(batch: Sequences, length: int) -> Sequences:
    """The micro-batch with targets (B, length): more that do not count, and zeros in inputs of as many positions."""
    more = length - batch.targets.shape[1]
    if more == 0:
        return batch
    targets = F.pad(batch.targets, (0, more), value=UNCOUNTED)
    if isinstance(batch.inputs, Tensor):
        return batch._replace(inputs=_padded(batch.inputs, batch.targets.shape[1], more), targets=targets)
    positions = batch.targets.shape[1] + 1  # labels have one more than the targets made of them
    inputs = {name: _padded(value, positions, more) for name, value in batch.inputs.items()}
    return batch._replace(inputs=inputs, targets=targets)


def _padded(tensor: Tensor, positions: int, more: int) -> Tensor:
    if tensor.ndim < 2 or tensor.shape[1] != positions:
        return tensor
    return F.pad(tensor, (*(0, 0) * (tensor.ndim - 2), 0, more))


def logits_of(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
    """The model's logits for every target. Raises: ValueError: if it returns none."""
    if isinstance(inputs, Tensor):
        return _logits_in(model(inputs))
    return _logits_in(model(**inputs))[:, :-1]  # those of the last position predict what the batch does not have


def _logits_in(returned: Any) -> Tensor:
    found = returned
    if isinstance(returned, Mapping):
        found = returned.get("logits")
    elif not isinstance(returned, Tensor):
        found = getattr(returned, "logits", returned[0] if isinstance(returned, tuple) and returned else None)
    if isinstance(found, Tensor):
        return found
    raise ValueError(
        f"CurvaturePass: the model returned {_shown(returned)}, and no logits: give logits=, a function of (model, "
        "inputs, targets) that returns them"
    )


class Logits:
    """The model as the estimators call it: logits of inputs, constant where targets do not count."""

    def __init__(self, model: nn.Module, logits: LogitsFn, targets: Tensor) -> None:
        self._model, self._logits, self._targets = model, logits, targets

    def __call__(self, inputs: Inputs) -> Tensor:
        """Returns the logits (B, T, V). Raises: ValueError: if the model has others."""
        logits = self._logits(self._model, inputs, self._targets)
        if logits.shape[:-1] != self._targets.shape:
            raise ValueError(
                f"CurvaturePass: the model returned logits {tuple(logits.shape)} for targets "
                f"{tuple(self._targets.shape)}, and there must be some for every target; if it wants targets, as "
                "nanoGPT's does, give logits=lambda model, inputs, targets: model(inputs, targets)[0]"
            )
        others = self._targets < 0
        return logits.masked_fill(others.unsqueeze(-1), 0.0) if others.any() else logits

    forward = __call__
