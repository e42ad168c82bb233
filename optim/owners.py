"""Which rank computes which parameter, for rules that need it in full; see sharding.py."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .exchange import Exchange, Full, Plan
from .sharding import local

ROUND = 1 << 26  # bytes of parameters that an owner updates before it sends them; the next ones overlap with that


def assigned(costs: Mapping[Tensor, float], loads: list[float]) -> dict[Tensor, int]:
    """The rank of each parameter; adds its cost to the rank's load, in loads.

    The most expensive first, each goes to the rank with the least work so far, ties to the lower rank: the same on all
    ranks.
    """
    owner = {}
    for param, cost in sorted(costs.items(), key=lambda item: -item[1]):  # stable: equal costs keep their order
        owner[param] = rank = min(range(len(loads)), key=loads.__getitem__)
        loads[rank] += cost
    return owner


class Owners:
    """Which rank of a group computes which parameter, and the exchange of what it computed.

    costs: relative, of each parameter.
    """

    def __init__(self, costs: Mapping[Tensor, float], group: dist.ProcessGroup) -> None:
        self.group, self._exchange = group, Exchange(group, local(next(iter(costs))).device)
        self.loads = [0.0] * self._exchange.world_size
        self.owner: dict[Tensor, int] = {}
        self.add(costs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Owners":
        """For the copies of the parameters, on the same ranks."""
        other = copy(self)
        other.loads, other.owner = list(self.loads), {deepcopy(p, memo): rank for p, rank in self.owner.items()}
        return other

    def add(self, costs: Mapping[Tensor, float]) -> None:
        """Assigns more parameters; the others stay where their state is."""
        self.owner |= assigned(costs, self.loads)

    def owns(self, param: Tensor) -> bool:
        """Whether this rank computes the parameter."""
        return self.owner[param] == self._exchange.rank

    def full_tensors(self, params: Sequence[Tensor]) -> Iterator[list[Full]]:
        """This rank's among the params, some at a time; what the caller makes of values reaches all ranks by the end.

        All ranks must iterate over the same params to the end.
        """
        return self._exchange.rounds(self._plan(params))

    def _plan(self, params: Sequence[Tensor]) -> Plan:
        """By round and rank, the params that the rank updates."""
        by_rank: list[list[list[Tensor]]] = [[] for _ in self.loads]
        sizes = [0] * len(self.loads)
        for param in params:
            rank = self.owner[param]
            if not by_rank[rank] or sizes[rank] >= ROUND:
                by_rank[rank].append([])
                sizes[rank] = 0
            by_rank[rank][-1].append(param)
            sizes[rank] += param.numel() * param.element_size()
        rounds = max(len(own) for own in by_rank)
        return [[own[r] if r < len(own) else [] for own in by_rank] for r in range(rounds)]
