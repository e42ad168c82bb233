"""The trials of a study: which comes next, which are pruned, how each ended. See search.py for a trial's life."""

import os
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from configs import ConfigError, compose
from configs.door import BAD_INPUT
from files.lock import InUseError, Lock, is_held, locked
from files.reading import number
from launch.job import Job, Outcome, Source
from launch.new_rows import NewRows
from launch.search_space import Checked, overrides_of
from launch.search_study import Study, distribution, drawn, opened, pruner, sampler, storage_errors

if TYPE_CHECKING:
    from launch.search import Optuna

LOCK = "lock"  # of the study, while a trial is taken
WAIT_SECONDS = 0.2  # until a worker that found nothing to do looks again
# States of a trial that has been told to the study, the best first; refused: its parameters together make no run.
ENDED = ("finished", "pruned", "diverged", "refused")
WORKER, RUN_DIR, STATE, REASON = "worker", "run_dir", "state", "reason"  # attributes of trials


class Row(NamedTuple):
    """A trial as it stands.

    state: finished, pruned, diverged, refused, running, failed, stopped or unfinished. value: the objective, of a
    pruned trial the last that is known, None of others. step: the last at which it was evaluated. reason: why it was
    refused.
    """

    trial: int
    value: float | None
    state: str
    step: int | None
    parameters: dict[str, Any]
    run_dir: str
    reason: str = ""


@dataclass
class _Taken:
    """A trial that this worker has. reported: the steps of which the study has the objective."""

    trial: optuna.Trial
    rows: NewRows
    reported: set[int]
    is_pruned: bool = False


class Trials(Source):
    """The jobs of a search, for one worker, while it is entered.

    fixed: the overrides of all runs. at_once: trials that the worker has at a time, None: as the launcher has room.

    Raises: ConfigError: if the storage cannot be used, or its study is about something else.
    """

    def __init__(
        self, search: "Optuna", checked: Checked, fixed: Sequence[str], study: Study, at_once: int | None
    ) -> None:
        self._search, self._checked, self._fixed, self._folder = search, checked, fixed, study.folder
        self._at_once = at_once or sys.maxsize
        self._distributions = {key: distribution(each) for key, each in checked.space.items()}
        self._taken: dict[str, _Taken] = {}  # by the name of the job
        self._left: set[int] = set()  # trials that this worker does not try again
        self.refused: set[str] = set()  # names of jobs whose parameters train.py does not take
        self._is_done, self._again = False, 0.0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", module="optuna")  # of what is experimental, of an end that a step misses
        with storage_errors(study.storage), locked(study.folder / LOCK, "opening the study"):
            self.study = opened(study)
            self.study.pruner = pruner(search.pruner, checked.longest.max_steps)

    def __enter__(self) -> Self:
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.worker"
        with locked(self._folder / LOCK, "starting a worker"):
            for path in self._folder.glob("*.worker"):
                if not is_held(path):  # it was killed
                    path.unlink()
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
        if time.monotonic() < self._again or len(self._taken) >= self._at_once:
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
        if outcome.status == "finished" and value is None:
            raise ConfigError(
                f"search.objective={self._search.objective}: {outcome.run_dir} has finished without; choose another"
            )
        if self._is_bad_input_of(outcome):
            self._refuse(taken.trial, str(outcome.message))
            self.refused.add(outcome.job.name)
            return f"refused: {outcome.message}"
        state = "pruned" if outcome.status == "stopped" and taken.is_pruned else outcome.status
        taken.trial.set_user_attr(STATE, state)
        if state == "finished":
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
        search, trials = self._search, self.study.get_trials(deepcopy=False)
        running = [each for each in trials if each.state is TrialState.RUNNING]
        held = [each for each in running if self._is_held(each)]
        busy = {each.user_attrs.get(RUN_DIR) for each in held}
        free = [each for each in running if each not in held and each.number not in self._left]
        for each in free:  # whoever had one may have been killed before all was drawn
            self.study.sampler = sampler(search.sampler, search.seed, each.number)
            if job := self._claimed(optuna.Trial(self.study, each._trial_id), busy):
                return job
        if not free and len(trials) < search.trials:
            self.study.sampler = sampler(search.sampler, search.seed, len(trials))
            return self._claimed(self.study.ask(), busy)
        self._is_done = not held and not free
        return None

    def _claimed(self, trial: optuna.Trial, busy: set[Any]) -> Job | None:
        """The job of a trial, which is this worker's now.

        None if its parameters make no run, or while another trial's run of the same name goes on.
        """
        values = {key: drawn(trial, key, each) for key, each in self._distributions.items()}
        name = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        job = Job(f"trial {trial.number} {name}", (*self._fixed, *overrides_of(values)))
        try:
            run_dir = compose(job.overrides).run_dir
        except ConfigError as error:
            compose(self._checked.sample)  # raises what is wrong with all
            self._refuse(trial, str(error))
            return None
        trial.set_user_attr(RUN_DIR, run_dir)
        if run_dir in busy:
            return None
        trial.set_user_attr(WORKER, self._worker)
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self._taken[job.name] = _Taken(trial, NewRows(Path(str(run_dir)), only_last=False), set(known))
        return job

    def _refuse(self, trial: optuna.Trial, reason: str) -> None:
        """Tells the study that the parameters of a trial, which are valid one by one, make no run together."""
        trial.set_user_attr(STATE, "refused")
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _is_bad_input_of(self, outcome: Outcome) -> bool:
        """Whether it is the trial's parameters that train.py does not take: it has taken those of others."""
        if outcome.exit_status != BAD_INPUT or str(outcome.run_dir) in (outcome.message or ""):
            return False
        others = self.study.get_trials(deepcopy=False)
        return any(each.user_attrs.get(STATE) in ("finished", "pruned", "diverged") for each in others)

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
        if trial.state is TrialState.RUNNING and (state in ENDED or self._is_held(trial)):
            state = "running" if self._is_held(trial) else "unfinished"  # not told yet
        value = trial.value if state in ("finished", "pruned") else None
        run_dir = str(trial.user_attrs.get(RUN_DIR, ""))
        reason = str(trial.user_attrs.get(REASON, ""))
        return Row(trial.number, value, state, trial.last_step, dict(trial.params), run_dir, reason)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
