"""The keys of a run: each with its type, default, meaning and limits in one place; imports nothing heavy.

A group's option is a YAML file: the import path of a class with its arguments (data.source, optim, schedule, ...). The
default of a class's argument lives in its constructor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING

Node = dict[str, Any]  # _target_, the import path of a class, and its arguments


@dataclass(frozen=True)
class Rule:
    """What is known of a key beside its type and default."""

    meaning: str
    least: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    is_place: bool = False  # where a run lies and what it shows: no part of its name, free to change when it continues
    is_conduct: bool = False  # how it computes and what it keeps: part of its name, free to change when it continues
    is_path: bool = False  # ~ and $VARIABLE are replaced
    is_free_text: bool = False  # taken as typed, whatever it is
    is_named_if_set: bool = False  # no part of the name at its default; for keys that are younger than known names
    may_differ_in_branch: bool = False  # from the run that start_from names, which may still make it an exact branch
    may_change_in_branch: bool = False  # too, but then the branch is no exact one; the rest must be as it is there


def key(default: Any, meaning: str, **rule: Any) -> Any:
    """A field of a configuration; rule: what Rule has."""
    return field(default=default, metadata={"rule": Rule(meaning, **rule)})


@dataclass
class DataConfig:
    """The keys of the group data; each option sets their defaults, data.prepare and the loader check their ranges.

    A branch may name source, tokenizer and split otherwise: it compares the checksums of what they make.
    """

    source: Node = key(MISSING, "where the documents come from", may_differ_in_branch=True)
    tokenizer: Node = key(MISSING, "how text becomes token ids", may_differ_in_branch=True)
    root: str = key(MISSING, "folder of prepared data sets", is_place=True, is_path=True)
    val_fraction: float | None = key(
        MISSING, "of the documents, for validation; null: as the source has it", may_differ_in_branch=True
    )
    split_seed: int = key(MISSING, "of the split", may_differ_in_branch=True)
    shard_tokens: int = key(MISSING, "tokens in a file", may_differ_in_branch=True)
    workers: int | None = key(MISSING, "threads that prepare; null: one per core", is_place=True)
    order: str = key(
        MISSING, "random: crops with replacement; shuffled: every window once per epoch; sequential: so, as they lie"
    )
    prompt: str = key(MISSING, "what the sample at the end continues, as typed", is_place=True, is_free_text=True)

    @property
    def split(self) -> dict[str, Any]:
        """What decides, beside source and tokenizer, what a prepared data set holds."""
        return {name: getattr(self, name) for name in ("val_fraction", "split_seed", "shard_tokens")}


@dataclass
class RunConfig:
    """One training run. Counts are optimizer steps or sequences, as each key says; null means off."""

    model: Any = key(MISSING, "the architecture and its size")
    data: DataConfig = key(MISSING, "corpus, tokenizer, split and order", may_change_in_branch=True)
    optim: Any = key(MISSING, "the optimizer, or one for each role of parameters", may_change_in_branch=True)
    schedule: Any = key(MISSING, "learning rate over steps", may_differ_in_branch=True)
    parallel: Any = key(MISSING, "one process, DDP or FSDP2", is_conduct=True)
    logging: Any = key(MISSING, "where rows of metrics go beside metrics.jsonl and the console", is_place=True)

    max_steps: int = key(250, "optimizer steps", least=1, may_differ_in_branch=True)
    global_batch: int = key(8, "sequences per optimizer step, over all ranks", least=1)
    micro_batch: int = key(
        8, "sequences per forward pass of one rank; accumulation follows from it", least=1, is_conduct=True
    )
    grad_clip: float | None = key(1.0, "largest global norm of the gradient", above=0, may_change_in_branch=True)
    seed: int = key(
        1337,
        "of the initial parameters, the order of the data, dropout and label noise",
        least=0,
        may_change_in_branch=True,
    )

    eval_every: int = key(
        100, "steps; also before the first step and after the last", least=1, may_differ_in_branch=True
    )
    eval_sequences: int = key(
        128,
        "at most, spread evenly over the validation set, the same ones every time",
        least=1,
        may_differ_in_branch=True,
    )
    log_every: int = key(10, "steps", least=1, is_conduct=True)
    save_every: int = key(100, "steps; also after the last", least=1, is_conduct=True)
    keep_checkpoints: int = key(2, "the newest ones", least=1, is_conduct=True)
    permanent_every: int | None = key(None, "steps; checkpoints that are never deleted", least=1, is_conduct=True)
    save_at: list[int] | None = key(
        None,
        "steps after which a checkpoint is also saved, never to be deleted",
        least=1,
        is_conduct=True,
        is_named_if_set=True,
    )
    sample_tokens: int = key(200, "of the continuation printed at the end; 0: none", least=0, is_place=True)

    max_nonfinite: int | None = key(
        10, "steps in a row, skipped as loss or gradient is not finite, that end the run", least=1, is_conduct=True
    )
    spike_factor: float | None = key(
        3.0, "a loss above this times its running mean ends the run", least=1, is_conduct=True
    )
    activation_checkpointing: str = key(
        "none",
        "of each block: none; full keeps its input; selective also its matrix products",
        choices=("none", "selective", "full"),
        is_conduct=True,
    )

    run_dir: str = key(
        None,
        "null: runs/<model>-<data>-<optim>-s<seed>-<hash of the configuration>",
        is_place=True,
        is_path=True,
    )
    start_from: str | None = key(
        None,
        "RUN@STEP, RUN: a run's checkpoint of that step, its newest; hf:FOLDER, nanogpt:FILE: others' weights",
        is_path=True,
        is_conduct=True,
        is_named_if_set=True,
    )
    start: str = key(
        "auto",
        "of start_from. everything: go on at its step; weights: these alone, at step 0; auto: all there is",
        choices=("auto", "everything", "weights"),
        is_conduct=True,
        is_named_if_set=True,
    )
    resume: str = key(
        "auto",
        "auto: continue an unfinished run; never: refuse a used folder; must: refuse a fresh one",
        choices=("auto", "never", "must"),
        is_place=True,
    )
    device: str = key(
        "auto",
        "auto: CUDA if there is one, else the CPU; xpu is Intel's, mps Apple's",
        choices=("auto", "cpu", "cuda", "xpu", "mps"),
        is_conduct=True,
    )
    precision: str = key(
        "auto",
        "auto: bf16 where the device computes it natively; bf16: autocast",
        choices=("auto", "bf16", "fp32"),
        may_differ_in_branch=True,  # what auto stands for is compared
    )
    compile: str = key("auto", "auto: on CUDA", choices=("auto", "true", "false"), is_conduct=True)
    profile: bool = key(False, "ten steps: trace.json.gz and phases.txt in the run's directory", is_place=True)
    timeout_seconds: float = key(600.0, "how long all ranks may stand still", least=1, is_place=True)


@dataclass(frozen=True)
class Seam:
    """A place for plug-ins. methods: what a class needs to fit there; given: arguments that the run passes to it."""

    what: str
    methods: tuple[str, ...]
    given: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()  # keys of a node that are no arguments
    holds_several: bool = False  # a mapping of names to nodes; its options are merged: group=[one,another]
    has_typed_texts: bool = False  # texts are taken as typed wherever Hydra's grammar would refuse or change them
    unnamed: str = ""  # the class that is meant where none is named, as in files from before it could be chosen
    since: frozenset[str] = frozenset()  # the arguments that this class got afterwards


SEAMS = {
    "model": Seam(
        "a model",
        ("forward", "roles", "blocks", "forward_flops_per_token", "generate"),
        unnamed="model.GPT",
        since=frozenset({"bf16_residual"}),
    ),
    "optim": Seam(
        "an optimizer", ("step", "zero_grad"), frozenset({"params"}), frozenset({"decay_roles", "role_settings"})
    ),
    "schedule": Seam("a schedule", ("apply",), frozenset({"max_steps"})),
    "parallel": Seam(
        "a strategy",
        ("forward_backward", "evaluate"),
        frozenset({"device", "precision", "compiled", "timeout_seconds"}),
    ),
    "logging": Seam(
        "a sink", ("write", "close"), frozenset({"run_dir", "settings"}), holds_several=True, has_typed_texts=True
    ),
    "data.source": Seam("a source of data", ("fill",), has_typed_texts=True),
    "data.tokenizer": Seam("a tokenizer", ("fit",), has_typed_texts=True),
}


def rules(owner: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Field[Any], Rule]]:
    """Every key, dotted, of RunConfig and of the dataclasses in it, its field and its rule."""
    for each in fields(owner):
        yield f"{prefix}{each.name}", each, each.metadata["rule"]
        if each.type is DataConfig:
            yield from rules(DataConfig, f"{prefix}{each.name}.")


def holder_of(content: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping in which a dotted key stands, or would, and its name there; an empty one if that is none."""
    *path, name = key.split(".")
    holder: Any = content
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else {}), name


def keys_that(what: str) -> frozenset[str]:
    """The keys whose rule has that attribute set."""
    return frozenset(name for name, _, rule in rules() if getattr(rule, what))


def default_of(each: Field[Any]) -> Any:
    """The default of a field; MISSING where it has none."""
    return MISSING if each.default is NO_DEFAULT else each.default


def typed(content: Mapping[str, Any]) -> RunConfig:
    """The configuration that complete plain data describe."""
    return RunConfig(**{**content, "data": DataConfig(**content["data"])})


def plain(config: RunConfig) -> dict[str, Any]:
    """A copy as plain data."""
    return asdict(config)
