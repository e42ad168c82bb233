"""What a rule is given and what it declares: settings as attributes, and tensors of state."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from .sharding import Rows

Shape = tuple[int, ...]
State = dict[str, Tensor]


class Hyper:
    """Settings as attributes; rows: sums and maxima over the parameter's rows, see sharding.Rows."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings  # not the object's __dict__, which torch 2.11 cannot compile

    def __getattr__(self, name: str) -> Any:
        if name in self.settings:
            return self.settings[name]
        raise AttributeError(f"there is no {name!r} here, only {', '.join(sorted(self.settings))}")

    def replaced(self, **settings: Any) -> Self:
        """The same but for these settings, which may be new ones."""
        return type(self)({**self.settings, **settings})

    def with_rows(self, rows: Rows | None) -> Self:
        """The same for a parameter of which this rank holds some rows; None: all."""
        return self if rows is None else self.replaced(rows=rows)


class Spec(NamedTuple):
    """A tensor of state, zero at first, or ones on the diagonal.

    moment: "signed" or "positive" for an average of one number for each of the parameter's, kept in the format that
    users choose (formats.py); None: kept exactly.
    """

    shape: Shape
    dtype: torch.dtype | None = None  # None: the working dtype
    by_row: bool | None = None  # whether dimension 0 is the parameter's rows; None: yes if it has the parameter's shape
    is_identity: bool = False
    moment: Literal["signed", "positive"] | None = None


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a parameter's update is computed and its state kept: fp32, or float64 as it is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """In the working dtype: a softmax in bf16 is another distribution, a square another number."""
    return tensor.to(working_dtype(tensor))
