from importlib.metadata import requires
from pathlib import Path

import pytest
import torch

from assembly.data import data_path
from configs import compose
from scripts import doctor
from trainer import environment


def lines(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)


def test_a_good_machine_needs_nothing(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_path(compose(tiny))
    assert doctor.main([*tiny, f"run_dir={tmp_path}"]) == 0
    printed = lines(capsys)
    for subject in ("torch", "device", "bf16", "torch.compile", "disk", "data", "tokenizer"):
        assert subject in printed


def test_the_version_of_torch_is_the_one_the_project_pins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: list[str]
) -> None:
    wanted = [each.partition(";")[0].strip() for each in requires("nanodescent") or ()]
    (pinned,) = (each.removeprefix("torch==") for each in wanted if each.startswith("torch=="))
    for found, is_other in ((pinned, False), (f"{pinned}+cpu", False), ("2.12.0", True)):
        monkeypatch.setattr(doctor, "version", lambda package, found=found: found)
        assert doctor.main(tiny) == 0  # nothing keeps the run from starting
        assert ("runs may work" in lines(capsys)) == is_other


def test_it_leaves_everything_as_it_was(tiny: list[str], tmp_path: Path) -> None:
    root, run_dir = tmp_path / "prepared", tmp_path / "run"
    assert doctor.main([*tiny, f"data.root={root}", f"run_dir={run_dir}"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_missing_data_name_the_command_that_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["data=files", "data.source.pattern=x/*.txt", f"data.root={tmp_path}"]) == 2
    assert "scripts/prepare_data.py" in lines(capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.foreach=true", "`fused` and `foreach` cannot be"),
        ("model.n_head=3", "model.n_embd=16 must be a multiple"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps=-1 must be >= 0"),
    ],
)
def test_what_a_constructor_will_refuse_is_told(
    tiny: list[str], capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert doctor.main([*tiny, override]) == 2
    assert message in lines(capsys).replace(" │ ", " ").replace("│ ", "")


def test_an_absent_gpu_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.main(["device=cuda"]) == 2
    assert "torch sees no CUDA" in lines(capsys)


def test_emulated_bf16_is_told(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "has_native_bf16", lambda device: False)
    assert doctor.main([*tiny, f"run_dir={tmp_path}", "precision=bf16"]) == 0
    assert "emulated" in lines(capsys)


def test_a_compiler_that_fails_is_told(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(function: object) -> None:
        raise RuntimeError("no C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", fails)
    assert doctor.main(tiny) == 0
    printed = lines(capsys)
    assert "fails: no C++ compiler" in printed
    assert "long trace" not in printed


def test_a_full_disk_is_told(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "WANTED_FREE_GIB", 1e9)
    assert doctor.main(tiny) == 0
    assert "free some space" in lines(capsys)


def test_a_misspelt_override_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["modle=nano"]) == 2
    assert "nearest valid one is 'model'" in capsys.readouterr().err
