"""The trials of a study: which comes next, which are pruned, how each ended. See search.py for a trial's life."""

import hashlib
import json
import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from configs import ConfigError, compose
from configs.overrides import written
from files.errors import one_line, shown
from files.lock import InUseError, Lock, is_held, locked
from files.reading import number
from launch.jobs import Job, Outcome, Source
from launch.new_rows import NewRows
from launch.search_space import Checked, Choices, Range, overrides_of

if TYPE_CHECKING:
    from launch.search import Optuna

LOCK = "lock"  # of the study, while a trial is taken
WAIT_SECONDS = 0.2  # until a worker that found nothing to do looks again
SQLITE_SECONDS = 60  # in which other processes have written
ENDED = ("finished", "pruned", "diverged")  # states of a trial that has been told to the study, the best first
FACTOR = 3  # of the steps between hyperband's decisions
EARLIEST = 1 / FACTOR**2  # no run is pruned before this fraction of its steps
DESCRIPTION, WORKER, RUN_DIR, STATE = "search", "worker", "run_dir", "state"  # attributes of the study, and of trials


class Row(NamedTuple):
    """A trial as it stands.

    state: finished, pruned, diverged, running, failed, stopped or unfinished. value: the objective, of a pruned trial
    the last that is known, None of others. step: the last at which it was evaluated.
    """

    trial: int
    value: float | None
    state: str
    step: int | None
    parameters: dict[str, Any]
    run_dir: str


@dataclass
class _Taken:
    """A trial that this worker has. reported: the steps of which the study has the objective."""

    trial: optuna.Trial
    rows: NewRows
    reported: set[int]
    is_pruned: bool = False


class Trials(Source):
    """The jobs of a search, for one worker, while it is entered.

    fixed: the overrides of all runs. description: what the study must be about. folder: where the locks are.

    Raises: ConfigError: if the storage cannot be used, or its study is about something else.
    """

    def __init__(
        self,
        search: "Optuna",
        checked: Checked,
        fixed: Sequence[str],
        *,
        name: str,
        storage: str,
        folder: Path,
        description: Mapping[str, Any],
    ) -> None:
        self._search, self._checked, self._fixed, self._folder = search, checked, fixed, folder
        self._distributions = {key: _distribution(each) for key, each in checked.space.items()}
        self._taken: dict[str, _Taken] = {}  # by the name of the job
        self._left: set[int] = set()  # trials that this worker does not try again
        self._is_done, self._again = False, 0.0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", module="optuna")  # of what is experimental, of an end that a step misses
        with storage_errors(storage), locked(folder / LOCK, "opening the study"):
            self.study = _opened(name, storage, description)
            self.study.pruner = _pruner(search.pruner, checked.max_steps)

    def __enter__(self) -> Self:
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.worker"
        self._lock = Lock(self._folder / self._worker)
        self._lock.sign()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release(leave_no_trace=True)

    @property
    @override
    def sample(self) -> Job:
        return Job("sample", self._checked.sample)

    @property
    @override
    def is_done(self) -> bool:
        return self._is_done

    @override
    def next(self) -> Job | None:
        if time.monotonic() < self._again:
            return None
        try:
            lock = Lock(self._folder / LOCK)
        except InUseError:  # another worker takes a trial
            return None
        try:
            job = self._take()
        finally:
            lock.release()
        if job is None:
            self._again = time.monotonic() + WAIT_SECONDS
        return job

    @override
    def is_to_stop(self, job: Job) -> bool:
        taken = self._taken[job.name]
        if taken.is_pruned or not self._report(taken):
            return False
        taken.is_pruned = taken.trial.should_prune()
        return taken.is_pruned

    @override
    def ended(self, outcome: Outcome) -> str:
        taken = self._taken.pop(outcome.job.name)
        self._report(taken)
        value = number((outcome.result or {}).get(self._search.objective))
        state = "pruned" if outcome.status == "stopped" and taken.is_pruned else outcome.status
        taken.trial.set_user_attr(STATE, state)
        if state == "finished" and value is not None:
            self.study.tell(taken.trial, value)
        elif state in ("pruned", "diverged"):
            self.study.tell(taken.trial, state=TrialState.PRUNED)
        else:
            self._left.add(taken.trial.number)
            taken.trial.set_user_attr(WORKER, "")
        return state if state == "pruned" else ""

    def rows(self) -> list[Row]:
        """All trials of the study, the best first, then those that have not finished."""
        found = [self._row(each) for each in self.study.get_trials(deepcopy=False)]

        def rank(row: Row) -> tuple[int, float]:
            return ENDED.index(row.state) if row.state in ENDED else len(ENDED), row.value or 0.0

        return sorted(found, key=rank)

    def _take(self) -> Job | None:
        """A trial that is nobody's, or a new one; the caller has the study's lock."""
        trials = self.study.get_trials(deepcopy=False)
        running = [each for each in trials if each.state is TrialState.RUNNING]
        held = [each for each in running if self._is_held(each)]
        busy = {each.user_attrs.get(RUN_DIR) for each in held}
        free = [each for each in running if each not in held and each.number not in self._left]
        for each in free:
            self.study.sampler = self._sampler(each.number)  # it may have been killed before all was drawn
            if job := self._claimed(optuna.Trial(self.study, each._trial_id), busy):
                return job
        if not free and len(trials) < self._search.trials:
            self.study.sampler = self._sampler(len(trials))
            return self._claimed(self.study.ask(), busy)
        self._is_done = not held and not free
        return None

    def _claimed(self, trial: optuna.Trial, busy: set[Any]) -> Job | None:
        """The job of a trial, which is this worker's now; None while another trial's run of the same name goes on."""
        values = {key: _drawn(trial, key, each) for key, each in self._distributions.items()}
        name = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        job = Job(f"trial {trial.number} {name}", (*self._fixed, *overrides_of(values)))
        run_dir = compose(job.overrides).run_dir
        trial.set_user_attr(RUN_DIR, run_dir)
        if run_dir in busy:
            return None
        trial.set_user_attr(WORKER, self._worker)
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self._taken[job.name] = _Taken(trial, NewRows(Path(str(run_dir)), only_last=False), set(known))
        return job

    def _is_held(self, trial: FrozenTrial) -> bool:
        """Whether the worker that the trial names still runs."""
        worker = trial.user_attrs.get(WORKER)
        return bool(worker) and is_held(self._folder / str(worker))

    def _report(self, taken: _Taken) -> bool:
        """Reports what the run has added; whether there was anything. At step 0 nothing is learnt yet."""
        is_new = False
        while rows := taken.rows.read():
            for row in rows:
                step, value = number(row.get("step")), number(row.get(self._search.objective))
                if step is not None and step > 0 and value is not None and int(step) not in taken.reported:
                    taken.trial.report(value, int(step))
                    taken.reported.add(int(step))
                    is_new = True
        return is_new

    def _row(self, trial: FrozenTrial) -> Row:
        state = trial.user_attrs.get(STATE, "unfinished")
        if trial.state is TrialState.RUNNING and self._is_held(trial):
            state = "running"
        value = trial.value if state in ("finished", "pruned") and trial.state.is_finished() else None
        run_dir = str(trial.user_attrs.get(RUN_DIR, ""))
        return Row(trial.number, value, state, trial.last_step, dict(trial.params), run_dir)

    def _sampler(self, trial: int) -> optuna.samplers.BaseSampler:
        """Seeded for the trial, so that workers with the same seed draw different parameters."""
        seed = int(hashlib.sha256(f"{self._search.seed} {trial}".encode()).hexdigest()[:8], 16)
        if self._search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Raises ConfigError in place of what the storage raises."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as error:
        raise ConfigError(
            f"search.storage={shown(storage)} cannot be used: {one_line(error.__cause__ or error)}"
        ) from error


