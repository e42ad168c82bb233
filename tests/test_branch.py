"""The law of branches: a run that begins at a step of another one equals the run that it replaces, bit for bit."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from every_option import FEWEST, few_fast
from killing import killed_at
from remains import ends, metrics, result

import train
from configs import ConfigError, compose, composed, differences, flat
from data import TokenLoader
from launch.job import Job
from launch.jobs import run_jobs
from reproduce import records

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("undrawn")
INTERVALS = ("every", "precondition_frequency", "rank_interval")
# The run of 20 steps is the trunk; one of 10 begins at .8 of its own length, before either decays.
TRUNK = ["schedule=wsd", "schedule.warmup_steps=2", "max_steps=20", "save_at=[4,8]", "keep_checkpoints=1"]
SHORT = ["schedule=wsd", "schedule.warmup_steps=2", "max_steps=10"]
STEP = 8
OTHER_SCHEDULE = "schedule.warmup_steps=3"

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path, tiny: list[str]) -> Start:
    """Runs train.py's main in this process: start("name", *overrides)."""
    return lambda name, *overrides: train.main(compose([*tiny, f"run_dir={tmp_path / name}", *overrides]))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a finished run with the checkpoints of steps 4, 8 and 20."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    assert train.main(compose([*tiny, *TRUNK, f"run_dir={folder}"])) == 0
    return folder


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of the run from step 0 that a branch of the trunk replaces."""
    folder = tmp_path_factory.mktemp("replaced") / "run"
    assert train.main(compose([*tiny, *SHORT, f"run_dir={folder}"])) == 0
    return folder


def from_step(step: int, found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of what ends() says, the rows from that step on."""
    return (*found[:-1], [row for row in found[-1] if row["step"] >= step])


def environment(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "env.json").read_text())
    return found


def origin(run: Path, step: int, *, exact: bool = True) -> dict[str, Any]:
    """What env.json says of a branch."""
    return {"run": str(run), "step": step, "exact": exact, "start": "everything", "changed": []}


