"""Optimizers across ranks; the only module here that knows DTensor and collectives.

A parameter may be plain (one process, or DDP: the same on all ranks) or a DTensor whose rows are sharded (FSDP2; with
HSDP the shards are replicated on groups of ranks). What the engine does with it follows from the rule:
    elementwise    every rank updates the numbers that it holds
    splits_rows    every rank updates the rows that it holds; sums and maxima over rows go through the Rows that
                   direction is given
    neither        owner computes: Owners assigns every full parameter to one rank, which alone keeps its state and
                   computes; the others receive the outcome. The arithmetic is that of one process, bit for bit
State follows its parameter: of its shape, or one number per row, it is a DTensor sharded alike; anything else is the
same on all ranks; that of an owner is a plain tensor there and absent elsewhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

ROUND = 1 << 26  # bytes of parameters that an owner updates before it sends them; the next ones overlap with that


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter, of which this rank may hold some: sums, means and maxima are over those of all ranks.

    group: the ranks that share the rows, and n: how many there are in all; None where this rank holds all. first: of
    this rank's.
    """

    group: dist.ProcessGroup | None = None
    n: int | None = None
    first: int = 0

    def count(self, tensor: Tensor) -> int:
        """Rows of a tensor with the parameter's rows, those on other ranks included."""
        return len(tensor) if self.n is None else self.n

    def sum(self, part: Tensor) -> Tensor:
        """A sum over this rank's rows, made one over the rows of all ranks, in place.

        Every rank of the group must call this.
        """
        return total(part, self.group)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean, 0-dim, of a tensor with the parameter's rows."""
        if tensor.ndim == 0:
            return tensor
        return self.sum(tensor.sum()) / (self.count(tensor) * math.prod(tensor.shape[1:]))

    def max(self, tensor: Tensor) -> Tensor:
        """The maxima over the rows, (n, ...), of a tensor (rows, n, ...) with the parameter's rows.

        Every rank of the group must call this.
        """
        part = tensor.amax(0) if len(tensor) else tensor.new_full(tensor.shape[1:], -math.inf)
        if self.group is not None:
            dist.all_reduce(part, dist.ReduceOp.MAX, group=self.group)
        return part


ALL_ROWS = Rows()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: all of a plain one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(param: Tensor) -> bool:
    """Whether ranks hold different rows of it."""
    return isinstance(param, DTensor)


def zeros(param: Tensor, shape: Sequence[int], dtype: torch.dtype, *, by_row: bool) -> Tensor:
    """Zeros on param's device; with by_row, sharded along the first dimension as param is."""
    if not (by_row and isinstance(param, DTensor)):
        return torch.zeros(tuple(shape), dtype=dtype, device=local(param).device)
    part = torch.zeros((len(local(param)), *shape[1:]), dtype=dtype, device=local(param).device)
    strides = tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1]
    return DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=torch.Size(shape), stride=strides
    )


def group_of(param: Tensor) -> dist.ProcessGroup | None:
    """The ranks that share the rows of a parameter, None if it is plain.

    Raises: ValueError: if it is sharded in another way than along its rows, once.
    """
    if not isinstance(param, DTensor):
        return None
    sharded = [(axis, p) for axis, p in enumerate(param.placements) if not p.is_replicate()]
    if len(sharded) != 1 or sharded[0][1] != Shard(0):
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} is placed as {param.placements}; optimizers here take "
            "parameters sharded along their first dimension, once (fully_shard's way)"
        )
    mesh: DeviceMesh = param.device_mesh
    return mesh.get_group(sharded[0][0])


def groups_of(param: Tensor) -> list[dist.ProcessGroup]:
    """The groups of ranks that, one after the other, reach all ranks with rows of a parameter, copies (HSDP) too."""
    if not isinstance(param, DTensor):
        return []
    mesh: DeviceMesh = param.device_mesh
    return [mesh.get_group(axis) for axis in range(mesh.ndim)]


