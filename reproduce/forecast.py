"""What the runs of a claim will cost, before any of them starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.table import Table

from assembly.cost import run_flops
from assembly.model import meta_model
from configs import RunConfig, plug_in
from model import LanguageModel
from model.flops import PEAKS, flops_per_token, peak_flops
from optim import build as optimizers
from optim.memory import state_bytes
from reproduce.arms import Point
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.mistakes import ClaimError
from reproduce.plans import Planned
from reproduce.protocols import expected, of
from reproduce.training import TrainingFields

START_SECONDS = 6.0  # of a process, until its first step
Calibrate = Callable[[Sequence[Point]], dict[Point, float]]  # overrides of runs -> seconds per step
Flops = Callable[[int], int]  # of a run's first steps
Alike = tuple[str, str, Point]  # protocol, arm and point: runs whose steps cost the same
VOCABULARIES = {"bytes": 257, "gpt2": 50257}  # of tokenizers that are not asked for a size


@dataclass(frozen=True)
class Line:
    """Runs of one arm for one purpose."""

    protocol: str
    purpose: str
    arm: str
    runs: int
    steps: int  # of all of them
    tokens: float
    flops: float  # as the runs' own counters will say
    seconds: float | None  # of training, one run at a time; None: unknown
    checkpoint_bytes: float  # that stay when they are done


@dataclass(frozen=True)
class Forecast:
    """lines: in the order of the runs. device_hours: of one run at a time. note: why hours are unknown."""

    lines: list[Line]
    device_hours: float | None
    hours: float | None  # with so many runs at once
    disk_bytes: float
    note: str = ""


def forecast(claim: Claim[TrainingFields], calibrate: Calibrate, *, at_once: int = 1) -> Forecast:
    """The cost of all runs, as if none were done yet; calibrate measures for some seconds."""
    runs = expected(of(claim))
    alike = {_alike(run): run.overrides for run in runs}
    try:
        measured, note = calibrate(list(alike.values())), ""
    except ValueError as error:  # data that are not there, for instance
        measured, note = {}, f"hours are unknown: {error}"
    seconds = {key: measured[overrides] for key, overrides in alike.items() if overrides in measured}
    groups: dict[tuple[str, str, str], list[Planned]] = {}
    for run in runs:
        groups.setdefault((run.protocol, run.purpose, run.arm), []).append(run)
    flops = {key: flops_of(composed(overrides)) for key, overrides in alike.items()}
    lines = [_line(claim, group, seconds, flops) for group in groups.values()]
    known = [line.seconds for line in lines if line.seconds is not None]
    hours = sum(known) / 3600 if len(known) == len(lines) else None
    stay = sum(line.checkpoint_bytes for line in lines)
    largest = max((line.checkpoint_bytes / line.runs for line in lines), default=0.0)
    disk = at_once * 2 * largest if claim.fields.drop_checkpoints else stay
    return Forecast(lines, hours, None if hours is None else hours / at_once, disk, note)


def on_gpu(name: str, utilisation: float) -> Calibrate:
    """What predicts seconds per step from FLOPs, at a share of the named GPU's peak for the precision of a run.

    The optimizer's own products, which are in fp32, count as fast as the model's.

    Raises: ClaimError: if no peak of it is known.
    """
    wide = peak_flops(name, torch.float32)
    if wide is None:
        known = ", ".join(each for each, _ in PEAKS)
        raise ClaimError(f"gpu={name!r} has no peak that is known here; known are {known}")

    def seconds(config: RunConfig) -> float:
        narrow = None if config.precision == "fp32" else peak_flops(name, torch.bfloat16)
        return flops_of(config)(config.max_steps) / config.max_steps / (utilisation * (narrow or wide))

    return lambda runs: {overrides: seconds(composed(overrides)) for overrides in runs}


def flops_of(config: RunConfig) -> Flops:
    """What a run will have counted after so many steps."""
    model, batch = model_of(config), config.global_batch
    parameters = dict(model.named_parameters())
    optimizer = optimizers.build(config.optim, parameters, model.roles(), seed=config.seed, global_batch=batch)
    return partial(run_flops, flops_per_token(model), model.block_size, batch, optimizer)


def table(found: Forecast) -> Table:
    """For a terminal."""
    shown = Table("protocol", "purpose", "arm")
    for heading in ("runs", "steps", "tokens", "FLOPs", "hours"):
        shown.add_column(heading, justify="right")
    for line in found.lines:
        hours = "?" if line.seconds is None else f"{line.seconds / 3600:.2f}"
        cost = (f"{line.tokens:.3g}", f"{line.flops:.3g}", hours)
        shown.add_row(line.protocol, line.purpose, line.arm, str(line.runs), f"{line.steps:,}", *cost)
    total = [sum(getattr(line, key) for line in found.lines) for key in ("runs", "steps", "tokens", "flops")]
    hours = "?" if found.device_hours is None else f"{found.device_hours:.2f}"
    shown.add_section()
    shown.add_row("all", "", "", str(total[0]), f"{total[1]:,}", f"{total[2]:.3g}", f"{total[3]:.3g}", hours)
    return shown


def _line(
    claim: Claim[TrainingFields],
    runs: Sequence[Planned],
    seconds: Mapping[Alike, float],
    flops: Mapping[Alike, Flops],
) -> Line:
    first, config = runs[0], composed(runs[0].overrides)
    steps = sum(run.own_steps for run in runs)
    model = model_of(config)
    tokens = float(steps * config.global_batch * model.block_size)
    per_step = [run.own_steps * seconds[_alike(run)] for run in runs if _alike(run) in seconds]
    return Line(
        first.protocol,
        first.purpose,
        claim.arm(first.arm).label,
        len(runs),
        steps,
        tokens,
        sum(_own_flops(run, flops[_alike(run)]) for run in runs),
        sum(per_step) + len(runs) * START_SECONDS if len(per_step) == len(runs) else None,
        len(runs) * config.keep_checkpoints * _checkpoint_bytes(config, model),
    )


def _alike(run: Planned) -> Alike:
    return run.protocol, run.arm, run.point


def _own_flops(run: Planned, flops: Flops) -> float:
    """Those of the steps that are run for it alone."""
    return flops(run.steps) - (flops(run.branches_at) if run.branches_at else 0)


def model_of(config: RunConfig) -> LanguageModel:
    """The model without numbers, with the vocabulary that the tokenizer is asked for."""
    tokenizer = plug_in(config.data.tokenizer)
    asked = config.model.get("vocab_size") or VOCABULARIES.get(tokenizer.name) or tokenizer.vocab_size
    return meta_model(config, asked)


def _checkpoint_bytes(config: RunConfig, model: LanguageModel) -> int:
    """Parameters in fp32 and the optimizer's state."""
    parameters = dict(model.named_parameters())
    return state_bytes(config.optim, parameters, model.roles()) + 4 * sum(
        param.numel() for param in parameters.values()
    )
