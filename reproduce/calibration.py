"""A rough estimate of the seconds per step of planned runs, from some seconds of each kind of work."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch

from assembly.data import data_path
from configs import RunConfig, flat, plug_in
from configs.overrides import given
from data.source import Source
from reproduce.composed import composed
from reproduce.forecast import model_of
from reproduce.rounds import LEAST_ROUNDS, interleaved
from reproduce.timing import TimedRun
from trainer.allocator import tune_allocator

TOKENS = 2048  # of a step, at most; larger ones are extrapolated
STEPS = 10  # of a block, at most, unless the optimizer refreshes something more seldom
MOST_STEPS = 1 << 20  # that a calibration can take
MADE_UP = ("data=synthetic", "data/tokenizer=bytes")
COSTLY_FRACTIONS = ("fraction", "dropout")  # numbers with a point that decide how much work a step is
Overrides = tuple[str, ...]
Work = tuple[Any, ...]  # what runs of the same work have in common


def calibrate(runs: Iterable[Sequence[str]], *, limit_seconds: float = 3.0) -> dict[Overrides, float]:
    """A rough estimate of the seconds per step of every planned run, by its overrides.

    Runs that differ in numbers but not in the work of a step share a measurement. All kinds of work are in memory at
    once, and take turns: two steps each to warm up, then blocks of at most STEPS, or of the optimizer's refresh
    interval, in LEAST_ROUNDS rounds, of which the median counts. Where limit_seconds do not suffice for that, blocks
    are shorter, and then rounds fewer, at least one. Of a step of more than TOKENS a part is timed, and all of its
    seconds but the optimizer's multiplied. A corpus that would have to be prepared first is replaced by a small made-up
    one for a vocabulary of the same size: what the tokens are changes nothing of a step's time.

    Raises: ValueError: if a run cannot be set up, for example because its data are not prepared, or not all at once.
    """
    try:
        return _calibrated(runs, limit_seconds)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the runs' kinds of work do not fit into the device's memory together; name the GPU instead, for example "
            "gpu=H100"
        ) from error


def _calibrated(runs: Iterable[Sequence[str]], limit_seconds: float) -> dict[Overrides, float]:
    kinds: dict[Overrides, Work] = {}
    trained: dict[Work, CalibratedRun] = {}
    tune_allocator()
    with TemporaryDirectory(prefix="timing-") as data_root, ExitStack() as stack:
        for overrides in map(tuple, runs):
            config = composed(overrides)
            kinds[overrides] = work(config)
            if kinds[overrides] not in trained:
                trained[kinds[overrides]] = CalibratedRun(config, overrides, data_root, stack)
        seconds = _timed(trained, limit_seconds)
    return {overrides: seconds[kind] for overrides, kind in kinds.items()}


def work(config: RunConfig) -> Work:
    """What the time of a step depends on: all of model, data, optimizer and execution but the fractional numbers."""
    places = ("model", "data", "optim", "parallel", "global_batch", "micro_batch", "device", "precision", "compile")
    return tuple(
        (key, str(value))
        for key, value in sorted(flat(config).items())
        if key.partition(".")[0] in places and (key.rpartition(".")[2] in COSTLY_FRACTIONS or not _is_fractional(value))
    )


def block_steps(interval: int, affordable: int) -> int:
    """Steps of a block: STEPS, or as many as one can afford; whole intervals between refreshes if possible."""
    most = max(1, min(STEPS, affordable))
    return interval * max(1, most // interval) if interval <= affordable else most


class CalibratedRun:
    """A run whose steps are timed on a part of the batch, if that is large, as if on all of it."""

    def __init__(self, config: RunConfig, overrides: Overrides, data_root: str, stack: ExitStack) -> None:
        sequences: int = max(1, min(config.global_batch, TOKENS // config.model["block_size"]))
        micro_batch = min(sequences, config.micro_batch)
        sequences -= sequences % micro_batch
        part = [f"global_batch={sequences}", f"micro_batch={micro_batch}"]
        if _would_be_prepared(config):
            overrides = tuple(
                each for each in overrides if given(each).key.partition(".")[0] not in ("data", "data/tokenizer")
            )
            part += [*MADE_UP, f"data.root={data_root}", f"model.vocab_size={model_of(config).vocab_size}"]
        self._run = TimedRun("calibration", [*overrides, *part], MOST_STEPS, stack)
        self._run.time_optimizer()
        self._share = sequences / config.global_batch
        self.refresh_interval = self._run.refresh_interval

    def go_on(self, steps: int) -> float:
        """The seconds that so many more steps would take on the full batch."""
        before = self._run.optimizer_seconds
        seconds = self._run.go_on(steps)
        own = self._run.optimizer_seconds - before
        return own + (seconds - own) / self._share


def _timed(trained: Mapping[Work, CalibratedRun], limit_seconds: float) -> dict[Work, float]:
    """Seconds per step."""
    for run in trained.values():
        run.go_on(1)  # which may compile
    started = time.perf_counter()
    for run in trained.values():
        run.go_on(1)
    one = max(time.perf_counter() - started, 1e-6)
    affordable, deadline = int((limit_seconds / one - 1) / LEAST_ROUNDS), started + limit_seconds
    steps = {kind: block_steps(run.refresh_interval, affordable) for kind, run in trained.items()}
    rounds = max(LEAST_ROUNDS, *(math.ceil(run.refresh_interval / steps[kind]) for kind, run in trained.items()))

    def is_enough(found: Mapping[Work, Sequence[float]]) -> bool:
        return min(map(len, found.values())) >= rounds or time.perf_counter() > deadline

    found = interleaved({kind: partial(run.go_on, steps[kind]) for kind, run in trained.items()}, is_enough)
    typical = {kind: _typical(each, steps[kind] % trained[kind].refresh_interval == 0) for kind, each in found.items()}
    return {kind: seconds / steps[kind] for kind, seconds in typical.items()}


def _would_be_prepared(config: RunConfig) -> bool:
    source = plug_in(config.data.source)
    return isinstance(source, Source) and source.embedded and not data_path(config, prepared=False).exists()


def _typical(rounds: Sequence[float], has_refreshes: bool) -> float:
    """The median, if every round has its share of refreshes, otherwise the mean, which leaves none out."""
    return statistics.median(rounds) if has_refreshes else statistics.fmean(rounds)


def _is_fractional(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and all(map(_is_fractional, value)))
