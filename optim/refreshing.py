"""What optimizers share that now and then renew something expensive, and keep the old where that fails."""

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from .base import Params, RuleOptimizer
from .precision import FullFp32


class Refreshes(FullFp32):
    """A context around each refresh of a parameter: how many there were in this process, and the host's seconds.

    Seconds in which threads refresh several parameters count once.
    """

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self._under_way, self._start = 0, 0.0

    @override
    def __enter__(self) -> Self:
        with self.lock:
            if not self._under_way:
                self._start = time.perf_counter()
            self._under_way += 1
        return super().__enter__()

    @override
    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        with self.lock:
            self.count += 1
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.perf_counter() - self._start


class RefreshingOptimizer(RuleOptimizer):
    """Counts and times what a subclass does within `with self._refreshes`, whose products of matrices are full fp32.

    A subclass puts a count named `kept` into the state of every parameter that it refreshes: how often that failed and
    left what it should have renewed as it was.
    """

    kept: ClassVar[str]

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str, state: str) -> None:
        super().__init__(params, defaults, execution, state)
        self._refreshes = Refreshes()

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also, where a parameter is refreshed:

        the count of kept ones, over all ranks; seconds_per_refresh: of a parameter, in this process, 0 before any. Of
        several at once, each has its share of the seconds.
        """
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p in self.state]
        kept = [float(state[self.kept]) for state in states if self.kept in state]
        numbers = [sum(kept), len(kept), self._refreshes.seconds, self._refreshes.count]
        total = self.total(torch.tensor(numbers, dtype=torch.float32, device=self.device))
        if not total[1]:
            return super().diagnostics()
        found = {self.kept: total[0], "seconds_per_refresh": total[2] / total[3].clamp(min=1)}
        return super().diagnostics() | found

    @override
    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        if not (count := diagnostics.get(self.kept)):
            return []
        what = f"{type(self).__name__}: {count:.0f} {self.kept.removeprefix('kept_')}"
        return [f"{what} could not be refreshed and were kept; look for gradients that are not finite"]
