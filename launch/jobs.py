"""Runs train.py in processes of their own: finished runs are skipped, broken ones continued.

The only record are the run directories, so the same call continues wherever the last one ended. A process writes its
output to <run_dir>.log, beside its run directory. If the calling process is killed (SIGKILL), its processes get SIGTERM
from Linux, on which they save and end; on other systems they train to their end.

A run that a process of somebody else holds is left to it, and the other jobs go first: of an equal call, so that two
share their jobs, or of one that was killed. When that process has ended, its result is taken, or the run continued. A
run that hangs is ended by what started it (watch.py): here, or on a node of SLURM its task. Its job fails.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs import RunConfig
from launch.entry import check_run_dirs, entry_of
from launch.job import Interrupted, Job, Outcome, Source
from launch.launcher import Launcher
from launch.local import Local
from launch.processes import GRACE_SECONDS, TRAIN
from launch.progress import Display
from launch.runner import Runner
from launch.stopping import SignalCounter

POLL_SECONDS = 0.05


def run_jobs(
    jobs: Sequence[Job],
    launcher: Launcher | None = None,
    *,
    show: bool = True,
    script: Path = TRAIN,
    alike: bool = False,
    provide: Callable[[RunConfig], object] | None = None,
    source: Source | None = None,
) -> list[Outcome]:
    """Runs the jobs in order, as the launcher has room, Local() if None; returns their outcomes in order.

    source: gives further jobs.

    A job whose run directory holds its run, finished or diverged, starts no process. If a job fails, the others
    run all the same, unless the jobs are alike and all would fail for the same reason (see runner.is_shared): those
    that have not started then have no outcome. provide: called with the configuration of every run that starts
    elsewhere, before any does; it makes what they read, or says what is missing. Call this from the main thread: it
    handles the signals of stopping.py meanwhile.

    Raises: ConfigError: before anything starts, if a job does not compose, two share a run directory, or the launcher
    cannot start one that has not ended. Interrupted: after a signal; a second SIGINT does not wait for processes to
    save.
    """
    with SignalCounter() as signals:
        entries = [entry_of(job) for job in jobs]
        check_run_dirs(entries)
        launcher = launcher or Local()
        to_start = [entry for entry in entries if not entry.has_ended_before()]
        to_start += [entry_of(source.sample)] if source else []
        if to_start:
            launcher.check([entry.start for entry in to_start])
        provide = provide if launcher.is_elsewhere else None
        if provide is not None:
            for entry in to_start:
                provide(entry.config)
        runner = Runner(entries, launcher, script, alike=alike, source=source, provide=provide)
        with Display(runner.progress, show=show, is_numbered=source is None) as display:
            _run(runner, signals, display)
    if signals.count:
        interrupted = Interrupted(runner.outcomes)
        display.say(str(interrupted))
        raise interrupted
    return runner.outcomes


def _run(runner: Runner, signals: SignalCounter, display: Display) -> None:
    try:
        while not runner.is_done and not signals.count:
            runner.advance()
            display.refresh()
            time.sleep(POLL_SECONDS)
    finally:
        _stop(runner, signals, display)  # does nothing if all have ended


def _stop(runner: Runner, signals: SignalCounter, display: Display) -> None:
    """Asks the processes to end, and kills them after GRACE_SECONDS or a second SIGINT."""
    if not runner.running:
        return
    if runner.is_elsewhere:
        display.say(f"{len(runner.running)} not ended: they go on without this command; given again, it follows them")
        return
    display.say(f"stopping: {len(runner.running)} running, they save and end; interrupt again to kill them")
    for started in runner.running:
        started.running.ask_to_stop()
    deadline = time.monotonic() + GRACE_SECONDS
    while runner.running:
        if time.monotonic() > deadline or signals.interrupts > 1:
            for started in runner.running:
                started.running.kill()
        time.sleep(POLL_SECONDS)
        runner.collect()
        display.refresh()


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs whose run directory does not hold their run, finished or diverged. Raises: ConfigError."""
    return [entry.job for entry in map(entry_of, jobs) if not entry.has_ended_before()]
