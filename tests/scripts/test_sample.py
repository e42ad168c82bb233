import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import train
from configs import compose
from scripts import sample


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    assert train.main(compose([*tiny, f"run_dir={folder}", "max_steps=3"])) == 0
    return folder


def test_it_continues_the_prompt_the_same_way_for_the_same_seed(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"run={trained}", "prompt=abc", "tokens=20"]
    texts = []
    for seed in (1, 1, 2):
        assert sample.main([*arguments, f"seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("abc")
    assert texts[0] == texts[1] != texts[2]


def test_without_a_prompt_it_takes_the_data_sets(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main([f"run={trained}", "tokens=1"]) == 0
    assert capsys.readouterr().out.startswith("The ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: [], "run=<run directory> is missing"),
        (lambda run: ["run=nowhere"], "run=nowhere is no run directory"),
        (lambda run: [f"run={run}", "token=3"], "unknown key 'token'; the nearest valid one is 'tokens'"),
        (lambda run: [f"run={run}", "tokens=many"], "Value 'many' of type 'str' could not be converted to Integer"),
        (lambda run: [f"run={run}", "top_k=0"], "top_k=0 must be >= 1"),
        (lambda run: [f"run={run}", "temperature=-1"], "temperature=-1.0 must be >= 0"),
    ],
)
def test_bad_arguments_get_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: Callable[[Path], list[str]], message: str
) -> None:
    assert sample.main(arguments(trained)) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_run_without_checkpoints_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    assert sample.main([f"run={tmp_path}"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_it_needs_no_data_set(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(trained, tmp_path / "moved")
    config = OmegaConf.load(folder / "config.yaml")
    config.data.root, config.data.source = str(tmp_path / "nowhere"), {"_target_": "no.such.Thing"}
    OmegaConf.save(config, folder / "config.yaml")
    assert sample.main([f"run={folder}", "prompt=abc", "tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("abc")