def rows_of(param: Tensor) -> Rows | None:
    """The rows of a sharded parameter; None if it is plain."""
    group = group_of(param)
    if group is None:
        return None
    each = -(-param.shape[0] // dist.get_world_size(group))
    return Rows(group, param.shape[0], min(dist.get_rank(group) * each, param.shape[0]))


def total(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, in place; the tensor as it is without one."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor


class Full(NamedTuple):
    """A full parameter and its gradient, as its owner updates them."""

    param: Tensor  # the parameter that the optimizer knows
    values: Tensor  # to be updated in place
    grad: Tensor


class Owners:
    """Which rank of a group computes which parameter, and the exchange of what it computed.

    costs: relative, of each parameter. The most expensive first, each goes to the rank with the least work so far,
    ties to the lower rank: the same on all ranks.
    """

    def __init__(self, costs: Mapping[Tensor, float], group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.world_size = group, dist.get_rank(group), dist.get_world_size(group)
        self._device = local(next(iter(costs))).device
        self.loads = [0.0] * self.world_size
        self.owner: dict[Tensor, int] = {}
        self.add(costs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Owners":
        """For the copies of the parameters, on the same ranks."""
        other = copy(self)
        other.loads, other.owner = list(self.loads), {deepcopy(p, memo): rank for p, rank in self.owner.items()}
        return other

    def add(self, costs: Mapping[Tensor, float]) -> None:
        """Assigns more parameters; the others stay where their state is."""
        for param, cost in sorted(costs.items(), key=lambda item: -item[1]):  # stable: equal costs keep their order
            rank = min(range(self.world_size), key=self.loads.__getitem__)
            self.owner[param], self.loads[rank] = rank, self.loads[rank] + cost

    def owns(self, param: Tensor) -> bool:
        """Whether this rank computes the parameter."""
        return self.owner[param] == self.rank

    def full_tensors(self, params: Sequence[Tensor]) -> Iterator[Full]:
        """This rank's among the params, one at a time; what the caller makes of values reaches all ranks by the end.

        All ranks must iterate over the same params to the end.
        """
        plan = self._plan(params)
        return self._sharded_rounds(plan) if is_sharded(params[0]) else self._replicated_rounds(plan)

    def _plan(self, params: Sequence[Tensor]) -> list[list[list[Tensor]]]:
        """By round and rank, the params that the rank updates."""
        by_rank: list[list[list[Tensor]]] = [[] for _ in range(self.world_size)]
        sizes = [0] * self.world_size
        for param in params:
            rank = self.owner[param]
            if not by_rank[rank] or sizes[rank] >= ROUND:
                by_rank[rank].append([])
                sizes[rank] = 0
            by_rank[rank][-1].append(param)
            sizes[rank] += param.numel() * param.element_size()
        rounds = max(len(own) for own in by_rank)
        return [[own[r] if r < len(own) else [] for own in by_rank] for r in range(rounds)]

    def _replicated_rounds(self, plan: Sequence[Sequence[Sequence[Tensor]]]) -> Iterator[Full]:
        unfinished = None
        for by_rank in plan:
            for param in by_rank[self.rank]:
                assert param.grad is not None
                yield Full(param, param.detach(), param.grad)
            sent = self._send_to_all(by_rank)
            if unfinished is not None:
                self._receive(*unfinished)
            unfinished = (by_rank, *sent)
        if unfinished is not None:
            self._receive(*unfinished)

    def _send_to_all(self, by_rank: Sequence[Sequence[Tensor]]) -> tuple[dist.Work, Tensor]:
        most = max(sum(p.numel() * p.element_size() for p in own) for own in by_rank)
        mine = torch.zeros(most, dtype=torch.uint8, device=self._device)
        _copy_into(mine, [_bytes(param.detach()) for param in by_rank[self.rank]])
        gathered = mine.new_empty(self.world_size * most)
        work = dist.all_gather_single(gathered, mine, group=self.group, async_op=True)
        return work, gathered.view(self.world_size, most)

    def _receive(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, gathered: Tensor) -> None:
        work.wait()
        for rank, own in enumerate(by_rank):
            if rank != self.rank:
                _copy_out_of(gathered[rank], [_bytes(param.detach()) for param in own])

    def _sharded_rounds(self, plan: Sequence[Sequence[Sequence[Tensor]]]) -> Iterator[Full]:
        """Rows go to the owner and come back; a round's rows travel while the round before is computed."""
        ahead = self._send_to_owners(plan[0])
        unfinished = None
        for r, by_rank in enumerate(plan):
            (work, received), ahead = ahead, self._send_to_owners(plan[r + 1]) if r + 1 < len(plan) else ahead
            work.wait()
            full = self._assembled(by_rank[self.rank], received)
            yield from full
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
        flat = [
            (_bytes(each.values), list(accumulate(self._n_bytes(each.param, s) for s in range(self.world_size))))
            for each in full
        ]
        parts = [
            [v[ends[s] - self._n_bytes(each.param, s) : ends[s]] for (v, ends), each in zip(flat, full, strict=True)]
            for s in range(self.world_size)
        ]
        incoming = [sum(self._n_bytes(p, self.rank) for p in own) for own in by_rank]
        return self._exchange(parts, incoming)

    def _receive_back(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, received: Sequence[Tensor]) -> None:
        work.wait()
        for own, part in zip(by_rank, received, strict=True):
            _copy_out_of(part, [_bytes(local(param.detach())) for param in own])

    def _exchange(self, parts: Sequence[Sequence[Tensor]], incoming: Sequence[int]) -> tuple[dist.Work, list[Tensor]]:
        """Starts sending parts[r] to rank r and receiving incoming[r] bytes from it."""
        outgoing = [sum(len(part) for part in own) for own in parts]
        sent = torch.empty(sum(outgoing), dtype=torch.uint8, device=self._device)
        _copy_into(sent, [part for own in parts for part in own])
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


def _copy_into(buffer: Tensor, parts: Sequence[Tensor]) -> None:
    at = 0
    for part in parts:
        buffer[at : at + len(part)] = part
        at += len(part)


def _copy_out_of(buffer: Tensor, parts: Sequence[Tensor]) -> None:
    at = 0
    for part in parts:
        part.copy_(buffer[at : at + len(part)])
        at += len(part)
