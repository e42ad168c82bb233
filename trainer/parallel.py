"""Where a run computes: the strategy owns the device, the precision and everything that crosses ranks.

The loop calls a strategy and never asks which one it is:
    Single   one process on one device
    DDP      the model on every rank, gradients averaged
    FSDP2    parameters, gradients and optimizer state cut along rows across ranks, gathered block by block; also HSDP
What they compute is the same, up to the order of sums over ranks. Parameters stay fp32 (where cut: a cut of fp32), and
the global loss, gradient norm and evaluation are those of the global batch.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from typing_extensions import override

from trainer.heartbeat import Heartbeat, Watch
from trainer.ranks import Ranks, started_processes

BUCKET = 1 << 24  # numbers of gradients that cross ranks at once, where we do it ourselves
COMPRESSIONS = (None, "bf16", "powersgd")
POWERSGD_FROM = 1000  # steps; before, gradients change too fast for it, as its authors found
# Expensive to make again; "selective" activation checkpointing keeps these and repeats what lies between.
KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


class Rows(Protocol):
    """What a strategy needs of a micro-batch; data.Batch is one."""

    @property
    def rows(self) -> Sequence[int]:
        """Index of each row in the global batch; -1 for a row that counts for nothing."""


LossFn = Callable[[nn.Module, Any], Tensor]  # the mean over the micro-batch, 0-dim


class Strategy(ABC):
    """What all have in common, computed on one rank.

    device: of this rank. precision: "bf16" runs the forward pass under autocast, parameters stay fp32; "fp32" does not.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device, precision: str, compiled: bool) -> None:
        self.ranks, self.device, self.precision, self.compiled = ranks, device, precision, compiled
        self.sequences_computed = 0  # by forward_backward, on all ranks
        self._model: nn.Module = nn.Identity()
        self.watch = Watch()

    @property
    def rank(self) -> int:
        """This process's, of world_size."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.ranks.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.ranks.is_main

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that have the same plain parameters and gradients, None if there are no others."""
        return None

    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        """Brings the model to the device, in place; its parameters are the ones to optimize afterwards.

        blocks: the modules of the model that are alike, in order. activation_checkpointing: "none"; "full" keeps a
        block's input alone and computes the block again in the backward pass; "selective" also keeps its matrix
        products and attention.
        """
        self._model = model.to(self.device)
        for block in blocks:
            _checkpoint_activations(block, activation_checkpointing)

    @abstractmethod
    def close(self) -> None:
        """Lets go of the other ranks, who do too."""

    @abstractmethod
    def forward_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        """Adds to .grad the gradient of loss_fn's mean over `sequences` rows, and returns that mean.

        batches: this rank's part of those rows, as many micro-batches on every rank. loss_fn gives the mean over one
        micro-batch; each counts by its rows, so how the rows are cut does not matter. Ranks meet once, at the end.
        Returns a detached 0-dim fp32 tensor on the device, the same on all ranks.
        """

    def extra_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        """As forward_backward, for a second pass whose gradients must not be compressed (curvature)."""
        return self.forward_backward(batches, loss_fn, sequences)

    def keep_finite(self, is_finite: Tensor) -> None:  # noqa: B027  # most strategies keep nothing
        """Undoes what a step that is not finite (0-dim bool) left in state of the strategy's own, on the device."""

    def has_finite_parameters(self) -> bool:
        """Whether no number of any parameter is infinite or nan, on any rank; waits for the device."""
        parts = [p.to_local() if isinstance(p, DTensor) else p.detach() for p in self._model.parameters()]
        return all(self.ranks.gather(bool(torch.stack([part.isfinite().all() for part in parts]).all())))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def clip_grad_norm_(self, max_norm: float | None) -> Tensor:
        """Scales all gradients so that their global norm is at most max_norm (None: leaves them); the norm before."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = self.whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        self.watch.beat()
        return norm

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Rows], loss_fn: LossFn) -> float:
        """loss_fn's mean over the rows of all ranks, in evaluation mode; the model goes back to training mode.

        batches: this rank's, as many on every rank. The sum is exact, so it does not depend on who had which.
        """
        self._model.eval()
        found = []
        for batch in batches:
            with self.autocast():
                loss = loss_fn(self._model, batch)
            found.append((loss, sum(row >= 0 for row in batch.rows)))
            self.watch.beat()
        self._model.train()
        sums = self.ranks.gather([(float(loss) * rows, rows) for loss, rows in found])
        return math.fsum(s for own in sums for s, rows in own if rows) / sum(rows for own in sums for _, rows in own)

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor that may be cut across ranks, in full; all ranks must ask."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def synchronize(self) -> None:
        """Waits until the device has done everything it was given, for clocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _accumulate(
        self,
        batches: Iterable[Rows],
        loss_fn: LossFn,
        sequences: int,
        model: nn.Module,
        *,
        scale: int = 1,
        on_last: Callable[[bool], AbstractContextManager[Any]] = lambda is_last: nullcontext(),
    ) -> Tensor:
        """This rank's share of the mean, its gradient times scale added to .grad; on_last: a context of each pass."""
        total, own = torch.zeros((), device=self.device), list(batches)
        self.watch.beat()  # ahead of ranks that have no batches yet
        for n, batch in enumerate(own, 1):
            with on_last(n == len(own)):
                with self.autocast():
                    loss = loss_fn(model, batch) * (sum(row >= 0 for row in batch.rows) / sequences)
                (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            total += loss.detach()
            self.watch.beat()
        self.sequences_computed += sequences
        return total


class Single(Strategy):
    """One process on one device.

    Raises: ValueError: if a launcher started several.
    """

    def __init__(self, *, device: torch.device, precision: str, compiled: bool, timeout_seconds: float = 600.0) -> None:
        if (n := started_processes()) > 1:
            raise ValueError(f"parallel=single, but {n} processes were started; use parallel=ddp or parallel=fsdp2")
        super().__init__(Ranks(), device=device, precision=precision, compiled=compiled)

    @override
    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        super().prepare(model, blocks, activation_checkpointing)
        if self.compiled:
            model.compile()

    @override
    def close(self) -> None:
        pass

    @override
    def forward_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        return self._accumulate(batches, loss_fn, sequences, self._model)


class Joined(Strategy):
    """What the strategies of several ranks share; without a launcher a world of one.

    timeout_seconds: without progress, after which the run ends and names the rank that hangs.
    """

    def __init__(self, *, device: torch.device, precision: str, compiled: bool, timeout_seconds: float = 600.0) -> None:
        ranks = Ranks.join(device.type, 3 * timeout_seconds)
        if device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        super().__init__(ranks, device=device, precision=precision, compiled=compiled)
        self.watch = Heartbeat(ranks, timeout_seconds)
        ranks.busy = self.watch.busy

    @override
    def close(self) -> None:
        self.watch.close()
        self.ranks.leave()

    def _summed(self, part: Tensor) -> Tensor:
        dist.all_reduce(part)
        self.watch.beat()
        return part


class DDP(Joined):
    """The model on every rank; torch's DistributedDataParallel averages gradients while the backward pass goes on.

    compression: of gradients on their way, by torch's hooks: null; "bf16", on CUDA; "powersgd" (Vogels et al., NeurIPS
    2019, arXiv:1905.13727; rank 2, after 1000 steps, its error feedback starts anew when a run continues).

    Raises: ValueError: for another compression, or bf16 without CUDA.
    """

    def __init__(self, *, compression: str | None = None, **settings: Any) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"parallel.compression={compression!r} must be one of null, bf16, powersgd")
        if compression == "bf16" and settings["device"].type != "cuda":
            raise ValueError(
                "parallel.compression=bf16 needs CUDA devices: torch's hook is NCCL's; use null or powersgd"
            )
        super().__init__(**settings)
        self._compression = compression
        self._replica: DistributedDataParallel
        self._powersgd: PowerSGD | None = None

    @property
    @override
    def group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.world_size > 1 else None

    @override
    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        super().prepare(model, blocks, activation_checkpointing)
        if self.compiled:
            model.compile()
        ids = None if self.device.index is None else [self.device.index]
        self._replica = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        if self._compression == "bf16":
            self._replica.register_comm_hook(None, default_hooks.bf16_compress_hook)
        elif self._compression == "powersgd":
            self._powersgd = PowerSGD()
            self._replica.register_comm_hook(self._powersgd.state, powerSGD_hook.powerSGD_hook)

    @override
    def keep_finite(self, is_finite: Tensor) -> None:
        if self._powersgd is not None:
            self._powersgd.keep_finite(is_finite)

    @override
    def forward_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        def on_last(is_last: bool) -> AbstractContextManager[Any]:
            return nullcontext() if is_last else self._replica.no_sync()

        total = self._accumulate(
            batches, loss_fn, sequences, self._replica, scale=self.world_size, on_last=on_last
        )  # scaled, as torch's averages
        return self._summed(total)

    @override
    def extra_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        """As forward_backward, without torch's wrapper around the model, whose hooks may compress gradients."""
        total = self._accumulate(batches, loss_fn, sequences, self._model)
        self._sum_gradients()
        return self._summed(total)

    def _sum_gradients(self) -> None:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        for bucket in _buckets(gradients):
            joined = torch.cat([grad.reshape(-1) for grad in bucket])
            dist.all_reduce(joined)
            parts = joined.split([grad.numel() for grad in bucket])  # type: ignore[no-untyped-call]
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])


