"""The parts of a run, its progress, and what is computed from them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from assembly.cost import run_flops
from configs import RunConfig
from configs.start import Origin
from data import Batch, TokenDataset, TokenLoader, eval_batches, load_tokenizer
from data.windows import apportioned, most_sequences
from model import LanguageModel
from optim.ensemble import OptimizerSet
from trainer.checkpoint import CheckpointStore
from trainer.clock import Clock
from trainer.divergence import Divergence
from trainer.metrics import Sink
from trainer.parallel import Strategy
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule

READING = "reading data"  # what Watch.busy says while a rank waits for the disk with the data


@dataclass
class Run:
    """The parts of a run, and its progress."""

    config: RunConfig
    directory: RunDirectory
    train_data: TokenDataset
    val_data: TokenDataset
    strategy: Strategy
    loader: TokenLoader
    model: LanguageModel
    flops_per_token: int
    optimizer: OptimizerSet
    schedule: Schedule
    store: CheckpointStore
    divergence: Divergence
    clock: Clock
    bytes_per_token: float = 0.0  # of the text of the fixed part of the validation set
    origin: Origin | None = None
    sinks: list[Sink] = field(default_factory=list)
    clipped_steps: int | Tensor = 0  # steps whose gradient norm exceeded grad_clip; a tensor on the device
    step: int = 0  # the next one to run
    losses: dict[str, float] = field(default_factory=dict)  # the newest of train/loss, val/loss and val/bits_per_byte
    hints: list[str] = field(default_factory=list)  # advice that the optimizers derive from their newest diagnostics


def validation_batches(run: Run) -> Iterator[Batch]:
    """Yields this rank's micro-batches of the fixed part of the validation set."""
    strategy = run.strategy
    ranks = {"data_rank": strategy.data_rank, "data_ranks": strategy.data_ranks}
    return strategy.watch.each(READING, eval_batches(run.val_data, device=strategy.device, **_fixed_part(run), **ranks))


def count_bytes(run: Run) -> float:
    """Returns the mean number of bytes of text per token that the evaluation predicts, over all ranks' tokens."""
    lengths = load_tokenizer(run.val_data.path).byte_lengths()
    batches = eval_batches(run.val_data, device="cpu", **_fixed_part(run))
    means = [(lengths[batch.targets.numpy()].mean(), len(batch.indices)) for batch in batches]
    return float(sum(mean * n for mean, n in means) / sum(n for _, n in means))


def _fixed_part(run: Run) -> dict[str, int]:
    """Which windows of the validation set are evaluated, and how many at once."""
    config = run.config
    seq_len = run.model.block_size
    n = min(config.eval_sequences, max(most_sequences(run.val_data.parts, seq_len), 1))
    return {"seq_len": seq_len, "n_sequences": n, "micro_batch": config.micro_batch}


def few_sequences(run: Run) -> Iterator[str]:
    """Yields a line where fewer sequences are evaluated than are asked for, or none of a part of a mixture."""
    asked, n = run.config.eval_sequences, _fixed_part(run)["n_sequences"]
    if n < asked:
        yield f"evaluating on {n} sequences, not on eval_sequences={asked}: the validation set has no more"
    parts = run.val_data.parts
    if none := [part.name for part, own in zip(parts, apportioned(parts, n), strict=True) if not own]:
        yield f"evaluating on {n} sequences, of which none is of {', '.join(none)}: their share is too small"


def counters(run: Run) -> dict[str, float]:
    """Returns the run's counters before its next step: step, tokens, seconds and flops."""
    seq_len = run.model.block_size
    return {
        "step": run.step,
        "tokens": run.step * run.config.global_batch * seq_len,
        "seconds": run.clock.seconds,
        "flops": run_flops(run.flops_per_token, seq_len, run.config.global_batch, run.optimizer, run.step),
    }


def data_checksums(run: Run) -> dict[str, str]:
    """Returns the checksums of the data, by split."""
    return {"train": run.train_data.checksum, "val": run.val_data.checksum}


def origin_facts(run: Run) -> dict[str, Any] | None:
    """Returns where the run began, for env.json and checkpoints; None: at step 0."""
    return None if run.origin is None else asdict(run.origin)


def divergence_of(config: RunConfig, strategy: Strategy, saved: dict[str, Any] | None = None) -> Divergence:
    """Returns what notices that the run diverges. saved: its state in a checkpoint."""
    return Divergence(
        strategy.device, max_nonfinite=config.max_nonfinite, spike_factor=config.spike_factor, saved=saved
    )


def full_parameters(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's parameters as full tensors, in the order of their names; every rank must call this."""
    for name, parameter in sorted(run.model.named_parameters()):
        yield name, run.strategy.full_tensor(parameter)
        run.strategy.watch.progress()
