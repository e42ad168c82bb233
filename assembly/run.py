"""The parts of a run, how far it is, and what follows from that."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from configs import RunConfig
from data import Batch, TokenDataset, TokenLoader, eval_batches
from model import LanguageModel
from model.flops import flops_per_token
from optim.ensemble import OptimizerSet
from trainer.checkpoint import CheckpointStore
from trainer.clock import Clock
from trainer.divergence import Divergence
from trainer.metrics import Sink
from trainer.parallel import Strategy
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule

READING = "reading data"  # what a rank is busy with that waits for a disk


@dataclass
class Run:
    """The parts of a run, and how far it is."""

    config: RunConfig
    directory: RunDirectory
    train_data: TokenDataset
    val_data: TokenDataset
    strategy: Strategy
    loader: TokenLoader
    model: LanguageModel
    optimizer: OptimizerSet
    schedule: Schedule
    store: CheckpointStore
    divergence: Divergence
    clock: Clock
    sinks: list[Sink] = field(default_factory=list)
    clipped_steps: int | Tensor = 0  # whose gradient was longer than grad_clip; counted on the device
    step: int = 0  # the next one to run
    losses: dict[str, float] = field(default_factory=dict)  # the last ones measured
    hints: list[str] = field(default_factory=list)  # what the optimizers' last diagnostics suggest


def eval_slice(run: Run) -> Iterator[Batch]:
    """The fixed slice, in micro-batches."""
    batches = eval_batches(
        run.val_data,
        seq_len=run.model.block_size,
        n_sequences=run.config.eval_sequences,
        micro_batch=run.config.micro_batch,
        device=run.strategy.device,
        data_rank=run.strategy.data_rank,
        data_ranks=run.strategy.data_ranks,
    )
    return run.strategy.watch.each(READING, batches)


def counters(run: Run) -> dict[str, float]:
    """Where the run stands before its next step."""
    seq_len = run.model.block_size
    return {
        "step": run.step,
        "tokens": run.step * run.config.global_batch * seq_len,
        "seconds": run.clock.seconds,
        "flops": run.strategy.sequences_computed * seq_len * flops_per_token(run.model),
    }


def data_checksums(run: Run) -> dict[str, str]:
    """What the data consist of, by split."""
    return {"train": run.train_data.checksum, "val": run.val_data.checksum}


def divergence_of(config: RunConfig, strategy: Strategy, saved: dict[str, Any] | None = None) -> Divergence:
    """What ends the run if it diverges."""
    return Divergence(
        strategy.device, max_nonfinite=config.max_nonfinite, spike_factor=config.spike_factor, saved=saved
    )


def full_parameters(run: Run) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters in the order of their names, gathered where they are sharded."""
    for name, parameter in sorted(run.model.named_parameters()):
        yield name, run.strategy.full_tensor(parameter)
        run.strategy.watch.progress()
