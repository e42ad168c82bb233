"""Where a run computes: the strategy owns the device, the precision and the communication between ranks.

The loop calls a strategy and never asks which one it is:
    Single   one process on one device
    DDP      the full model on every rank, gradients averaged
    FSDP2    parameters, gradients and optimizer state sharded along dimension 0, gathered block by block; also HSDP
All compute the same, up to the order of sums over ranks. Parameters (or their shards) stay fp32; loss, gradient norm
and evaluation are those of the global batch.
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

from trainer.environment import set_precision_of_products, synchronize
from trainer.heartbeat import Heartbeat, Watch
from trainer.profiling import Phases
from trainer.ranks import Ranks, started_processes

BUCKET = 1 << 24  # numbers of gradients that are summed over ranks at once, where torch's DDP does not do it
COMPRESSIONS = (None, "bf16", "powersgd")
POWERSGD_FROM = 1000  # the first step it compresses: its authors found that gradients change too fast before
# Expensive to recompute: "selective" activation checkpointing keeps their outputs and recomputes everything else.
KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


class MicroBatch(Protocol):
    """What a strategy needs of a micro-batch; data.Batch is one."""

    @property
    def indices(self) -> Sequence[int]:
        """Index of each sequence within the global batch; -1 for padding, which is computed but not counted."""


LossFn = Callable[[nn.Module, Any], Tensor]  # the mean over the micro-batch, 0-dim


class Strategy(ABC):
    """What all strategies have in common.

    device: of this rank. precision: "bf16" runs the forward pass under autocast, parameters stay fp32, and on CUDA
    products of fp32 matrices are TensorFloat32's, for the whole process; "fp32" does neither.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device, precision: str, compiled: bool) -> None:
        self.ranks, self.device, self.precision, self.compiled = ranks, device, precision, compiled
        set_precision_of_products(precision, device)
        self._model: nn.Module = nn.Identity()
        self.watch, self.phases = Watch(), Phases()

    @property
    def rank(self) -> int:
        """This process's number, from 0 to world_size - 1."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return self.ranks.world_size

    @property
    def data_rank(self) -> int:
        """Which of the data_ranks equal shares of every global batch this process reads."""
        return self.ranks.rank

    @property
    def data_ranks(self) -> int:
        """The number of shares of a global batch: of all strategies here one per rank.

        A strategy whose ranks compute the same sequences together (tensor parallelism) has fewer.
        """
        return self.ranks.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.ranks.is_main

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds a part of the parameters, which only a call of the model puts together."""
        return False

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same full parameters and gradients, None if there are no others."""
        return None

    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        """Moves the model to the device, in place; its parameters are the ones to optimize afterwards.

        blocks: the modules of the model that are alike, in order. activation_checkpointing: "none"; "full" keeps a
        block's input alone and recomputes the block in the backward pass; "selective" also keeps its matrix products
        and attention.
        """
        self._model = model.to(self.device)
        for block in blocks:
            _checkpoint_activations(block, activation_checkpointing)

    @abstractmethod
    def close(self) -> None:
        """Ends the communication with the other ranks; every rank must call this."""

    @abstractmethod
    def forward_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        """Adds to .grad the gradient of loss_fn's mean over `sequences` sequences, and returns that mean.

        batches: this rank's share of those sequences, the same number of micro-batches on every rank. loss_fn returns
        the mean over one micro-batch, which is weighted by its number of sequences, so their sizes do not matter.
        Gradients are summed over ranks once, after the last micro-batch. Returns a detached 0-dim fp32 tensor on the
        device, the same on all ranks.
        """

    def extra_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        """As forward_backward, for another pass whose gradients must not be compressed (curvature)."""
        return self.forward_backward(batches, loss_fn, sequences)

    def keep_finite(self, is_finite: Tensor) -> None:  # noqa: B027  # most strategies keep no state
        """Undoes what the step left in the strategy's own state unless is_finite (0-dim bool, on the device)."""

    def has_finite_parameters(self) -> bool:
        """Whether all parameters are finite on all ranks; every rank must call this; waits for the device."""
        parts = [p.to_local() if isinstance(p, DTensor) else p.detach() for p in self._model.parameters()]
        return all(self.ranks.gather(bool(torch.stack([part.isfinite().all() for part in parts]).all())))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which every forward pass runs."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def clip_grad_norm_(self, max_norm: float | None) -> Tensor:
        """Scales all gradients to a global norm of at most max_norm (None: leaves them); returns the norm before."""
        with self.phases.named("clip"):
            parameters = [p for p in self._model.parameters() if p.grad is not None]
            norm = self.full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            if max_norm is not None and not (norm.device.type == "cpu" and _is_short(norm, max_norm)):
                nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        self.watch.progress()
        return norm

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch], loss_fn: LossFn) -> float:
        """Returns loss_fn's mean over the sequences of all ranks, in evaluation mode; then back to training mode.

        batches: this rank's, the same number on every rank. The sum over micro-batches is exact, so it does not depend
        on which rank has which.
        """
        self._model.eval()
        found = []
        for batch in batches:
            with self.autocast():
                loss = loss_fn(self._model, batch)
            found.append((loss, _counted(batch)))
            self.watch.progress()
        self._model.train()
        sums = self.ranks.gather([(float(loss) * n, n) for loss, n in found])
        return math.fsum(s for own in sums for s, n in own if n) / sum(n for own in sums for _, n in own)

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Returns the full tensor, gathered if it is sharded; every rank must call this."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def synchronize(self) -> None:
        """Waits until the device has done all its work, for clocks."""
        synchronize(self.device)

    def _accumulate(
        self,
        batches: Iterable[MicroBatch],
        loss_fn: LossFn,
        sequences: int,
        model: nn.Module,
        *,
        scale: int = 1,
        on_last: Callable[[bool], AbstractContextManager[Any]] = lambda is_last: nullcontext(),
    ) -> Tensor:
        """Returns this rank's share of the mean, and adds its gradient times scale to .grad.

        on_last: makes the context of each pass, from whether it is the last one.
        """
        total, own = torch.zeros((), device=self.device), list(batches)
        self.watch.progress()  # so that ranks which still wait for their batches have less, see heartbeat.py
        for n, batch in enumerate(own, 1):
            with on_last(n == len(own)):
                with self.phases.named("forward"), self.autocast():
                    loss = loss_fn(model, batch) * (_counted(batch) / sequences)
                with self.phases.named("backward"):
                    (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            total += loss.detach()
            self.watch.progress()
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
    def forward_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        return self._accumulate(batches, loss_fn, sequences, self._model)


class Distributed(Strategy):
    """What the strategies of several ranks have in common; without a launcher there is one rank.

    timeout_seconds: the run ends after so long without progress, and names the rank that hangs.

    Raises: ValueError: if torch cannot exchange tensors between devices of that type.
    """

    def __init__(self, *, device: torch.device, precision: str, compiled: bool, timeout_seconds: float = 600.0) -> None:
        ranks = Ranks.join(device.type, 3 * timeout_seconds)
        if device.type != "cpu":
            device = torch.device(device.type, ranks.local_rank)
        super().__init__(ranks, device=device, precision=precision, compiled=compiled)
        self.watch = Heartbeat(ranks, timeout_seconds)
        ranks.busy = self.watch.busy

    @override
    def close(self) -> None:
        self.watch.close()
        self.ranks.leave()

    def _summed(self, part: Tensor) -> Tensor:
        dist.all_reduce(part)
        self.watch.progress()
        return part


class DDP(Distributed):
    """The full model on every rank; torch's DistributedDataParallel averages gradients during the backward pass.

    compression: of gradients while they are averaged, by torch's hooks: null; "bf16", on CUDA; "powersgd" (Vogels et
    al., NeurIPS 2019, arXiv:1905.13727; rank 2, after 1000 steps; its error feedback is 0 when a run continues).

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
    def forward_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        def on_last(is_last: bool) -> AbstractContextManager[Any]:
            return nullcontext() if is_last else self._replica.no_sync()

        total = self._accumulate(
            batches, loss_fn, sequences, self._replica, scale=self.world_size, on_last=on_last
        )  # scaled, as torch averages gradients
        return self._summed(total)

    @override
    def extra_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        """As forward_backward, without torch's wrapper around the model, whose hooks may compress gradients."""
        total = self._accumulate(batches, loss_fn, sequences, self._model)
        self._sum_gradients()
        return self._summed(total)

    def _sum_gradients(self) -> None:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            dist.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in bucket])  # type: ignore[no-untyped-call]
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])