def _opened(name: str, storage: str, description: Mapping[str, Any]) -> optuna.Study:
    """The study, made if it is not there; the caller has its lock."""
    arguments = {"timeout": SQLITE_SECONDS} if storage.startswith("sqlite:") else {}
    opened = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": arguments})
    study = optuna.create_study(storage=opened, study_name=name, direction="minimize", load_if_exists=True)
    ours, theirs = json.loads(json.dumps(description)), study.user_attrs.get(DESCRIPTION)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(DESCRIPTION, ours)
    elif theirs != ours:
        found = ", ".join(_differences(ours, theirs)) if isinstance(theirs, dict) else "this command has not made it"
        raise ConfigError(
            f"the study {shown(name)} in {storage} is of another search: {found}; give search.study another name"
        )
    return study


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """What the descriptions of two searches say of the same key."""
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            each = [written(found[key]) if key in found else "<absent>" for found in (ours, theirs)]
            yield f"{key}={shown(each[0])} (there: {shown(each[1])})"


def _pruner(name: str | None, max_steps: int) -> optuna.pruners.BasePruner:
    earliest = max(1, round(max_steps * EARLIEST))
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=earliest)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(earliest, max_steps, reduction_factor=FACTOR)
    return optuna.pruners.NopPruner()


def _distribution(each: Range | Choices) -> BaseDistribution:
    if isinstance(each, Choices):
        return CategoricalDistribution(each.values)
    if each.is_whole:
        return IntDistribution(int(each.low), int(each.high), each.log, int(each.step or 1))
    return FloatDistribution(each.low, each.high, each.log, each.step)


def _drawn(trial: optuna.Trial, key: str, each: BaseDistribution) -> Any:
    """The trial's value, drawn if it has none yet."""
    if isinstance(each, CategoricalDistribution):
        return trial.suggest_categorical(key, each.choices)
    if isinstance(each, IntDistribution):
        return trial.suggest_int(key, each.low, each.high, step=each.step, log=each.log)
    assert isinstance(each, FloatDistribution)
    return trial.suggest_float(key, each.low, each.high, step=each.step, log=each.log)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
