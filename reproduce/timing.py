"""Seconds per optimizer step of several arms, interleaved in one process, so that a machine's slow minutes fall on all.

An arm is a run of train.py in a temporary directory, trained by train.py's own loop in blocks of a few steps, whose
clock leaves out evaluation, saving and writing. rounds.py says in what order the blocks go, and how often.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import train
from assembly.run import Run
from assembly.setting_up import begin, open_strategy, set_up
from configs import RunConfig, compose
from inference.intervals import Interval
from launch.stopping import StopRequest
from reproduce.claim import Claim
from reproduce.records import Ratios
from reproduce.rounds import LEAST_ROUNDS, Block, interleaved, median_interval, ratio, ratios_are_known
from trainer.allocator import tune_allocator
from trainer.checkpoint import Checkpoint
from trainer.run_directory import RunDirectory

NEVER = 1 << 40  # steps
TARGET = 0.03  # of a ratio of step times, to which its interval should reach on either side
MOST_TIMES = 3  # as many rounds as asked for, if the intervals stay wider


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

    rounds: the fewest; there are more, up to MOST_TIMES as many, until the interval of every ratio of two arms lies
    within TARGET of it. steps: of a block, a multiple of every arm's refresh interval, so that a block has its share of
    refreshes. One step of a block measures what train.py measures on the steps that it logs. On one device, all arms in
    memory at once.

    Raises: TimingError: if steps is no such multiple, rounds are too few for an interval, or an arm diverges.
    ValueError: if an arm cannot be set up. KeyboardInterrupt: on SIGINT or SIGTERM.
    """
    if rounds < LEAST_ROUNDS:
        raise TimingError(
            f"timing: rounds={rounds} must be at least {LEAST_ROUNDS}: the median of fewer has no 95 % interval"
        )
    most = MOST_TIMES * rounds
    tune_allocator()
    with ExitStack() as stack:
        trained = {
            name: TimedRun(name, [*common, *overrides], steps * (most + 1), stack) for name, overrides in arms.items()
        }
        for arm in trained.values():
            if steps < 1 or steps % arm.refresh_interval:
                raise TimingError(
                    f"timing: steps={steps} must be a multiple of {arm.refresh_interval}, the steps between refreshes "
                    f"of arm {arm.name}"
                )
        for arm in trained.values():
            arm.go_on(steps)  # to warm up
        found = interleaved({name: arm.block(steps) for name, arm in trained.items()}, partial(_is_enough, rounds))
    per_step = {name: tuple(seconds / steps for seconds in each) for name, each in found.items()}
    return {name: StepTime(median_interval(each), each) for name, each in per_step.items()}


def _is_enough(rounds: int, found: Mapping[str, Sequence[float]]) -> bool:
    done = min(map(len, found.values()), default=rounds)
    return done >= rounds and (done >= MOST_TIMES * rounds or ratios_are_known(found, TARGET))


def overhead(times: Mapping[str, StepTime], candidate: str, baseline: str) -> Interval:
    """The candidate's seconds per step over the baseline's: the median of the ratios of each round."""
    return ratio(times[candidate].rounds, times[baseline].rounds)


def ratios(claim: Claim[Any], *, rounds: int, steps: int) -> Ratios:
    """Seconds per step of every arm of the claim beside each other's. Raises: see step_times."""
    times = step_times({arm.name: arm.overrides for arm in claim.arms}, claim.common, rounds=rounds, steps=steps)
    return {(ours, other): overhead(times, ours, other) for ours in times for other in times if ours != other}


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
        self.optimizer_seconds = 0.0
        self._run.sinks = []
        self._run.store = _Nowhere()  # type: ignore[assignment]  # what the loop saves is not kept

    @property
    def refresh_interval(self) -> int:
        """The least number of steps that hold every refresh of curvature and preconditioners equally often."""
        return self._run.optimizer.refresh_interval

    def time_optimizer(self) -> None:
        """From now on counts the seconds of the optimizer's own steps in optimizer_seconds; waits for the device."""
        optimizer, wait = self._run.optimizer, self._run.strategy.synchronize
        original = optimizer.step

        def step(**settings: Any) -> None:
            wait()
            started = time.perf_counter()
            original(**settings)
            wait()
            self.optimizer_seconds += time.perf_counter() - started

        optimizer.step = step  # type: ignore[method-assign]  # the loop itself has no need to time a part of a step

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