class PowerSGD:
    """torch's compression with its memory from step to step: what it left out of the gradients, and their factors."""

    def __init__(self) -> None:
        self.state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=POWERSGD_FROM)
        self._last_good: dict[int, Tensor] = {}  # by bucket: the right factors, of the last step that was finite

    def keep_finite(self, is_finite: Tensor) -> None:
        """After a step that is not finite (0-dim bool) nothing counts as left out, and the factors are the old ones."""
        for bucket, left_out in self.state.error_dict.items():
            left_out.masked_fill_(~is_finite, 0.0)
            self.state.p_memory_dict[bucket].masked_fill_(~is_finite, 0.0)  # made anew from the right ones every step
        for bucket, right in self.state.q_memory_dict.items():
            if bucket not in self._last_good:  # what a first step starts from, the same on all ranks
                generator = torch.Generator().manual_seed(bucket)
                self._last_good[bucket] = torch.randn(right.shape, generator=generator).to(right)
            right.copy_(torch.where(is_finite, right, self._last_good[bucket]))
            self._last_good[bucket].copy_(right)


class FSDP2(Joined):
    """torch's fully_shard on every block and on the rest: each rank holds rows of all parameters, gradients and state.

    mesh: null for one copy over all ranks, or [copies, ranks per copy] (HSDP). With precision bf16 a block's parameters
    travel in bf16, those of embedding and head in fp32, gradients always in fp32.

    Raises: ValueError: if the mesh does not have world_size ranks.
    """

    def __init__(self, *, mesh: Sequence[int] | None = None, **settings: Any) -> None:
        n = started_processes()
        if mesh is not None and (len(mesh) != 2 or math.prod(mesh) != n):
            raise ValueError(f"parallel.mesh={list(mesh)} must be [copies, ranks per copy], of {n} ranks in all")
        super().__init__(**settings)
        self._shape = (n,) if mesh is None else tuple(mesh)

    @override
    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        super().prepare(model, blocks, activation_checkpointing)
        names = ("shard",) if len(self._shape) == 1 else ("replicate", "shard")
        mesh = init_device_mesh(self.device.type, self._shape, mesh_dim_names=names)
        travels = torch.bfloat16 if self.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=travels, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            if self.compiled:
                block.compile()
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody changes the logits

    @override
    def forward_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        assert isinstance(self._model, FSDPModule)
        synchronizes = self._model.set_requires_gradient_sync

        @contextmanager
        def on_last(is_last: bool) -> Iterator[None]:
            synchronizes(is_last)
            yield

        total = self._accumulate(
            batches, loss_fn, sequences, self._model, scale=self.world_size, on_last=on_last
        )  # scaled, as torch's averages
        return self._summed(total)


def _checkpoint_activations(block: nn.Module, how: str) -> None:
    """Makes the block forget activations; its name and those of its parameters stay."""
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keeps)
    block.forward = partial(checkpoint, block.forward, **settings)


def _keeps(context: Any, operation: Any, *arguments: Any, **settings: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive tensors of about BUCKET numbers."""
    found: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if sum(t.numel() for t in found[-1]) >= BUCKET:
            found.append([])
        found[-1].append(tensor)
    return [bucket for bucket in found if bucket]
