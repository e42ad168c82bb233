"""search=optuna, mostly with runs that are no processes but a launcher's, which trains by a formula."""

import csv
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from typing_extensions import override

from configs import ConfigError, as_yaml, choose, compose, plug_in
from files import requirements
from launch import jobs, search_study, search_summary, search_trials
from launch.launcher import Ending, Launcher, Running, Start
from launch.search_space import Range, check, read_space
from launch.search_summary import picture
from launch.search_trials import ENDED as STATES
from launch.search_trials import Row

ROOT = Path(__file__).parents[2]
LR = "search.space.optim.lr={low: 1e-4, high: 1e-2, log: true}"
STEPS = 10


class Formula(Running):
    """A run whose loss is least at lr=1e-3, and falls by a step each time that it is asked whether it has ended."""

    note = ""

    def __init__(self, start: Start, launcher: "Formulas") -> None:
        self._launcher, self._run_dir, self._step = launcher, start.run_dir, 0
        self._is_asked = self.has_ended = False
        self._lr = start.config.optim["lr"]
        self._run_dir.mkdir(parents=True, exist_ok=True)
        (self._run_dir / "config.yaml").write_text(as_yaml(start.config))
        (self._run_dir / "metrics.jsonl").write_text("")

    @override
    def ending(self) -> Ending | None:
        self._step += 1
        loss = 3 + (math.log10(self._lr) + 3) ** 2 * self._step / STEPS
        with (self._run_dir / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"step": self._step, "val/loss": loss, "train/loss": -loss}) + "\n")
        status = self._launcher.fate(self._lr, self._step)
        if self._is_asked and self._step < STEPS:
            status = "stopped"
        if status == "trains" and self._step < STEPS:
            return None
        self.has_ended = True
        status = "finished" if status == "trains" else status
        result = {"status": status, "step": self._step, "val/loss": loss, "train/loss": -loss}
        if status == "failed":
            return Ending("failed", None, f"error: no memory for {self._run_dir}", 1.0, 1)
        (self._run_dir / "result.json").write_text(json.dumps(result))
        return Ending(status, result, None, 1.0, {"diverged": 3, "stopped": 75}.get(status, 0))

    @override
    def ask_to_stop(self) -> None:
        self._is_asked = True

    @override
    def kill(self) -> None:
        raise AssertionError("it would have stopped")


