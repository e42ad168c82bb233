"""Optimizers across ranks; the only module here that knows DTensor and collectives.

A parameter may be plain (one process, or DDP: the same on all ranks) or a DTensor cut along its rows (FSDP2; with HSDP
the pieces are repeated on groups of ranks). What the engine does with it follows from the rule:
    elementwise    every rank updates the numbers that it holds
    splits_rows    every rank updates the rows that it holds; sums over rows go through whole(), in factored.py
    neither        owner computes: Owners assigns every parameter, whole, to one rank, which alone keeps its state and
                   computes; the others receive the outcome. The arithmetic is that of one process, bit for bit
State follows its parameter: of its shape, or one number per row, it is a DTensor cut alike; anything else is the same
on all ranks; that of an owner is a plain tensor there and absent elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

ROUND = 1 << 26  # bytes of parameters that an owner updates before it sends them; the next ones overlap with that

_rows: tuple[dist.ProcessGroup, int] | None = (
    None  # while a rule sees some rows of a parameter: who has the others; all
)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: all of a plain one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_cut(param: Tensor) -> bool:
    """Whether ranks hold different rows of it."""
    return isinstance(param, DTensor)


def zeros(param: Tensor, shape: Sequence[int], dtype: torch.dtype, *, by_row: bool) -> Tensor:
    """Zeros beside param: with by_row, cut along the first dimension as param is."""
    if not (by_row and isinstance(param, DTensor)):
        return torch.zeros(tuple(shape), dtype=dtype, device=local(param).device)
    part = torch.zeros((len(local(param)), *shape[1:]), dtype=dtype, device=local(param).device)
    strides = tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1]
    return DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=torch.Size(shape), stride=strides
    )


def group_of(param: Tensor) -> dist.ProcessGroup | None:
    """The ranks that share the rows of a parameter, None if it is plain.

    Raises: ValueError: if it is cut in another way than along its rows, once.
    """
    if not isinstance(param, DTensor):
        return None
    cut = [(axis, p) for axis, p in enumerate(param.placements) if not p.is_replicate()]
    if len(cut) != 1 or cut[0][1] != Shard(0):
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} is placed as {param.placements}; optimizers here take "
            "parameters cut along their first dimension, once (fully_shard's way)"
        )
    mesh: DeviceMesh = param.device_mesh
    return mesh.get_group(cut[0][0])


def groups_of(param: Tensor) -> list[dist.ProcessGroup]:
    """The groups of ranks that, one after the other, reach all ranks with rows of a parameter, copies (HSDP) too."""
    if not isinstance(param, DTensor):
        return []
    mesh: DeviceMesh = param.device_mesh
    return [mesh.get_group(axis) for axis in range(mesh.ndim)]


@contextmanager
def rows_of(param: Tensor) -> Iterator[None]:
    """While entered, whole() sums over the ranks that hold the rows of param."""
    global _rows
    group = group_of(param)
    _rows = None if group is None else (group, param.shape[0])
    try:
        yield
    finally:
        _rows = None


def whole(part: Tensor) -> Tensor:
    """A sum over rows, made one over all ranks' rows; the tensor itself, in place, where there are no others."""
    if _rows is not None:
        dist.all_reduce(part, group=_rows[0])
    return part


def n_rows(tensor: Tensor) -> int:
    """Rows of a tensor with the parameter's rows, those on other ranks included."""
    return len(tensor) if _rows is None else _rows[1]


