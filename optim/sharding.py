"""Optimizers across ranks; the only module here that knows DTensor.

A parameter may be plain (one process, or DDP: the same on all ranks) or a DTensor whose rows are sharded (FSDP2; with
HSDP the shards are replicated on groups of ranks). What the engine does with it follows from the rule:
    elementwise    every rank updates the numbers that it holds
    splits_rows    every rank updates the rows that it holds; sums and maxima over rows go through the Rows that
                   direction is given
    neither        owner computes: owners.py assigns every full parameter to one rank, which alone keeps its state and
                   computes; the others receive the outcome. The arithmetic is that of one process, bit for bit
State follows its parameter: of its shape, or one number per row, it is a DTensor sharded alike; anything else is the
same on all ranks; that of an owner is a plain tensor there and absent elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel


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
        if self.n is None:
            return tensor.mean()
        return self.sum(tensor.sum()) / (self.n * math.prod(tensor.shape[1:]))

    def max(self, part: Tensor) -> Tensor:
        """Maxima over this rank's rows, made those over the rows of all ranks, in place.

        Every rank of the group must call this.
        """
        return largest(part, self.group)


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


def unwrapped(model: nn.Module) -> tuple[nn.Module, dist.ProcessGroup | None]:
    """A model without DDP's wrapper, and the ranks that train it: DDP's, or all that torch.distributed connects."""
    if isinstance(model, DistributedDataParallel):
        module: nn.Module = model.module
        group: dist.ProcessGroup = model.process_group
        return module, group
    return model, dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank in a group, and how many there are; (0, 1) without one."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def largest(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The maxima over the ranks of a group, in place; the tensor as it is without one."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor


def total(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, in place; the tensor as it is without one."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor
