"""search=optuna: Optuna chooses the next run by what the others have found; `python train.py search=optuna ...`.

Who owns what
    search.py          the keys search.*, what is checked before anything starts, the exit status
    search_space.py    ranges and choices: what they may be, and their values as overrides
    search_study.py    the study in Optuna's storage; what is asked of Optuna
    search_trials.py   its trials: which comes next, when one is pruned, how one ended
    search_summary.py  the table, the CSV and the picture at the end
    jobs.py            runs the jobs that the study gives, as it runs those of a sweep
The study (search.storage, an SQLite file by default) says which trials there are and with which parameters. What a run
has learnt is in its run directory alone. Beside them <folder>/ has the lock of the study and one of every worker.

The life of a trial
    A worker is one call of the command; any number of them, on machines that share the file system, work on one study.
    With the study's lock a worker takes a trial: one that nobody holds, else, if there are fewer than search.trials, a
    new one, for which the sampler draws the parameters. It writes its name into the trial and gives the lock back. The
    trial is a job like any other: `train.py <fixed overrides> <parameters>`, in the run directory that configs/ names.
    So a run that was made before, by whatever command, is not trained again. While it runs, its losses are reported to
    the study; where the pruner says so, it is asked to save and end. The trial is then told to the study:
        the run finished        COMPLETE, with the objective
        it was pruned           PRUNED
        it diverged             PRUNED, so that the sampler avoids the place; the summary says "diverged"
        it cannot be            PRUNED, as parameters that are valid one by one may exclude each other: they do not
                                compose, or train.py ends with bad input where it has taken others; "refused"
        it failed or stopped    RUNNING, and nobody's: the next worker continues the run, this one does not try again
    A trial is in the study from its first moment and never replaced by another, so there are search.trials in all,
    whoever is killed. Nothing is left to do when all have been told; a worker without a trial waits for that, as it may
    have to continue those of others.

What happens on a kill
    Each worker holds the lock of a file named after it, and the system releases it however the worker ends. Then the
    trials that bear its name are nobody's. Its runs get SIGTERM from Linux, save, and release their run directories,
    for which whoever takes such a trial waits (jobs.py). A worker that was killed while it drew a trial leaves one with
    some of its parameters, or without a name: whoever takes it draws the others. One that was killed before it told of
    a run that had finished leaves a run directory in which the next one finds the result.
    Optuna's own heartbeat is not used: it takes minutes to see a kill, counts the trial as failed, and makes a second
    one of it.

The parameters of a trial depend on search.seed, its number, and the trials told before it. With several at a time it
depends on their speed which these are.
"""

import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from configs import ConfigError, RunConfig, plug_in
from configs.runs import plain
from files.errors import shown
from files.requirements import check_installed
from launch.job import Interrupted, Outcome
from launch.jobs import run_jobs
from launch.processes import log_path
from launch.search_space import check, read_space
from launch.statuses import EXIT_STATUS

FOLDER = Path("runs")
NAME = re.compile(r"[\w.-]+")


class Optuna:
    """Optuna's search; its arguments are the keys search.*, explained in configs/search/optuna.yaml."""

    def __init__(
        self,
        space: Mapping[str, Any],
        trials: int,
        study: str | None,
        storage: str | None,
        seed: int,
        sampler: Literal["tpe", "random"],
        pruner: Literal["median", "hyperband"] | None,
        objective: Literal["val/loss", "train/loss", "val/bits_per_byte"],
    ) -> None:
        self.space, self.trials, self.study, self.storage = plain(space), trials, study, storage
        self.seed, self.sampler, self.pruner, self.objective = seed, sampler, pruner, objective

    def run(
        self,
        script: str,
        fixed: Sequence[str],
        *,
        launch: Mapping[str, Any],
        provide: Callable[[RunConfig], object] | None = None,
    ) -> int:
        """Runs trials until the study has all of them; prints and writes the summary, also after a signal.

        fixed: the overrides that all runs share. launch: the class of the launcher and its arguments. provide: as of
        run_jobs. Returns 0 if all finished, were pruned or diverged; 75 after a signal; else the exit status of the
        first run that failed.

        Raises: ConfigError: before anything starts, if a key, a range, the study or the launcher does not fit.
        """
        self._check()
        space = read_space(self.space)
        check_installed("search")
        from launch.search_study import Study, storage_errors, without_password
        from launch.search_summary import summarize
        from launch.search_trials import ENDED, Trials

        checked, launcher = check(space, fixed), plug_in(launch)
        if launcher.is_elsewhere and launch.get("at_once") is None:
            raise ConfigError(
                "search=... needs launch.at_once=..., the number of trials in the queue at a time: for example 8"
            )
        description = {"search.objective": self.objective, **checked.settings}
        description |= {f"search.space.{key}": value for key, value in checked.content.items()}
        name = self.study or hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
        folder = FOLDER / f"search-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        storage = self.storage or f"sqlite:///{folder / 'study.db'}"
        study = Study(name, storage, folder, description)
        trials = Trials(self, checked, fixed, study, launch.get("at_once"))
        self._say_if_none_is_pruned(checked.longest)
        with storage_errors(storage):
            with trials:
                run = partial(run_jobs, [], launcher, script=Path(script), alike=True, source=trials, provide=provide)
                status = _exit_status(run, trials.refused)
            rows = trials.rows()
            summarize(trials.study, rows, self.objective, folder)
        print(f"study       {name} in {without_password(storage)}")
        is_done = len(rows) >= self.trials and all(row.state in ENDED for row in rows)
        return status or (0 if is_done else EXIT_STATUS["stopped"])

    def _check(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"search.trials={self.trials} must be >= 1")
        if self.study is not None and not NAME.fullmatch(self.study):
            raise ConfigError(f"search.study={shown(self.study)} must be a name of letters, digits, '.', '_' and '-'")

    def _say_if_none_is_pruned(self, config: RunConfig) -> None:
        every = config.log_every if self.objective == "train/loss" else config.eval_every
        if self.pruner and every >= config.max_steps:
            print(f"note: no run is pruned, as {self.objective} is known every {every} steps only")


def _exit_status(run: Callable[[], list[Outcome]], refused: Container[str]) -> int:
    """Runs the jobs, says which failed; returns 75 after a signal, else the status of the first that failed, else 0.

    refused: names of jobs whose failure is a result.
    """
    try:
        failed = [each for each in run() if each.status == "failed" and each.job.name not in refused]
    except Interrupted:
        return EXIT_STATUS["stopped"]
    for outcome in failed:
        print(f"failed: {outcome.job.name}: {outcome.message} (log {log_path(outcome.run_dir)})")
    return failed[0].exit_status if failed else 0