def total(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, for what is measured; the tensor itself without one."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor


class Whole(NamedTuple):
    """A parameter and its gradient as its owner updates them: all rows."""

    param: Tensor  # the parameter that the optimizer knows
    values: Tensor  # to be updated in place
    grad: Tensor


class Owners:
    """Which rank of a group computes which parameter, and the exchange of what it computed.

    costs: relative, of each parameter. Longest first, each goes to the rank with the least so far, ties to the lower
    rank: the same on all ranks.
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

    def wholes(self, params: Sequence[Tensor]) -> Iterator[Whole]:
        """This rank's among the params, one at a time; what the caller makes of values reaches all ranks by the end.

        All ranks must iterate over the same params to the end.
        """
        plan = self._plan(params)
        return self._cut_rounds(plan) if is_cut(params[0]) else self._replicated_rounds(plan)

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

    def _replicated_rounds(self, plan: Sequence[Sequence[Sequence[Tensor]]]) -> Iterator[Whole]:
        unfinished = None
        for by_rank in plan:
            for param in by_rank[self.rank]:
                assert param.grad is not None
                yield Whole(param, param.detach(), param.grad)
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
        everybodys = mine.new_empty(self.world_size * most)
        work = dist.all_gather_single(everybodys, mine, group=self.group, async_op=True)
        return work, everybodys.view(self.world_size, most)

    def _receive(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, everybodys: Tensor) -> None:
        work.wait()
        for rank, own in enumerate(by_rank):
            if rank != self.rank:
                _copy_out_of(everybodys[rank], [_bytes(param.detach()) for param in own])

    def _cut_rounds(self, plan: Sequence[Sequence[Sequence[Tensor]]]) -> Iterator[Whole]:
        """Rows go to the owner and come back; a round's rows travel while the round before is computed."""
        ahead = self._collect(plan[0])
        unfinished = None
        for r, by_rank in enumerate(plan):
            (work, received), ahead = ahead, self._collect(plan[r + 1]) if r + 1 < len(plan) else ahead
            work.wait()
            wholes = self._assembled(by_rank[self.rank], received)
            yield from wholes
            returning = self._give_back(by_rank, wholes)
            if unfinished is not None:
                self._take_back(*unfinished)
            unfinished = (by_rank, *returning)
        if unfinished is not None:
            self._take_back(*unfinished)

    def _collect(self, by_rank: Sequence[Sequence[Tensor]]) -> tuple[dist.Work, list[Tensor]]:
        """Starts sending this rank's rows of values and gradients to the owners."""
        parts = [[_bytes(local(t)) for p in own for t in (p.detach(), _grad(p))] for own in by_rank]
        incoming = [2 * sum(self._n_bytes(p, rank) for p in by_rank[self.rank]) for rank in range(self.world_size)]
        return self._exchange(parts, incoming)

    def _assembled(self, own: Sequence[Tensor], received: Sequence[Tensor]) -> list[Whole]:
        found, at = [], [0] * self.world_size
        for param in own:
            pair = []
            for _ in range(2):
                rows = [received[s][at[s] : at[s] + self._n_bytes(param, s)] for s in range(self.world_size)]
                at = [start + len(part) for start, part in zip(at, rows, strict=True)]
                pair.append(torch.cat(rows).view(param.dtype).view(param.shape))
            found.append(Whole(param, *pair))
        return found

    def _give_back(
        self, by_rank: Sequence[Sequence[Tensor]], wholes: Sequence[Whole]
    ) -> tuple[dist.Work, list[Tensor]]:
        flat = [
            (_bytes(each.values), list(accumulate(self._n_bytes(each.param, s) for s in range(self.world_size))))
            for each in wholes
        ]
        parts = [
            [v[ends[s] - self._n_bytes(each.param, s) : ends[s]] for (v, ends), each in zip(flat, wholes, strict=True)]
            for s in range(self.world_size)
        ]
        incoming = [sum(self._n_bytes(p, self.rank) for p in own) for own in by_rank]
        return self._exchange(parts, incoming)

    def _take_back(self, by_rank: Sequence[Sequence[Tensor]], work: dist.Work, received: Sequence[Tensor]) -> None:
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
        """Of the rows of param that a rank of the group holds: as many as torch.chunk gives it."""
        rows, most = param.shape[0], -(-param.shape[0] // self.world_size)
        held = max(0, min(most, rows - rank * most))
        return held * (param.numel() // max(rows, 1)) * param.element_size()


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor; another's is copied."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _copy_into(joined: Tensor, parts: Sequence[Tensor]) -> None:
    at = 0
    for part in parts:
        joined[at : at + len(part)] = part
        at += len(part)


def _copy_out_of(joined: Tensor, parts: Sequence[Tensor]) -> None:
    at = 0
    for part in parts:
        part.copy_(joined[at : at + len(part)])
        at += len(part)