def content(folder: Path) -> Mapping[str, Any]:
    """All that a folder holds, with the times at which it was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@few_fast("optimizer", few=FEWEST)
def test_a_branch_ends_bit_for_bit_like_the_run_that_it_replaces(start: Start, tmp_path: Path, optimizer: str) -> None:
    chosen = [f"optim={optimizer}"]
    chosen += [f"{key}=3" for key in flat(compose(chosen)) if key.rpartition(".")[2] in INTERVALS]  # 8 lies within one
    assert start("trunk", *TRUNK, *chosen) == 0
    assert start("replaced", *SHORT, *chosen) == 0
    assert start("branch", *SHORT, *chosen, f"start_from={tmp_path / 'trunk'}@{STEP}") == 0
    assert ends(tmp_path / "branch") == from_step(STEP, ends(tmp_path / "replaced"))
    assert environment(tmp_path / "branch")["start_from"]["exact"] is True


@pytest.mark.parametrize("way", ["the trunk's last step", "a trunk with a constant rate", "no step of its own"])
def test_it_does_so_wherever_the_learning_rates_so_far_agree(
    start: Start, trunk: Path, tmp_path: Path, way: str
) -> None:
    before, step, overrides = trunk, 4, ["schedule=wsd", "schedule.decay_fraction=0.5", "max_steps=8"]
    if way == "a trunk with a constant rate":
        assert start("constant", "schedule=constant", "max_steps=9", "save_at=[4]") == 0
        before = tmp_path / "constant"
    elif way == "the trunk's last step":
        assert start("constant", "schedule=constant", "max_steps=4") == 0
        before = tmp_path / "constant"
    else:
        overrides = ["schedule=constant", "max_steps=4"]
    assert start("replaced", *overrides) == 0
    assert start("branch", *overrides, f"start_from={before}@{step}") == 0
    assert environment(tmp_path / "branch")["start_from"] == origin(before, step)
    assert result(tmp_path / "branch")["params_sha256"] == result(tmp_path / "replaced")["params_sha256"]
    assert result(tmp_path / "branch")["val/loss"] == result(tmp_path / "replaced")["val/loss"]


def test_counters_go_on_and_seconds_count_from_the_trunks(
    start: Start, trunk: Path, replaced: Path, tmp_path: Path
) -> None:
    assert start("branch", *SHORT, f"start_from={trunk}@{STEP}") == 0
    saved = json.loads((trunk / "checkpoints" / f"step_{STEP:06d}" / "state.json").read_text())
    rows, own = metrics(tmp_path / "branch"), result(tmp_path / "branch")
    assert [row["step"] for row in rows if "val/loss" in row] == [10]
    assert rows[0]["step"] == STEP and rows[0]["seconds"] >= saved["seconds"] > 0
    assert own["seconds"] > rows[0]["seconds"]
    assert (own["tokens"], own["flops"]) == (10 * 8 * 16, result(replaced)["flops"])
    assert own["tokens_per_second"] == pytest.approx(own["tokens"] / own["seconds"])


def test_a_record_of_a_branch_is_that_of_the_run_that_it_replaces_from_its_step_on(
    start: Start, trunk: Path, tmp_path: Path
) -> None:
    limit = ["eval_every=2", "grad_clip=1e-3"]  # clips every step
    assert start("trunk", *TRUNK, *limit) == 0
    assert start("replaced", *SHORT, *limit) == 0
    assert start("branch", *SHORT, *limit, f"start_from={tmp_path / 'trunk'}@{STEP}") == 0
    expected, found = records.read(tmp_path / "replaced"), records.read(tmp_path / "branch")
    assert found.curve["step"] == [8, 10]
    for column in ("step", "tokens", "flops", "val/loss"):
        assert found.curve[column] == expected.curve[column][-2:]
    assert (found.loss, found.step, found.flops) == (expected.loss, expected.step, expected.flops)
    assert found.clipped_share == expected.clipped_share == 1.0


@pytest.mark.parametrize("step", [8, 9])  # before and after its first own checkpoint
def test_an_interrupted_branch_continues_and_needs_the_trunk_no_longer_than_it_has_no_checkpoint(
    start: Start, trunk: Path, replaced: Path, tmp_path: Path, step: int
) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    branch = ["branch", *SHORT, f"start_from={copy}@{STEP}", "save_every=1"]
    killed_at(step, start, *branch)
    if step > STEP:
        shutil.rmtree(copy)
    assert start(*branch, "resume=must") == 0
    assert ends(tmp_path / "branch") == from_step(STEP, ends(replaced))
    assert environment(tmp_path / "branch")["start_from"] == origin(copy, STEP)
    shutil.rmtree(copy, ignore_errors=True)
    assert start(*branch) == 0  # has finished


def test_a_branch_of_the_newest_begins_again_where_it_began_though_the_trunk_has_grown(
    start: Start, tmp_path: Path
) -> None:
    assert start("trunk", "max_steps=4", "keep_checkpoints=9") == 0
    branch = ["branch", "max_steps=9", "schedule=constant", f"start_from={tmp_path / 'trunk'}"]
    killed_at(5, start, *branch, "save_every=9")
    assert start("trunk", "max_steps=7", "keep_checkpoints=9") == 0
    assert start(*branch) == 0
    assert environment(tmp_path / "branch")["start_from"]["step"] == 4


def test_an_exact_branch_and_the_run_that_it_replaces_continue_each_other(
    start: Start, trunk: Path, replaced: Path, tmp_path: Path
) -> None:
    branch = f"start_from={trunk}@{STEP}"
    killed_at(9, start, "a", *SHORT, branch, "save_every=1")
    assert start("a", *SHORT) == 0
    assert ends(tmp_path / "a") == from_step(STEP, ends(replaced))
    assert environment(tmp_path / "a")["start_from"]["step"] == STEP
    assert start("a", *SHORT, f"start_from={trunk}@4") == 0  # has finished
    killed_at(5, start, "b", *SHORT, "save_every=3")
    assert start("b", *SHORT, branch) == 0
    assert ends(tmp_path / "b") == ends(replaced)
    assert environment(tmp_path / "b")["start_from"] is None


def test_a_branch_that_is_not_exact_is_a_run_of_its_own(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = f"start_from={trunk}@{STEP}"
    killed_at(9, start, "a", *SHORT, OTHER_SCHEDULE, branch, "save_every=1")
    assert environment(tmp_path / "a")["start_from"] == origin(trunk, STEP, exact=False)
    for other, named in (([], "null"), ([f"start_from={trunk}@4"], f"{trunk}@4")):
        assert start("a", *SHORT, OTHER_SCHEDULE, *other) == 2
        assert f"start_from={named} (there: {trunk}@{STEP}); choose another run_dir" in capsys.readouterr().err
    assert start("a", *SHORT, OTHER_SCHEDULE, branch) == 0
    assert start("from step 0", *SHORT, OTHER_SCHEDULE) == 0
    assert start("from step 0", *SHORT, OTHER_SCHEDULE, branch) == 2
    assert f"start_from={trunk}@{STEP} (there: null)" in capsys.readouterr().err
    # what begins at a step of such a branch ends as no run from step 0 does, though its schedule is the branch's
    assert start("of it", *SHORT, OTHER_SCHEDULE, f"start_from={tmp_path / 'a'}@10") == 0
    assert environment(tmp_path / "of it")["start_from"]["exact"] is False


REFUSED = {
    "no run": (["start_from={folder}/nowhere@8"], "nowhere is no run directory: it has no config.yaml"),
    "no such step": (["start_from={trunk}@7"], "has no checkpoint of step 7; the newest are of steps 4, 8, 20"),
    "another model": (["model.n_embd=32"], "model.n_embd=32 (there: 16)"),
    "another optimizer": (["optim=lion"], "optim._target_=optim.Lion (there: torch.optim.AdamW)"),
    "another batch": (["global_batch=4"], "global_batch=4 (there: 8); add global_batch=8, or start=weights"),
    "another precision": (["precision=bf16"], "precision=bf16 (there: fp32)"),
    "another tokenizer": (
        ["data/tokenizer=bpe", "data.tokenizer.vocab_size=257"],
        "was trained with another tokenizer (257 ids) than the data have (257 ids): prepare them with that one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_trunk_that_does_not_fit_is_refused_in_one_line_and_nothing_is_left(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    overrides, said = REFUSED[case]
    given = [each.format(folder=tmp_path, trunk=trunk) for each in overrides]
    before = content(trunk)
    assert start("runs/branch", *SHORT, f"start_from={trunk}@{STEP}", *given) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if not each.startswith("encoding ")]
    assert line.startswith("error: ") and said in line and str(trunk if "nowhere" not in said else tmp_path) in line
    assert not (tmp_path / "runs").exists()
    assert content(trunk) == before


@pytest.mark.parametrize("file", ["state.json", "manifest.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_a_damaged_checkpoint_is_refused_in_one_line_and_stays_where_it_is(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    damaged = copy / "checkpoints" / f"step_{STEP:06d}" / file
    damaged.write_bytes(damaged.read_bytes()[:-2])
    before = content(copy)
    assert start("branch", *SHORT, f"start_from={copy}@{STEP}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"step_{STEP:06d} is damaged: " in line and line.endswith("; choose another step")
    assert not (tmp_path / "branch").exists()
    assert content(copy) == before


@pytest.mark.parametrize("name", ["config.yaml", "env.json"])
def test_a_damaged_description_of_the_trunk_is_refused_in_one_line(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    for text in ("{", '{"start_from": 1}', '{"start_from": {"run": "a", "step": 1}}'):
        (copy / name).write_text(text)
        assert start("branch", *SHORT, f"start_from={copy}@{STEP}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(copy) in line and not (tmp_path / "branch").exists()


@pytest.mark.parametrize("text", ["runs/a@", "@8", "runs/a@last", "runs/a@-1", "runs/a@8.0", "", "a@" + "9" * 99])
def test_anything_but_a_run_and_a_step_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be RUN@STEP"):
        compose([f"start_from={text}"])


def test_steps_beyond_the_last_are_refused() -> None:
    assert compose(["start_from=runs/a@250"]).start_from == "runs/a@250"
    with pytest.raises(ConfigError, match="start_from=runs/a@251 has a step beyond the run's last, max_steps=250"):
        compose(["start_from=runs/a@251"])
    with pytest.raises(ConfigError, match="save_at=.*251.* has a step beyond the run's last, max_steps=250"):
        compose(["save_at=[200,251]"])
    with pytest.raises(ConfigError, match="save_at=.* must be >= 1"):
        compose(["save_at=[0,3]"])


def test_any_path_can_be_a_trunk(
    start: Start, trunk: Path, replaced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trunk, tmp_path / "a b@3" / "ü=,{x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert start("branch", *SHORT, f"start_from=~/a b@3/ü=,{{x@{STEP}") == 0
    assert ends(tmp_path / "branch") == from_step(STEP, ends(replaced))


def test_a_trunk_is_only_read_and_nothing_of_it_is_executed(start: Start, trunk: Path, tmp_path: Path) -> None:
    copy, trace = shutil.copytree(trunk, tmp_path / "copy"), tmp_path / "executed"
    config = (copy / "config.yaml").read_text()
    kept, _, rest = config.partition("schedule:\n")
    after = rest.partition("parallel:\n")[2]
    for node in (
        f"  _target_: pathlib.Path.touch\n  self: {trace}\n",
        f"  _target_: trainer.metrics.JsonLines\n  path: {trace}\n  step: 0\n",
        f"  _target_: trainer.Constant\n  warmup_steps:\n    _target_: pathlib.Path.touch\n    self: {trace}\n",
    ):
        (copy / "config.yaml").write_text(f"{kept}schedule:\n{node}parallel:\n{after}")
        before = content(copy)
        assert start("branch", *SHORT, f"start_from={copy}@{STEP}") == 0
        assert environment(tmp_path / "branch")["start_from"]["exact"] is False
        assert content(copy) == before and not trace.exists()
        shutil.rmtree(tmp_path / "branch")


def test_a_branch_begins_while_its_trunk_is_running(start: Start, trunk: Path, replaced: Path, tmp_path: Path) -> None:
    running = ["running", *TRUNK]
    batches = TokenLoader.batches

    def branching(loader: TokenLoader, at: int) -> Any:
        if at == 9 and not (tmp_path / "branch").exists():
            with torch.random.fork_rng():  # of the process, which the two runs share here
                assert start("branch", *SHORT, f"start_from={tmp_path / 'running'}@{STEP}") == 0
        return batches(loader, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenLoader, "batches", branching)
        assert start(*running) == 0
    assert ends(tmp_path / "branch") == from_step(STEP, ends(replaced))
    assert result(tmp_path / "running")["params_sha256"] == result(trunk)["params_sha256"]


def test_saved_steps_stay_beside_the_newest(start: Start, tmp_path: Path) -> None:
    assert start("a", "save_at=[5,2]", "save_every=4", "keep_checkpoints=1", "permanent_every=4", "max_steps=11") == 0
    names = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert [int(name.removeprefix("step_")) for name in names] == [2, 4, 5, 8, 11]


def test_runs_from_before_these_keys_keep_their_names() -> None:
    usual_then = ["max_steps=500", "eval_every=50"]
    assert compose(usual_then).run_dir == "runs/nano-pysource-adamw-s1337-dd16e5a0"
    assert compose(["start_from=null", "save_at=null"]).run_dir == compose([]).run_dir
    assert compose(["start_from=runs/a@8"]).run_dir != compose([]).run_dir


def test_where_a_run_begins_is_no_part_of_what_identifies_it_to_claims() -> None:
    assert composed(["start_from=runs/a@8", "save_at=[3]"]).settings == composed([]).settings


def test_what_starts_runs_skips_a_branch_that_has_ended_only_where_it_is_the_run_asked_for(
    start: Start, trunk: Path, tmp_path: Path, tiny: list[str]
) -> None:
    branch = f"start_from={trunk}@{STEP}"
    for name, more in (("exact", []), ("own", [OTHER_SCHEDULE])):
        assert start(name, *SHORT, *more, branch) == 0
        run = [*tiny, *SHORT, *more, f"run_dir={tmp_path / name}"]
        saved = tmp_path / name / "config.yaml"
        assert differences(compose([*run, branch]), saved) == []
        assert (differences(compose(run), saved) == []) is (name == "exact")
        (outcome,) = run_jobs([Job(name, (*run, branch))], show=False)
        assert (outcome.status, outcome.seconds) == ("finished", 0.0)  # no process was started


@pytest.mark.slow
def test_a_sweep_branches_as_a_single_run_does(trunk: Path, tmp_path: Path, tiny: list[str]) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *tiny, "schedule=wsd", f"start_from={trunk}@{STEP}"]
    shown = subprocess.run([*command, "--cfg", "job"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert f"start_from: {trunk}@{STEP}\n" in shown.stdout
    done = subprocess.run(
        [*command, "-m", "max_steps=10,12"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = [environment(folder) for folder in (tmp_path / "runs").iterdir() if folder.is_dir()]
    assert [each["start_from"]["exact"] for each in found] == [True, True]


OWN_SCHEDULE = """
class Steady:
    def __init__(self, *, max_steps: int, share: float) -> None:
        self.share = share

    def apply(self, optimizer, step: int) -> float:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.share
        return float(optimizer.param_groups[0]["lr"])
"""


def test_a_schedule_of_the_users_own_makes_an_exact_branch_only_of_a_trunk_with_the_same(
    start: Start, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_schedule.py").write_text(OWN_SCHEDULE)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["schedule._target_=own_schedule.Steady", "~schedule.warmup_steps", "~schedule.final_lr_fraction"]
    half = [*own, "schedule.share=0.5"]
    assert start("half", *half, "max_steps=6") == 0
    assert start("same", *half, "max_steps=8", f"start_from={tmp_path / 'half'}@6") == 0
    assert start("replaced", *half, "max_steps=8") == 0
    assert ends(tmp_path / "same") == from_step(6, ends(tmp_path / "replaced"))
    assert start("full", *own, "schedule.share=1", "max_steps=8", f"start_from={tmp_path / 'half'}@6") == 0
    assert start("ours", *SHORT, f"start_from={tmp_path / 'half'}@6") == 0
    assert [environment(tmp_path / name)["start_from"]["exact"] for name in ("same", "full", "ours")] == [
        True,
        False,
        False,
    ]
