"""scripts/export.py: what it writes of a run, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import train
from configs import compose
from scripts import export


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    assert train.main(compose([*tiny, f"run_dir={folder}", "max_steps=3", "save_at=[2]", "model.gelu=tanh"])) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_hugging_faces_has_all_files_and_the_record_of_the_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(trained)
    assert export.main([f"run={trained}", "to=hf", f"out={tmp_path / 'out'}"]) == 0
    assert content(trained) == before
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'out'}: Hugging Face's GPT-2, step 3: README.md, config.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    loss = json.loads((trained / "result.json").read_text())["val/loss"]
    assert f"| val/loss (nats per token) | {loss:.4f} |" in text
    assert "| steps | 3 |" in text and "| seed | 1337 |" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["optim.lr"] == compose([]).optim["lr"] and settings["max_steps"] == 3


def test_an_older_step_can_be_exported(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for step in (2, 3):
        out = tmp_path / str(step)
        assert export.main([f"run={trained}@{step}", "to=hf", f"out={out}"]) == 0
    assert (tmp_path / "2" / "model.safetensors").read_bytes() != (tmp_path / "3" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=nowhere", "to=hf", "out=out"], "run=nowhere is no run directory: it has no config.yaml"),
        (["run={run}", "to=onnx", "out=out"], "to=onnx must be one of hf, nanogpt"),
        (["run={run}", "out=out"], "to=<hf: a folder for transformers> is missing"),
        (["run={run}", "too=hf"], "unknown key 'too'; the nearest valid one is 'to'"),
        (["run={run}", "hf"], "'hf' must read key=value"),
        (["run={run}@last", "to=hf", "out=out"], "is no run directory"),
        (["run={run}@7", "to=hf", "out=out"], "has no checkpoint of step 7; it has those of steps 2, 3"),
        (["run={run}", "to=hf", "out={run}"], "exists; choose a new folder"),
        (["run={run}", "to=nanogpt", "out=out"], "cannot express this model: model.gelu=tanh: it has erf alone"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main([each.format(run=trained) for each in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("dangling", "exists; choose a new folder, or delete that one"),
        ("linked", "exists; choose a new folder, or delete that one"),
        ("file/c", "cannot be written: Not a directory; choose another folder"),
        ("a" * 256, "cannot be written: File name too long; choose another folder"),
        ("/proc/x", "cannot be written: No such file or directory; choose another folder"),
    ],
)
def test_an_out_that_cannot_be_made_is_named_itself_and_nothing_is_left(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("nowhere")
    Path("empty").mkdir()
    Path("linked").symlink_to("empty")
    Path("file").write_text("mine")
    assert export.main([f"run={trained}", "to=hf", f"out={out}"]) == 2
    assert capsys.readouterr().err == f"error: out={out} {said}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "file", "linked"]


def test_the_longest_name_and_an_empty_folder_are_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("a" * 255, "empty"):
        assert export.main([f"run={trained}", "to=hf", f"out={tmp_path / name}"]) == 0
        assert (tmp_path / name / "config.json").is_file()


def test_a_llama_is_refused_by_name(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    text = (trained / "config.yaml").read_text().replace("_target_: model.GPT", "_target_: model.Llama")
    (folder / "config.yaml").write_text(text)
    assert export.main([f"run={folder}", "to=hf", f"out={tmp_path / 'out'}"]) == 2
    assert "cannot express this model: model._target_=model.Llama: it is no model.GPT" in capsys.readouterr().err


@pytest.mark.parametrize(("is_exact", "told"), [(False, True), (True, False)])
def test_the_card_tells_of_a_run_that_was_lengthened_with_another_learning_rate(
    trained: Path, tmp_path: Path, is_exact: bool, told: bool
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    env = json.loads((folder / "env.json").read_text())
    origin = {"run": ".", "step": 2, "start": "everything", "changed": ["max_steps=3 (there: 2)"], "exact": is_exact}
    (folder / "env.json").write_text(json.dumps({**env, "start_from": origin}))
    assert export.main([f"run={folder}", "to=hf", f"out={tmp_path / 'out'}"]) == 0
    row = "| began with | step 2 of this run with other settings (max_steps=3 (there: 2)) |"
    assert (row in (tmp_path / "out" / "README.md").read_text()) is told