class Formulas(Launcher):
    """Runs of formulas, two at a time. fate: "trains", or how a run with this lr ends at this step."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.fate: Callable[[float, int], str] = lambda lr, step: "trains"
        self._running: list[Formula] = []

    @override
    def check(self, runs: Sequence[Start]) -> None:
        assert runs

    @override
    def room(self) -> int:
        return 2 - sum(not each.has_ended for each in self._running)

    @override
    def start(self, runs: Sequence[Start], script: Path) -> list[Running | OSError]:
        self.started += [str(run.run_dir) for run in runs]
        started = [Formula(run, self) for run in runs]
        self._running += started
        return list(started)


@pytest.fixture
def formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Formulas]:
    launcher = Formulas()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.search.plug_in", lambda node: launcher)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(search_trials, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(search_summary, "picture", lambda *given: b"")  # it takes half a second
    event.listen(Engine, "connect", unsynced)
    yield launcher
    event.remove(Engine, "connect", unsynced)


def unsynced(connection: Any, record: Any) -> None:
    """Makes SQLite not wait for the disk, which takes most of the time of such a search."""
    connection.execute("PRAGMA synchronous=OFF")


def search(*arguments: str, fixed: Sequence[str] = ("max_steps=10",), launch: dict[str, Any] | None = None) -> int:
    node = choose("search", ["search=optuna", *arguments]).node
    return int(plug_in(node).run("train.py", fixed, launch=launch or {}))


def trials() -> list[dict[str, str]]:
    (path,) = Path("runs").glob("search-*/trials.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_has_as_many_trials_as_asked_for_over_all_calls(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_summary, "ENOUGH", 4)
    assert search(LR, "search.trials=3") == 0
    assert search(LR, "search.trials=5") == 0
    assert len(formulas.started) == len(set(formulas.started)) == len(trials()) == 5
    assert [row["state"] for row in trials()] == ["finished"] * 5
    losses = [float(row["val/loss"]) for row in trials()]
    assert losses == sorted(losses)
    best = min(trials(), key=lambda row: abs(math.log10(float(row["optim.lr"])) + 3))
    assert best == trials()[0]
    printed = capsys.readouterr().out
    assert "is estimated from 4 finished trials on; there are 3" in printed
    assert "importance  optim.lr 100%" in printed
    (picture,) = Path("runs").glob("search-*/search.png")
    assert f"picture     {picture}\n" in printed


def test_the_picture_shows_trials_and_importances() -> None:
    rows = [
        Row(n, None if n == 3 else 3 + 1 / (n + 1), STATES[n % 3], 9, {"optim.lr": 1e-3}, "runs/x") for n in range(9)
    ]
    assert picture(rows, {"optim.lr": 1.0}, "val/loss").startswith(b"\x89PNG")
    assert picture([], {}, "val/loss").startswith(b"\x89PNG")


def test_a_run_that_was_made_before_is_found_by_its_parameters_and_not_trained(formulas: Formulas) -> None:
    search(LR, "search.trials=2")
    before = trials()
    for row in before:
        assert compose(["max_steps=10", f"optim.lr={row['optim.lr']}"]).run_dir == row["run_dir"]
    for folder in Path("runs").glob("search-*"):
        shutil.rmtree(folder)
    formulas.started.clear()
    assert search(LR, "search.trials=2") == 0
    assert (formulas.started, trials()) == ([], before)


def test_trials_of_the_same_parameters_are_one_run(formulas: Formulas) -> None:
    assert search("search.space.optim.lr=[1e-3,1e-2]", "search.trials=6") == 0
    assert len(formulas.started) == 2
    assert len(trials()) == 6


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_run_that_falls_behind_is_stopped_and_its_trial_pruned(formulas: Formulas, pruner: str) -> None:
    assert search(LR, "search.trials=9", f"search.pruner={pruner}") == 0
    found = trials()
    pruned = [row for row in found if row["state"] == "pruned"]
    assert pruned and {row["state"] for row in found} == {"finished", "pruned"}
    assert all(1 <= int(row["step"]) < STEPS for row in pruned)
    assert found[0]["state"] == "finished"
    for row in pruned:
        assert json.loads(Path(row["run_dir"], "result.json").read_text())["status"] == "stopped"


def test_a_search_that_can_prune_nothing_says_so(formulas: Formulas, capsys: pytest.CaptureFixture[str]) -> None:
    search("search.space.seed=[1,2]", "search.trials=1")
    search("search.space.seed=[1,2]", "search.trials=1", fixed=["max_steps=10", "eval_every=2"])
    assert capsys.readouterr().out.count("note: no run is pruned, as val/loss is known every 100 steps only\n") == 1


def test_without_a_pruner_every_run_is_trained_to_its_end(formulas: Formulas) -> None:
    assert search(LR, "search.trials=8", "search.pruner=null", "search.sampler=random") == 0
    assert {row["state"] for row in trials()} == {"finished"}


def test_the_objective_may_be_another_loss(formulas: Formulas) -> None:
    search(LR, "search.trials=4", "search.objective=train/loss")
    assert trials()[0]["train/loss"] == str(min(float(row["train/loss"]) for row in trials()))
    assert float(trials()[0]["train/loss"]) < 0


def test_an_objective_that_runs_do_not_have_ends_the_search(formulas: Formulas) -> None:
    with pytest.raises(ConfigError, match="search.objective=val/bits_per_byte: runs/.* has finished without"):
        search(LR, "search.trials=4", "search.objective=val/bits_per_byte")
    assert len(formulas.started) == 2  # those that ran at once


def test_a_run_that_diverges_is_a_result_and_never_the_best(formulas: Formulas) -> None:
    formulas.fate = lambda lr, step: "diverged" if lr < 2e-3 and step == 3 else "trains"
    assert search(LR, "search.trials=5", "search.pruner=null") == 0
    diverged = [row for row in trials() if float(row["optim.lr"]) < 2e-3]
    assert diverged == [row for row in trials() if row["state"] == "diverged"] == trials()[-len(diverged) :]
    assert {row["val/loss"] for row in diverged} == {""}


def test_a_run_that_fails_is_tried_again_by_the_same_command(
    formulas: Formulas, capsys: pytest.CaptureFixture[str]
) -> None:
    formulas.fate = lambda lr, step: "failed" if len(formulas.started) == 2 else "trains"
    assert search(LR, "search.trials=5") == 1
    assert [row["state"] for row in trials()] == ["finished"] * 3 + ["failed"] * 2
    assert "failed: trial 0 optim.lr=0.0095" in capsys.readouterr().out
    formulas.fate = lambda lr, step: "trains"
    assert search(LR, "search.trials=5") == 0
    assert [row["state"] for row in trials()] == ["finished"] * 5


def test_a_failure_that_all_runs_would_share_ends_the_search(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Formula, "ending", lambda self: Ending("failed", None, "error: no data", 1.0, 2))
    assert search(LR, "search.trials=5") == 2
    assert len(trials()) == 2  # those that ran at once


def test_parameters_that_make_no_run_together_are_a_trial_that_is_refused(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def composed(overrides: Sequence[str]) -> Any:
        if "seed=1" in overrides and "max_steps=20" in overrides:
            raise ConfigError("seed=1 has no 20 steps")
        return compose(overrides)

    space = ["search.space.seed=[1,2]", "search.space.max_steps=[10,20]"]
    monkeypatch.setattr(search_trials, "compose", composed)
    assert search(*space, "search.trials=8", "search.pruner=null", fixed=[]) == 0
    refused = [row for row in trials() if row["state"] == "refused"]
    assert refused and {row["state"] for row in trials()} == {"finished", "refused"}
    assert {(row["seed"], row["max_steps"], row["val/loss"]) for row in refused} == {("1", "20", "")}
    printed = capsys.readouterr().out
    assert f"refused: trial {refused[0]['trial']}: seed=1 has no 20 steps\n" in printed
    monkeypatch.setattr(search_trials, "compose", lambda overrides: composed([*overrides, "seed=1", "max_steps=20"]))
    with pytest.raises(ConfigError, match="seed=1 has no 20 steps"):  # nothing composes any more: no fault of a trial
        search(*space, "search.trials=9", fixed=[])


def test_parameters_that_train_py_does_not_take_are_refused_if_it_has_taken_others(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Formula.ending

    def of_a_model(self: Formula) -> Ending | None:
        is_bad = self._lr > 3e-3 and any(Path("runs").glob("*/result.json"))
        return Ending("failed", None, f"error: n_embd={self._lr}", 1.0, 2) if is_bad else ending(self)

    monkeypatch.setattr(Formula, "ending", of_a_model)
    for _ in range(9):
        if (status := search(LR, "search.trials=6", "search.pruner=null", launch={"at_once": 1})) != 75:
            break
    assert status == 0
    assert {row["state"] for row in trials()} == {"finished", "refused"}
    assert all(float(row["optim.lr"]) > 3e-3 for row in trials() if row["state"] == "refused")


def test_an_interrupted_search_shows_its_trials_and_the_same_command_continues(
    formulas: Formulas, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[float] = []

    def interrupt(lr: float, step: int) -> str:
        if len(formulas.started) == 4 and step == 5 and not asked:
            asked.append(lr)
            os.kill(os.getpid(), signal.SIGINT)
        return "trains"

    formulas.fate = interrupt
    assert search(LR, "search.trials=5") == 75
    n_finished = sum(row["state"] == "finished" for row in trials())
    assert n_finished >= 2 and {row["state"] for row in trials()} == {"finished", "stopped"}
    assert "interrupted; the same command continues" in capsys.readouterr().out
    formulas.fate = lambda lr, step: "trains"
    assert search(LR, "search.trials=5") == 0
    assert [row["state"] for row in trials()] == ["finished"] * 5


def test_a_trial_of_a_worker_that_was_killed_is_continued_as_the_same_trial(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """What a process does not outlive: nothing is told to the study any more."""

    def killed(*given: Any) -> None:
        raise Killed

    for method in ("_claimed", "ended"):  # before all is drawn; before it tells of a run that has finished
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(search_trials.Trials, method, killed)
            search(LR, "search.trials=2", "search.pruner=null")
    n_started = len(formulas.started)
    assert search(LR, "search.trials=4", "search.pruner=null") == 0
    assert sorted(int(row["trial"]) for row in trials()) == [0, 1, 2, 3]
    assert len(formulas.started) == n_started + 2


def test_on_other_machines_the_command_says_how_many_trials_run_at_a_time(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Formulas, "is_elsewhere", True)
    with pytest.raises(ConfigError, match="search=... needs launch.at_once=..., the number of trials in the queue"):
        search(LR)
    most: list[int] = []

    def fate(lr: float, step: int) -> str:
        most.append(sum(not each.has_ended for each in formulas._running))
        return "trains"

    formulas.fate = fate
    assert search(LR, "search.trials=3", launch={"at_once": 1}) == 0
    assert set(most) == {1}


def test_a_study_of_another_search_is_refused_before_anything_starts(formulas: Formulas) -> None:
    search(LR, "search.trials=1", "search.study=mine")
    formulas.started.clear()
    for more, fixed, message in (
        ([LR], ["max_steps=20"], r"max_steps=20 \(there: 10\); give search.study another name"),
        ([LR.replace("1e-2", "1e-1")], ["max_steps=10"], r"search.space.optim.lr=.*high: 0.1.* \(there: .*high: 0.01"),
        ([LR, "search.objective=train/loss"], ["max_steps=10"], r"search.objective=train/loss \(there: val/loss\)"),
    ):
        with pytest.raises(ConfigError, match=f"the study mine in sqlite:///.* is of another search: {message}"):
            search(*more, "search.study=mine", fixed=fixed)
    assert formulas.started == []
    assert search(LR, "search.trials=1", "search.study=mine", fixed=["max_steps=10", "log_every=5"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["search.trials=0"], "search.trials=0 must be >= 1"),
        (["search.study=a/b"], "search.study=a/b must be a name"),
        (["search.storage=sqlite://"], "search.storage=sqlite:// would be lost with this command: give sqlite:///FILE"),
        (["search.storage=sqlite:///:memory:"], "search.storage=sqlite:///:memory: would be lost"),
        (["search.storage=oracle9"], "search.storage=oracle9 cannot be used: "),
        (["search.storage=sqlite:////proc/no.db"], "search.storage=sqlite:////proc/no.db cannot be used: "),
    ],
)
def test_what_no_study_can_be_is_one_line(formulas: Formulas, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        search(LR, *more)
    assert "\n" not in str(caught.value)
    assert formulas.started == []


def test_a_storage_of_another_version_of_optuna_is_one_line(formulas: Formulas) -> None:
    search(LR, "search.trials=1", "search.study=mine")
    with closing(sqlite3.connect("runs/search-mine/study.db")) as database, database:
        database.execute("UPDATE version_info SET schema_version=99")
        database.execute("UPDATE alembic_version SET version_num='v9.9.9'")
    with pytest.raises(
        ConfigError, match=r"search.storage=sqlite:.* was made by another version of Optuna than "
    ) as it:
        search(LR, "search.trials=1", "search.study=mine")
    assert "\n" not in str(it.value)


def test_the_password_of_a_storage_is_not_shown() -> None:
    assert search_study.without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert search_study.without_password("sqlite:///runs/a.db") == "sqlite:///runs/a.db"


def test_without_optuna_one_line_says_what_to_install(
    formulas: Formulas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requirements, "_is_installed", lambda name: name != "optuna")
    with pytest.raises(SystemExit, match="2"):
        search(LR)
    (line,) = capsys.readouterr().err.splitlines()
    assert "the extra [search], of which optuna is not installed: pip install -e '.[search]'" in line


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "search.space is empty; give what to vary"),
        ({"a": 3}, "search.space.a: 3 must be a range, {low: ..., high: ...}, or a list of choices"),
        ({"a": []}, "search.space.a: the list of choices is empty"),
        ({"a": ["x", "x"]}, "search.space.a: x is the only choice; give it to all runs, a=x"),
        ({"a": {"low": 0, "high": 1, "step": 1e-300}}, "search.space.a: step=1e-300 is too small for high - low"),
        ({"a": {"low": 1}}, "search.space.a: high is missing"),
        ({"a": {"low": 1, "hi": 2}}, "search.space.a: a range has no hi; it has low, high, log, step"),
        ({"a": {"low": 2, "high": 2}}, "search.space.a: low=2 must be < high=2"),
        ({"a": {"low": 1, "high": "x"}}, "search.space.a: high must be a number, it is x"),
        ({"a": {"low": 1, "high": math.inf}}, "search.space.a: high must be a number, it is inf"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "search.space.a: low=0 must be > 0 where log is true"),
        ({"a": {"low": 1, "high": 2, "log": 1}}, "search.space.a: log must be true or false, it is 1"),
        ({"a": {"low": 1, "high": 2, "step": 2}}, "search.space.a: step=2 must be > 0 and at most high - low"),
        ({"a": {"low": 1, "high": 4, "step": 1, "log": True}}, "search.space.a: step and log exclude each other"),
        ({"a": {"b": 1}, "c": []}, "search.space.a.b: 1 must be .*\nsearch.space.c: the list of choices is empty"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_line_for_each_mistake(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space(space)


@pytest.mark.parametrize(
    ("space", "fixed", "message"),
    [
        ({"optim.lrr": [1, 2]}, [], "search.space: unknown key 'optim.lrr'; the nearest valid one is 'optim.lr'"),
        ({"seed": {"low": 0, "high": 1.5}}, [], "search.space: seed=1.5 must be a whole number"),
        (
            {"optim": ["adamw", "lionn"]},
            [],
            "search.space: optim=lionn does not exist; the nearest valid one is 'lion'",
        ),
        ({"seed": {"low": 1, "high": 3, "step": 0.5}}, [], "search.space: seed=1.5 must be a whole number"),
        ({"seed": [1, 2]}, ["optim=adamw,lion"], "optim=adamw,lion has several values; give one, or let the search"),
        ({"data.prompt": ["a", "b"]}, [], "search.space.data.prompt: the result of a run does not depend on"),
        ({"seed": [1, 2]}, ["seed=3"], "search.space.seed: the key is varied; leave out seed=3"),
        ({"seed": [1, 2]}, ["run_dir=x"], "search.space.seed: all runs would write run_dir=x; leave run_dir out"),
        ({"log_every": [1, 2]}, [], "search.space.log_every: the result of a run does not depend on log_every"),
    ],
)
def test_every_key_of_a_space_is_checked_by_composing_runs(
    space: dict[str, Any], fixed: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(read_space(space), fixed)


def test_whole_ends_of_a_key_that_takes_fractions_are_fractions_unless_a_step_is_whole() -> None:
    ends: dict[str, Any] = {"low": 0, "high": 2}
    space = {"grad_clip": ends | {"low": 1}, "seed": ends, "optim.weight_decay": ends | {"step": 1}}
    found = check(read_space(space), []).space
    assert {key: isinstance(each, Range) and each.is_whole for key, each in found.items()} == {
        "grad_clip": False,
        "seed": True,
        "optim.weight_decay": True,
    }


# Stands in for train.py: it takes a moment, saves when it is asked to, and says in `events` that it has finished. Its
# run directory has its log beside it, which is its output.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

log = Path(os.readlink("/proc/self/fd/1"))
run_dir, lr = log.with_suffix(""), float(dict(each.split("=", 1) for each in sys.argv[1:])["optim.lr"])
run_dir.mkdir(exist_ok=True)

def end(status, code):
    (run_dir / "result.json").write_text(json.dumps({"status": status, "step": 10, "val/loss": lr}))
    sys.exit(code)

signal.signal(signal.SIGTERM, lambda number, frame: end("stopped", 75))
time.sleep(0.05)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with Path("events").open("a") as events:
    events.write(f"{run_dir.name}\\n")
end("finished", 0)
"""
WORKER = """
import sys
from configs import choose, plug_in
launch = choose("launch", ["launch.at_once=2"]).node
sys.exit(plug_in(choose("search", sys.argv[2:]).node).run(sys.argv[1], ["max_steps=10"], launch=launch))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in finds its run directory by /proc")
def test_three_workers_of_which_one_is_killed_do_every_trial_once(tmp_path: Path) -> None:
    def worker(n_trials: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(script), "search=optuna", LR, f"search.trials={n_trials}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    def finished() -> list[str]:
        return events.read_text().split() if events.is_file() else []

    script, events = tmp_path / "stand_in.py", tmp_path / "events"
    script.write_text(STAND_IN)
    workers = [worker(30) for _ in range(3)]
    n_before, deadline = random.randrange(1, 20), time.monotonic() + 60
    while len(finished()) < n_before and time.monotonic() < deadline:
        time.sleep(0.01)
    killed = workers.pop(random.randrange(3))
    killed.kill()
    killed.wait()
    assert [each.wait(timeout=60) for each in workers] == [0, 0]
    assert len(finished()) >= 30 and len(set(finished())) == 30
    assert worker(31).wait(timeout=60) == 0
    assert len(set(finished())) == 31
    with next(tmp_path.glob("runs/search-*/trials.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["trial"]) for row in rows) == list(range(31))
    assert {row["run_dir"].removeprefix("runs/") for row in rows} == set(finished())
    assert {row["state"] for row in rows} == {"finished"}
    assert list(tmp_path.glob("runs/search-*/*.worker")) == []
