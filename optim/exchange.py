"""How the ranks of a group exchange full parameters: rows to whom computes them, and what became of them back."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .sharding import is_sharded, local

# Renamed after torch 2.11, which has the old name alone.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

Plan = Sequence[Sequence[Sequence[Tensor]]]  # by round and rank, the parameters that the rank computes


class Full(NamedTuple):
    """A full parameter and its gradient, as its owner updates them."""

    param: Tensor  # the parameter that the optimizer knows
    values: Tensor  # to be updated in place
    grad: Tensor


class Exchange:
    """Of parameters on a device, between the ranks of a group."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.rank, self.world_size = group, dist.get_rank(group), dist.get_world_size(group)
        self._device = device

    def rounds(self, plan: Plan) -> Iterator[list[Full]]:
        """This rank's parameters of each round; what the caller makes of values reaches all ranks by the end.

        All ranks must iterate over the same plan to the end.
        """
        first = next((param for by_rank in plan for own in by_rank for param in own), None)
        return self._sharded_rounds(plan) if first is not None and is_sharded(first) else self._replicated_rounds(plan)

    def _replicated_rounds(self, plan: Plan) -> Iterator[list[Full]]:
        unfinished = None
        for by_rank in plan:
            yield [Full(param, param.detach(), _grad(param)) for param in by_rank[self.rank]]
            sent = self._send_to_all(by_rank)
            if unfinished is not None:
                self._receive(*unfinished)
            unfinished = (by_rank, *sent)
        if unfinished is not None:
            self._receive(*unfinished)

    def _send_to_all(self, by_rank: Sequence[Sequence[Tensor]]) -> tuple[dist.Work, Tensor]:
        most = max(sum(p.numel() * p.element_size() for p in own) for own in by_rank)
        mine = torch.zeros(most, dtype=torch.uint8, device=self._device)
        for part, place in _beside(mine, [_bytes(param.detach()) for param in by_rank[self.rank]]):
            place.copy_(part)
        gathered = mine.new_empty(self.world_size * most)
        work = all_gather_single(gathered, mine, group=self.group, async_op=True)
        return work, gathered.view(self.world_size, most)

    def _receive(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, gathered: Tensor) -> None:
        work.wait()
        for rank, own in enumerate(by_rank):
            if rank != self.rank:
                for part, source in _beside(gathered[rank], [_bytes(param.detach()) for param in own]):
                    part.copy_(source)

    def _sharded_rounds(self, plan: Plan) -> Iterator[list[Full]]:
        """Rows go to the owner and come back; a round's rows travel while the round before is computed."""
        ahead = self._send_to_owners(plan[0])
        unfinished = None
        for r, by_rank in enumerate(plan):
            (work, received), ahead = ahead, self._send_to_owners(plan[r + 1]) if r + 1 < len(plan) else ahead
            work.wait()
            full = self._assembled(by_rank[self.rank], received)
            yield full
            returning = self._send_back(by_rank, full)
            if unfinished is not None:
                self._receive_back(*unfinished)
            unfinished = (by_rank, *returning)
        if unfinished is not None:
            self._receive_back(*unfinished)

    def _send_to_owners(self, by_rank: Sequence[Sequence[Tensor]]) -> tuple[dist.Work, list[Tensor]]:
        """Starts sending this rank's rows of values and gradients to the owners."""
        parts = [[_bytes(local(t)) for p in own for t in (p.detach(), _grad(p))] for own in by_rank]
        incoming = [2 * sum(self._n_bytes(p, rank) for p in by_rank[self.rank]) for rank in range(self.world_size)]
        return self._exchange(parts, incoming)

    def _assembled(self, own: Sequence[Tensor], received: Sequence[Tensor]) -> list[Full]:
        found, at = [], [0] * self.world_size
        for param in own:
            pair = []
            for _ in range(2):
                rows = [received[s][at[s] : at[s] + self._n_bytes(param, s)] for s in range(self.world_size)]
                at = [start + len(part) for start, part in zip(at, rows, strict=True)]
                pair.append(torch.cat(rows).view(param.dtype).view(param.shape))
            found.append(Full(param, *pair))
        return found

    def _send_back(self, by_rank: Sequence[Sequence[Tensor]], full: Sequence[Full]) -> tuple[dist.Work, list[Tensor]]:
        sizes = [[self._n_bytes(each.param, s) for s in range(self.world_size)] for each in full]
        flat = [(_bytes(each.values), list(accumulate(own))) for each, own in zip(full, sizes, strict=True)]
        parts = [
            [v[ends[s] - self._n_bytes(each.param, s) : ends[s]] for (v, ends), each in zip(flat, full, strict=True)]
            for s in range(self.world_size)
        ]
        incoming = [sum(self._n_bytes(p, self.rank) for p in own) for own in by_rank]
        return self._exchange(parts, incoming)

    def _receive_back(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, received: Sequence[Tensor]) -> None:
        work.wait()
        for own, part in zip(by_rank, received, strict=True):
            for rows, source in _beside(part, [_bytes(local(param.detach())) for param in own]):
                rows.copy_(source)

    def _exchange(self, parts: Sequence[Sequence[Tensor]], incoming: Sequence[int]) -> tuple[dist.Work, list[Tensor]]:
        """Starts sending parts[r] to rank r and receiving incoming[r] bytes from it."""
        outgoing = [sum(len(part) for part in own) for own in parts]
        sent = torch.empty(sum(outgoing), dtype=torch.uint8, device=self._device)
        for part, place in _beside(sent, [part for own in parts for part in own]):
            place.copy_(part)
        received = sent.new_empty(sum(incoming))
        work = dist.all_to_all_single(received, sent, list(incoming), outgoing, group=self.group, async_op=True)
        return work, list(torch.split(received, list(incoming)))

    def _n_bytes(self, param: Tensor, rank: int) -> int:
        """The bytes of the rows of param that a rank of the group holds: as many as torch.chunk gives it."""
        rows, most = param.shape[0], -(-param.shape[0] // self.world_size)
        held = max(0, min(most, rows - rank * most))
        return held * (param.numel() // max(rows, 1)) * param.element_size()


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor; another's is copied."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _beside(buffer: Tensor, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each part and as much of the buffer, from its start, one after the other."""
    at = 0
    for part in parts:
        yield part, buffer[at : at + len(part)]
        at += len(part)
