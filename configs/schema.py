"""The settings of a run that belong to no group, their types, defaults and limits; imports nothing heavy.

A group's option is a YAML file: a plug-in's import path with its arguments (data.source, optim, schedule, parallel,
logging), or the keys of the dataclass it fills (model). A plug-in's own default lives in its constructor.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class RunConfig:
    """One training run. Counts are optimizer steps or sequences, as each name says; null means off."""

    model: Any = MISSING
    data: Any = MISSING
    optim: Any = MISSING
    schedule: Any = MISSING
    parallel: Any = MISSING
    logging: Any = MISSING

    max_steps: int = 500
    global_batch: int = 8  # sequences per optimizer step, over all ranks
    micro_batch: int = 8  # sequences per forward pass of one rank; accumulation follows from it
    grad_clip: float | None = 1.0  # largest global norm of the gradient
    seed: int = 1337  # of the initial parameters, the order of the data, dropout and label noise

    eval_every: int = 50  # steps; also before the first step and after the last
    eval_sequences: int = 128  # spread evenly over the validation set, the same ones every time
    log_every: int = 10  # steps
    save_every: int = 100  # steps; also after the last
    keep_checkpoints: int = 2  # the newest ones
    permanent_every: int | None = None  # steps; checkpoints that are never deleted
    sample_tokens: int = 200  # of the continuation printed at the end; 0: none

    max_nonfinite: int | None = 10  # steps in a row, skipped as loss or gradient is not finite, that end the run
    spike_factor: float | None = 3.0  # a loss above this times its running mean ends the run
    activation_checkpointing: str = "none"  # of each block: none; full keeps its input; selective also its products

    run_dir: str | None = None  # null: runs/<model>-<data>-<optim>-s<seed>-<hash of the configuration>
    resume: str = "auto"  # auto: continue an unfinished run; never: refuse a used folder; must: refuse a fresh one
    device: str = "auto"  # auto: CUDA if there is one; cpu; cuda
    precision: str = "auto"  # auto: bf16 where the device computes it natively; bf16 (autocast); fp32
    compile: str = "auto"  # auto: on CUDA; true; false
    timeout_seconds: float = 600.0  # how long a rank may hang before the run ends and names it


@dataclass
class DataConfig:
    """The keys of the group data: each option sets their defaults, data.prepare and the loader check their ranges."""

    source: Any
    tokenizer: Any
    root: str
    val_fraction: float | None  # null: as the source has it
    split_seed: int
    shard_tokens: int
    workers: int | None
    order: str
    prompt: str


@dataclass(frozen=True)
class Seam:
    """A place for plug-ins. methods: what a class needs to fit there; given: arguments that the run passes to it."""

    what: str
    methods: tuple[str, ...]
    given: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()  # keys of a node that are no arguments


SEAMS = {
    "optim": Seam(
        "an optimizer", ("step", "zero_grad"), frozenset({"params"}), frozenset({"decay_roles", "role_settings"})
    ),
    "schedule": Seam("a schedule", ("apply",), frozenset({"max_steps"})),
    "parallel": Seam(
        "a strategy",
        ("forward_backward", "evaluate"),
        frozenset({"device", "precision", "compiled", "timeout_seconds"}),
    ),
    "logging": Seam("a sink", ("write", "close"), frozenset({"run_dir", "settings"})),
    "data.source": Seam("a source of documents", ("documents",)),
    "data.tokenizer": Seam("a tokenizer", ("fit",)),
}
CHOICES = {
    "resume": ("auto", "never", "must"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "bf16", "fp32"),
    "compile": ("auto", "true", "false"),
    "activation_checkpointing": ("none", "selective", "full"),
}
AT_LEAST = {
    "max_steps": 1,
    "global_batch": 1,
    "micro_batch": 1,
    "seed": 0,
    "eval_every": 1,
    "eval_sequences": 1,
    "log_every": 1,
    "save_every": 1,
    "keep_checkpoints": 1,
    "permanent_every": 1,
    "sample_tokens": 0,
    "max_nonfinite": 1,
    "spike_factor": 1,
    "timeout_seconds": 1,
}
# Taken as typed, whatever it is.
FREE_TEXTS = frozenset({"data.prompt"})
# ~ and $VARIABLE are replaced here; the packages that own a path of theirs do it themselves.
PATHS = ("run_dir", "data.root")
# Below these, an argument that is a text is taken as typed wherever Hydra's grammar would refuse or change it.
TYPED_TEXTS = ("data.source", "data.tokenizer", "logging")
# Where a run lies and what it shows: not in the name of its folder, free to change when it continues.
PLACE = frozenset(
    {"run_dir", "resume", "logging", "sample_tokens", "timeout_seconds", "data.root", "data.workers", "data.prompt"}
)
# How it computes and what it keeps: in the name of its folder, yet free to change when it continues.
CONDUCT = frozenset(
    {
        "activation_checkpointing",
        "compile",
        "device",
        "keep_checkpoints",
        "log_every",
        "max_nonfinite",
        "micro_batch",
        "parallel",
        "permanent_every",
        "save_every",
        "spike_factor",
    }
)
