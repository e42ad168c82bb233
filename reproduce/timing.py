"""Seconds per optimizer step of several arms, interleaved in one process, so that a machine's slow minutes fall on all.

An arm is a run of train.py in a temporary directory, trained by train.py's own loop in blocks of a few steps, whose
clock leaves out evaluation, saving and writing. Blocks go around the arms, every other round backwards.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import train
from assembly.data import data_path
from assembly.run import Run
from assembly.setting_up import begin, open_strategy, set_up
from configs import RunConfig, compose, flat
from launch.stopping import StopRequest
from reproduce.claim import Claim
from reproduce.records import Ratios
from reproduce.statistics import Interval
from trainer.allocator import tune_allocator
from trainer.checkpoint import Checkpoint
from trainer.run_directory import RunDirectory

NEVER = 1 << 40  # steps
CALIBRATION_TOKENS = 2048  # of a step, at most; larger ones are extrapolated
CALIBRATION_STEPS = 10
COSTLY_FRACTIONS = ("fraction", "dropout")  # numbers with a point that decide how much work a step is
Block = Callable[[], float]  # does its steps, returns the seconds they took
Overrides = tuple[str, ...]


class TimingError(ValueError):
    """Steps that cannot be timed; one clear line."""


@dataclass(frozen=True)
class StepTime:
    """Seconds per step: the median over rounds with its interval, and every round's mean."""

    interval: Interval
    rounds: tuple[float, ...]


def step_times(
    arms: Mapping[str, Sequence[str]], common: Sequence[str], *, rounds: int, steps: int
) -> dict[str, StepTime]:
    """Seconds per step of every arm (name -> overrides, after the common ones), after one block each to warm up.

    steps: of a block, a multiple of every arm's refresh interval, so that a block has its share of refreshes. One step
    of a block measures what train.py measures on the steps that it logs. On one device, all arms in memory at once.

    Raises: TimingError: if steps is no such multiple, or an arm diverges. ValueError: if an arm cannot be set up.
    KeyboardInterrupt: on SIGINT or SIGTERM.
    """
    if rounds < 1:
        raise TimingError(f"timing: rounds={rounds} must be at least 1")
    tune_allocator()
    with ExitStack() as stack:
        trained = {
            name: TimedRun(name, [*common, *overrides], steps * (rounds + 1), stack) for name, overrides in arms.items()
        }
        for arm in trained.values():
            if steps < 1 or steps % arm.refresh_interval:
                raise TimingError(
                    f"timing: steps={steps} must be a multiple of {arm.refresh_interval}, the steps between refreshes "
                    f"of arm {arm.name}"
                )
        found = interleaved({name: arm.block(steps) for name, arm in trained.items()}, rounds)
    per_step = {name: tuple(seconds / steps for seconds in each) for name, each in found.items()}
    return {name: StepTime(median_interval(each), each) for name, each in per_step.items()}


def overhead(times: Mapping[str, StepTime], candidate: str, baseline: str) -> Interval:
    """The candidate's seconds per step over the baseline's: the median of the ratios of each round."""
    pairs = zip(times[candidate].rounds, times[baseline].rounds, strict=True)
    return median_interval([ours / theirs for ours, theirs in pairs])


def ratios(claim: Claim[Any], *, rounds: int, steps: int) -> Ratios:
    """Seconds per step of every arm of the claim beside each other's. Raises: see step_times."""
    times = step_times({arm.name: arm.overrides for arm in claim.arms}, claim.common, rounds=rounds, steps=steps)
    return {(ours, other): overhead(times, ours, other) for ours in times for other in times if ours != other}


def calibrate(runs: Iterable[Sequence[str]], *, limit_seconds: float = 15.0) -> dict[Overrides, float]:
    """A rough estimate of the seconds per step of every planned run, by its overrides.

    Runs that differ in numbers but not in the work of a step share a measurement: two steps to warm up, then
    CALIBRATION_STEPS, or as many as fit into limit_seconds. Of a step of more than CALIBRATION_TOKENS a part is timed
    and its seconds multiplied, which counts the optimizer's part too often: rather too long than too short. Data that
    are not prepared yet are prepared for the time being, so that nothing stays on disk.

    Raises: ValueError: if a run cannot be set up, for example because its data are not prepared.
    """
    measured: dict[tuple[Any, ...], float] = {}
    found: dict[Overrides, float] = {}
    with TemporaryDirectory(prefix="timing-") as data_root:
        for overrides in map(tuple, runs):
            config = compose(list(overrides))
            key = work(config)
            if key not in measured:
                measured[key] = _calibrated(config, overrides, limit_seconds, data_root)
            found[overrides] = measured[key]
    return found


def interleaved(blocks: Mapping[str, Block], rounds: int) -> dict[str, list[float]]:
    """The seconds of every round of every block, after one round to warm up; every other round goes backwards."""
    order = list(blocks)
    for name in order:
        blocks[name]()
    found: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            found[name].append(blocks[name]())
        order.reverse()
    return found


def median_interval(values: Sequence[float]) -> Interval:
    """The median of positive numbers and its 95 % interval from order statistics, which fewer than six cannot give."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # k numbers may lie outside on each side
    while 2 * (outside + math.comb(n, k) / 2**n) <= 0.05:
        outside += math.comb(n, k) / 2**n
        k += 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (0.0, math.inf)
    return Interval(statistics.median(ordered), low, high)


def work(config: RunConfig) -> tuple[Any, ...]:
    """What the time of a step depends on: all of model, data, optimizer and execution but the fractional numbers."""
    places = ("model", "data", "optim", "parallel", "global_batch", "micro_batch", "device", "precision", "compile")
    return tuple(
        (key, str(value))
        for key, value in sorted(flat(config).items())
        if key.partition(".")[0] in places and (key.rpartition(".")[2] in COSTLY_FRACTIONS or not _is_fractional(value))
    )


def _is_fractional(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and all(map(_is_fractional, value)))


class TimedRun:
    """A run of train.py that goes on for some steps at a time; the stack closes it.

    Raises: ValueError: if it cannot be set up.
    """

    def __init__(self, name: str, overrides: Sequence[str], max_steps: int, stack: ExitStack) -> None:
        self.name = name
        config = compose([*overrides, "parallel=single"])
        config.max_steps = max(max_steps, config.max_steps)
        config.eval_every = config.save_every = config.log_every = NEVER
        config.eval_sequences = min(
            config.eval_sequences, config.micro_batch
        )  # evaluated after each block, off the clock
        config.run_dir = stack.enter_context(TemporaryDirectory(prefix="timing-"))
        with redirect_stdout(StringIO()):
            self._run = _set_up(config, stack)
        self._run.sinks = []
        self._run.store = _Nowhere()  # type: ignore[assignment]  # what the loop saves is not kept

    @property
    def refresh_interval(self) -> int:
        """The least number of steps that hold every refresh of curvature and preconditioners equally often."""
        return self._run.optimizer.refresh_interval

    def block(self, steps: int) -> Block:
        """Goes on for so many steps."""
        return lambda: self.go_on(steps)

    def go_on(self, steps: int) -> float:
        """The seconds of so many more steps."""
        run = self._run
        before = run.clock.seconds
        run.config.max_steps = run.step + steps
        with StopRequest() as stop:
            outcome = train.loop(run, stop)
        if outcome == "stopped":
            raise KeyboardInterrupt
        if outcome != "finished":
            raise TimingError(f"timing: arm {self.name} {outcome} after {run.step} steps; lower its learning rate")
        return run.clock.seconds - before


class _Nowhere:
    """A checkpoint store that keeps nothing."""

    written = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Does nothing."""


def _set_up(config: RunConfig, stack: ExitStack) -> Run:
    """Sets up a run as train.main does."""
    strategy = stack.enter_context(closing(open_strategy(config)))
    directory = RunDirectory(Path(config.run_dir), resume="never", differences=lambda path: [])
    stack.enter_context(closing(directory))
    run = set_up(config, strategy, directory, stack)
    begin(run, stack)
    return run


def _calibrated(config: RunConfig, overrides: Overrides, limit_seconds: float, data_root: str) -> float:
    sequences: int = max(1, min(config.global_batch, CALIBRATION_TOKENS // config.model["block_size"]))
    micro_batch = min(sequences, config.micro_batch)
    sequences -= sequences % micro_batch
    tune_allocator()
    with ExitStack() as stack:
        smaller = [f"global_batch={sequences}", f"micro_batch={micro_batch}"]
        if not data_path(config, prepared=False).exists():
            smaller.append(f"data.root={data_root}")
        run = TimedRun("calibration", [*overrides, *smaller], CALIBRATION_STEPS + 2, stack)
        run.go_on(1)
        steps = min(CALIBRATION_STEPS, max(1, int(limit_seconds / run.go_on(1))))
        seconds = run.go_on(steps)
    return seconds / steps * int(config.global_batch) / sequences