class PowerSGD:
    """The state of torch's PowerSGD hook from step to step: error feedback, and the factors of the gradients."""

    def __init__(self) -> None:
        self.state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=POWERSGD_FROM)
        self._last_good: dict[int, Tensor] = {}  # by bucket: the right factors after the last finite step

    def keep_finite(self, is_finite: Tensor) -> None:
        """Unless is_finite (0-dim bool): sets the error feedback to 0, the factors to those of the last finite step."""
        for bucket, error in self.state.error_dict.items():
            error.masked_fill_(~is_finite, 0.0)
            self.state.p_memory_dict[bucket].masked_fill_(
                ~is_finite, 0.0
            )  # computed from the right factors in every step
        for bucket, right in self.state.q_memory_dict.items():
            if bucket not in self._last_good:  # the first step's start, the same on all ranks
                generator = torch.Generator().manual_seed(bucket)
                self._last_good[bucket] = torch.randn(right.shape, generator=generator).to(right)
            right.copy_(torch.where(is_finite, right, self._last_good[bucket]))
            self._last_good[bucket].copy_(right)


class FSDP2(Distributed):
    """torch's fully_shard on blocks and the rest: each rank holds a shard of every parameter, gradient and state.

    mesh: null to shard over all ranks, or [copies, ranks per copy] (HSDP). With precision bf16 the parameters of blocks
    are gathered in bf16, those of embedding and head in fp32; gradients are always reduced in fp32.

    Raises: ValueError: if the mesh does not have world_size ranks.
    """

    def __init__(self, *, mesh: Sequence[int] | None = None, **settings: Any) -> None:
        n = started_processes()
        if mesh is not None and (len(mesh) != 2 or math.prod(mesh) != n):
            raise ValueError(f"parallel.mesh={list(mesh)} must be [copies, ranks per copy], of {n} ranks in all")
        super().__init__(**settings)
        self._shape = (n,) if mesh is None else tuple(mesh)

    @property
    @override
    def is_sharded(self) -> bool:
        return True

    @override
    def prepare(
        self, model: nn.Module, blocks: Sequence[nn.Module] = (), activation_checkpointing: str = "none"
    ) -> None:
        super().prepare(model, blocks, activation_checkpointing)
        names = ("shard",) if len(self._shape) == 1 else ("replicate", "shard")
        mesh = init_device_mesh(self.device.type, self._shape, mesh_dim_names=names)
        gathered = torch.bfloat16 if self.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            if self.compiled:
                block.compile()
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        model.register_forward_hook(_shard_again)
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view"
        )  # no code of ours changes the logits in place

    @override
    def forward_backward(self, batches: Iterable[MicroBatch], loss_fn: LossFn, sequences: int) -> Tensor:
        assert isinstance(self._model, FSDPModule)
        synchronizes = self._model.set_requires_gradient_sync

        @contextmanager
        def on_last(is_last: bool) -> Iterator[None]:
            synchronizes(is_last)
            yield

        total = self._accumulate(
            batches, loss_fn, sequences, self._model, scale=self.world_size, on_last=on_last
        )  # scaled, as torch averages gradients
        return self._summed(total)


def _is_short(norm: Tensor, max_norm: float) -> bool:
    """Whether torch would multiply all gradients by 1, a pass for nothing; to ask a device would be to wait for it."""
    return bool(max_norm / (norm + 1e-6) >= 1)  # torch's coefficient


def _shard_again(model: nn.Module, inputs: Any, outputs: Any) -> None:
    """After a forward pass that no backward pass follows, which would do it: until then parameters are gathered ones.

    torch leaves those of the outermost module gathered; a checkpoint would then hold them whole, once for every rank.
    """
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()


def _checkpoint_activations(block: nn.Module, how: str) -> None:
    """Makes the block recompute activations; it keeps its name, and its parameters theirs."""
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keeps)
    block.forward = partial(checkpoint, block.forward, **settings)


def _keeps(context: Any, operation: Any, *arguments: Any, **settings: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _counted(batch: MicroBatch) -> int:
    """The number of sequences in the micro-batch, without padding."""
    return sum(index >= 0 for index in batch.indices)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups consecutive tensors to lists of about BUCKET numbers."""
    found: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if sum(t.numel() for t in found[-1]) >= BUCKET:
            found.append([])
        found[-1].append(tensor)
    return [bucket for bucket in found if bucket]
