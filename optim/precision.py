"""The precision of products of fp32 matrices on CUDA."""

from typing import Self

import torch


class FullFp32:
    """A context in which fp32 matrices are multiplied in fp32, also where a user allows TensorFloat32 (10 bits).

    For products that a factorisation is made of or that repeat: their errors would grow. What holds outside holds
    again after it. Set by torch's newer interface, which alone can be read whichever was used before.
    """

    def __enter__(self) -> Self:
        self._before = torch.backends.cuda.matmul.fp32_precision
        if self._allows_less:
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        return self

    def __exit__(self, *exception: object) -> None:
        if self._allows_less:
            torch.backends.cuda.matmul.fp32_precision = self._before

    @property
    def _allows_less(self) -> bool:
        return self._before not in ("none", "ieee")
