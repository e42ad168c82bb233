"""The precision of products of fp32 matrices on CUDA."""

from threading import Lock
from typing import ClassVar, Self

import torch


class FullFp32:
    """A context in which fp32 matrices are multiplied in fp32, also where a user allows TensorFloat32 (10 bits).

    For products that a factorisation is made of or that repeat: their errors would grow. What holds outside holds
    again after it, once every thread has left. Set by torch's newer interface, which alone can be read whichever was
    used before.
    """

    # The precision is the process's, and so are these.
    lock: ClassVar[Lock] = Lock()
    _inside: ClassVar[int] = 0
    _before: ClassVar[str]

    def __enter__(self) -> Self:
        with self.lock:
            if not FullFp32._inside:
                FullFp32._before = torch.backends.cuda.matmul.fp32_precision
                self._set("ieee")
            FullFp32._inside += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            FullFp32._inside -= 1
            if not FullFp32._inside:
                self._set(self._before)

    def _set(self, precision: str) -> None:
        if self._before not in ("none", "ieee"):
            torch.backends.cuda.matmul.fp32_precision = precision
