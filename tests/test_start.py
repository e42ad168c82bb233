"""On from a run: with something changed, with more steps, or with weights alone, which may be another program's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanogpt_oracle as oracle
import pytest
import torch
from every_option import FEWEST, few_fast
from killing import killed_at
from remains import metrics, result

import train
from configs import ConfigError, compose, differences, flat
from scripts import export
from trainer.checkpoint import CheckpointStore

Start = Callable[..., int]
STEP = 8
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def start(tmp_path: Path, tiny: list[str]) -> Start:
    """Runs train.py's main in this process: start("name", *overrides)."""
    return lambda name, *overrides: train.main(compose([*tiny, f"run_dir={tmp_path / name}", *overrides]))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a finished run of 12 steps, with the checkpoints of steps 8 and 12."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    assert train.main(compose([*tiny, "schedule=constant", "save_at=[8]", f"run_dir={folder}"])) == 0
    return folder


def origin(folder: Path) -> Any:
    return json.loads((folder / "env.json").read_text())["start_from"]


def parameters(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Those of a checkpoint, by name."""
    saved = CheckpointStore(folder / "checkpoints", keep=1, permanent_every=None).read(
        folder / "checkpoints" / f"step_{step:06d}"
    )
    found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in saved.group("model").items()}
    saved.read_into({f"model.{name}": tensor for name, tensor in found.items()})
    return found


CHANGED = {
    "another learning rate": ("optim.lr=0.5", "optim.lr=0.5 (there: 0.002)"),
    "other averages": ("optim.betas=[0.5,0.5]", "optim.betas=[0.5, 0.5] (there: [0.9, 0.95])"),
    "another seed": ("seed=1", "seed=1 (there: 1337)"),
    "another limit of gradients": ("grad_clip=null", "grad_clip=null (there: 1.0)"),
    "another order of the data": ("data.order=shuffled", "data.order=shuffled (there: random)"),
    "other data": ("data.source.n_documents=150", "data.source.n_documents=150 (there: 200)"),
    "another dropout": ("model.dropout=0", "model.dropout=0 (there: 0.1)"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_run_goes_on_from_another_with_something_changed_and_says_so(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    override, said = CHANGED[case]
    assert start("on", "schedule=constant", "max_steps=14", f"start_from={trunk}@{STEP}", override) == 0
    began = origin(tmp_path / "on")
    assert (began["exact"], began["changed"]) == (False, [said])
    assert f"continuing {trunk}, at step 8 of 14" in (printed := capsys.readouterr().out)
    assert f"changed since {trunk}: {said}" in printed
    assert metrics(tmp_path / "on")[0]["step"] == STEP
    rates = {row["lr"] for row in metrics(tmp_path / "on") if "lr" in row}
    assert rates == ({0.5} if case == "another learning rate" else {0.002})


@few_fast("optimizer", few=FEWEST)
def test_another_learning_rate_is_that_of_every_optimizer_from_there_on(
    start: Start, tmp_path: Path, optimizer: str
) -> None:
    chosen = [f"optim={optimizer}", "schedule=constant"]
    assert start("run", *chosen, "max_steps=3") == 0
    rates = [f"{key}=0.003" for key in flat(compose(chosen)) if key.startswith("optim.") and key.endswith(".lr")]
    assert start("on", *chosen, "max_steps=5", f"start_from={tmp_path / 'run'}", *rates) == 0
    assert {row["lr"] for row in metrics(tmp_path / "on") if "lr" in row} == {0.003}
    state = json.loads((tmp_path / "on" / "checkpoints" / "step_000005" / "state.json").read_text())
    assert {group["initial_lr"] for group in state["optim"]["groups"]} == {0.003}


def test_changed_averages_reach_the_optimizer(start: Start, trunk: Path, tmp_path: Path) -> None:
    assert start("on", "schedule=constant", "max_steps=9", f"start_from={trunk}@{STEP}", "optim.betas=[0.5,0.9]") == 0
    state = json.loads((tmp_path / "on" / "checkpoints" / "step_000009" / "state.json").read_text())
    assert {tuple(group["betas"]) for group in state["optim"]["groups"]} == {(0.5, 0.9)}


def test_data_that_changed_unsaid_are_refused(
    start: Start, trunk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assembly.branch.data_checksums", lambda run: {"train": "other", "val": "other"})
    assert start("on", "schedule=constant", "max_steps=14", f"start_from={trunk}@{STEP}") == 2
    said = capsys.readouterr().err
    assert "was trained on other data (checksum " in said and "choose another start_from" in said


def test_without_a_step_the_newest_checkpoint_is_meant(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("on", "schedule=constant", "max_steps=14", f"start_from={trunk}") == 0
    assert start("too", "schedule=constant", "max_steps=14", f"start_from={trunk}@12") == 0
    assert origin(tmp_path / "on") == origin(tmp_path / "too")
    assert result(tmp_path / "on")["params_sha256"] == result(tmp_path / "too")["params_sha256"]
    capsys.readouterr()
    assert start("none", "schedule=constant", f"start_from={trunk}") == 2
    said = capsys.readouterr().err
    assert "is at step 12, and max_steps=12 leaves nothing to do; raise max_steps, or " in said
    assert said.rstrip().endswith("start=weights")


def test_a_run_has_weights_alone_of_another_and_all_else_new(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ["optim=lion", "optim.lr=1e-4", "global_batch=4", "max_steps=3", "data.source.n_documents=150"]
    assert start("on", *new, f"start_from={trunk}", "start=weights") == 0
    assert f"beginning at step 0 with the weights of {trunk}, step 12" in capsys.readouterr().out
    assert origin(tmp_path / "on") == {
        "run": str(trunk),
        "step": 12,
        "exact": False,
        "start": "weights",
        "changed": [],
    }
    assert (result(tmp_path / "on")["step"], result(tmp_path / "on")["tokens"]) == (3, 3 * 4 * 16)


def test_the_weights_are_those_of_the_checkpoint(start: Start, trunk: Path, tmp_path: Path) -> None:
    assert start("on", "optim.lr=0", "max_steps=1", f"start_from={trunk}@{STEP}", "start=weights") == 0
    for name, found in parameters(tmp_path / "on", 1).items():
        assert torch.equal(found, parameters(trunk, STEP)[name]), name
    assert start("newest", "max_steps=1", f"start_from={trunk}", "start=weights") == 0
    assert metrics(tmp_path / "newest")[0]["val/loss"] == result(trunk)["val/loss"]


def test_an_interrupted_run_with_anothers_weights_goes_on_from_its_own(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    weights = [f"start_from={copy}", "start=weights"]
    assert start("whole", *weights) == 0
    killed_at(8, start, "broken", *weights)
    shutil.rmtree(copy)
    assert start("broken", *weights) == 0
    assert result(tmp_path / "broken")["params_sha256"] == result(tmp_path / "whole")["params_sha256"]
    assert origin(tmp_path / "broken") == origin(tmp_path / "whole")
    capsys.readouterr()
    for other in ([], weights[:1]):
        assert start("broken", *other) == 2
        assert f"(there: {copy}@12 start=weights); choose another run_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.n_embd=32"], "is a run of another configuration: model.n_embd=32 (there: 16); add model.n_embd=16"),
        (["model.n_layer=3", "model.gelu=tanh"], "; add model.gelu=erf model.n_layer=2"),
        (["data/tokenizer=bpe", "data.tokenizer.vocab_size=257"], "data/tokenizer=file data.tokenizer.path="),
    ],
)
def test_weights_of_another_model_or_tokenizer_are_refused_with_the_remedy(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert start("runs/on", *overrides, f"start_from={trunk}", "start=weights") == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if not each.startswith("encoding ")]
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "runs").exists()


def test_other_text_with_a_runs_tokenizer_goes_on_from_that_run(start: Start, tmp_path: Path) -> None:
    """The remedy of the message above works as it is printed."""
    learnt = ["data/tokenizer=bpe", "data.tokenizer.vocab_size=300", "max_steps=2"]
    assert start("first", *learnt) == 0
    other = ["data.source.n_documents=150", "max_steps=2", f"start_from={tmp_path / 'first'}", "start=weights"]
    file = tmp_path / "first" / "tokenizer.json"
    assert start("second", *other, "data/tokenizer=file", f"data.tokenizer.path={file}") == 0
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == file.read_bytes()


def test_more_steps_with_the_same_rates_make_the_run_that_it_would_have_been(start: Start, tmp_path: Path) -> None:
    assert start("long", "schedule=constant") == 0
    assert start("grown", "schedule=constant", "max_steps=6") == 0
    assert start("grown", "schedule=constant") == 0
    assert result(tmp_path / "grown")["params_sha256"] == result(tmp_path / "long")["params_sha256"]
    assert result(tmp_path / "grown")["val/loss"] == result(tmp_path / "long")["val/loss"]
    assert origin(tmp_path / "grown") is None


def test_more_steps_with_other_rates_go_on_and_are_recorded(
    start: Start, tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("run", "max_steps=6") == 0
    killed_at(7, start, "run")  # before the first checkpoint of the longer run
    expected = {
        "run": ".",
        "step": 6,
        "exact": False,
        "start": "everything",
        "changed": ["max_steps=12 (there: 6)"],
    }
    assert origin(tmp_path / "run") == expected
    capsys.readouterr()
    assert start("run") == 0
    assert "from step 6 on with the learning rate of a longer run (max_steps=12 (there: 6))" in capsys.readouterr().out
    assert origin(tmp_path / "run") == expected
    assert (result(tmp_path / "run")["status"], result(tmp_path / "run")["step"]) == ("finished", 12)
    assert [row["step"] for row in metrics(tmp_path / "run") if "val/loss" in row] == [0, 5, 10, 12]
    own = compose([*tiny, f"run_dir={tmp_path / 'run'}"])
    assert differences(own, tmp_path / "run" / "config.yaml") == []
    assert start("run") == 0  # has finished
    assert "this run has finished at step 12" in capsys.readouterr().out
    assert start("of it", "schedule=constant", f"start_from={tmp_path / 'run'}@12", "max_steps=13") == 0
    assert origin(tmp_path / "of it")["exact"] is False


def test_fewer_steps_or_a_run_without_checkpoints_are_refused_with_a_way_on(
    start: Start, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    assert start("copy", "schedule=constant", "max_steps=10") == 2
    said = capsys.readouterr().err
    assert "holds a run of another configuration: max_steps=10 (there: 12); choose another run_dir" in said
    assert f"to go on from that run with it, add start_from={copy} and a new run_dir" in said
    shutil.rmtree(copy / "checkpoints")
    assert start("copy", "schedule=constant", "max_steps=14") == 2
    assert "max_steps=14 (there: 12)" in capsys.readouterr().err


def test_weights_of_nanogpt_and_of_hugging_face_begin_a_run(start: Start, tmp_path: Path, data_root: Path) -> None:
    """A run, exported and begun anew with, has the run's loss before its first step."""
    model = ["model.gelu=erf", "model.bias=false"]
    assert start("run", *model) == 0
    for layout in ("hf", "nanogpt"):
        out = tmp_path / layout
        assert export.main([f"run={tmp_path / 'run'}", f"to={layout}", f"out={out}"]) == 0
        assert start(f"from {layout}", *model, "optim=lion", "max_steps=2", f"start_from={layout}:{out}") == 0
        found = metrics(tmp_path / f"from {layout}")[0]["val/loss"]
        assert found == pytest.approx(result(tmp_path / "run")["val/loss"], abs=1e-6)
        assert origin(tmp_path / f"from {layout}") == {
            "run": f"{layout}:{out}",
            "step": 0,
            "exact": False,
            "start": "weights",
            "changed": [],
        }


def test_weights_of_another_program_that_do_not_fit_leave_nothing(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = oracle.arguments(n_layer=3)
    torch.save(oracle.checkpoint(args, oracle.state_dict(args)), tmp_path / "ckpt.pt")
    for given, said in (
        (f"nanogpt:{tmp_path}/ckpt.pt", "model.n_layer=2 (there: 3); add model.n_layer=3"),
        (f"nanogpt:{tmp_path}/nowhere", "nowhere does not exist"),
        (f"hf:{tmp_path}", "has no config.json"),
        (f"gguf:{tmp_path}", "start_from: there is no layout 'gguf'; there are hf, nanogpt"),
    ):
        assert start("runs/on", f"start_from={given}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["start=weights"], "start=weights says what is taken over of start_from, which is missing"),
        (["start=everything", "start_from=hf:a"], "start_from=hf:a has weights alone; leave start out"),
        (["start=half", "start_from=a"], "start=half must be one of auto, everything, weights"),
        (["start_from=a@251"], "has a step beyond the run's last, max_steps=250; start=weights begins at step 0"),
    ],
)
def test_keys_of_the_start_that_do_not_fit_together_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert said in str(caught.value)


def test_what_is_taken_over_is_part_of_a_runs_name() -> None:
    names = {
        compose(["start_from=runs/a", *start]).run_dir
        for start in ([], ["start=auto"], ["start=weights"], ["start=everything"])
    }
    assert len(names) == 3
    assert compose(["start_from=runs/a@251", "start=weights"]).start_from == "runs/a@251"
