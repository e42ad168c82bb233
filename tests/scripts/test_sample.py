import io
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import train
from configs import ConfigError, compose
from model import GPT
from scripts import sample
from trainer.checkpoint import Saved


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
    "prompt",
    [
        *("class ", "def f(x):", "@property", "# include", "{", "[1]", "007", "1e3", "null", "no", "a: b", "*args", ""),
        *("x #y", "line\nline", "${x}", '"""Doc', "a=b", "--help", "~", "$HOME", "模型"),
    ],
)
def test_the_prompt_is_taken_as_typed(prompt: str) -> None:
    assert sample.parse(["run=r", f"prompt={prompt}"]).prompt == prompt


def test_it_begins_with_the_prompt_whatever_that_is(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt in ("{", "null", "# include", "line\nline", "ROMEO:"):
        assert sample.main([f"run={trained}", f"prompt={prompt}", "tokens=2"]) == 0
        assert capsys.readouterr().out.startswith(prompt)


def test_an_empty_prompt_begins_a_document(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main([f"run={trained}", "prompt=", "tokens=0"]) == 0
    assert capsys.readouterr().out == "\n"
    assert sample.main([f"run={trained}", "prompt=", "tokens=9"]) == 0
    assert len(capsys.readouterr().out) > 1


def test_the_prompt_may_come_from_a_file_or_standard_input(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("from a file")
    assert sample.main([f"run={trained}", "prompt_file=~/prompt.txt", "tokens=2"]) == 0
    assert capsys.readouterr().out.startswith("from a file")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("from a pipe, ü".encode())))
    assert sample.main([f"run={trained}", "prompt_file=-", "tokens=2"]) == 0
    assert capsys.readouterr().out.startswith("from a pipe, ü")


def test_several_samples_differ_and_more_of_them_change_none(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for n in (1, 2, 3):
        assert sample.main([f"run={trained}", "prompt=abc", "tokens=20", "seed=1", f"n={n}"]) == 0
        texts.append(capsys.readouterr().out.removesuffix("\n").split(f"\n{sample.SEPARATOR}\n"))
    assert [len(each) for each in texts] == [1, 2, 3]
    assert texts[2][:2] == texts[1] and texts[1][:1] == texts[0]
    assert len(set(texts[2])) == 3
    assert sample.stream_seed(1, 1) not in (1, 2, sample.stream_seed(2, 1))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert sample.main(list(arguments)) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_with_and_without_a_cache_the_text_is_the_same(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["temperature=0"], ["top_p=0.9", "top_k=null"]):
        texts = [
            printed(capsys, f"run={trained}", "prompt=abc", "tokens=40", f"cache={cache}", *more)
            for cache in ("true", "false")
        ]
        assert texts[0] == texts[1] != "abc"


def test_a_small_top_p_takes_the_likeliest_token(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"run={trained}", "prompt=abc", "tokens=20"]
    assert printed(capsys, *arguments, "top_p=1e-9") == printed(capsys, *arguments, "temperature=0")


def test_a_sample_ends_before_the_first_of_the_stops(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"run={trained}", "prompt=abc", "tokens=60"]
    text = printed(capsys, *arguments)
    stops = text[30:33], text[20:22]
    ends = [text.index(stop, 3) for stop in stops]
    assert printed(capsys, *arguments, f"stop={stops[0]}") == text[: ends[0]]
    assert printed(capsys, *arguments, f"stop={stops[0]}", f"stop={stops[1]}") == text[: min(ends)]
    assert printed(capsys, *arguments, "stop=of which there is none") == text


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "c", "d"], [], ["ab", "c", "d", ""]),
        (["ab<", "|e", "nd|", ">x", "y"], ["<|end|>"], ["ab", "", "", ""]),
        (["ab<", "|e", "x"], ["<|end|>"], ["ab", "", "<|ex", ""]),
        (["a", "aab"], ["aab"], ["", "a"]),
        (["xyz"], ["z", "y"], ["x"]),
        (["<"], ["<|"], ["", "<"]),
    ],
)
def test_what_may_begin_a_stop_is_withheld_and_nothing_else(
    pieces: list[str], stops: list[str], expected: list[str]
) -> None:
    assert list(sample.until(pieces, stops)) == expected


def test_text_is_printed_as_it_is_drawn(trained: Path) -> None:
    settings = sample.parse([f"run={trained}", "prompt=abc", "tokens=9"])
    (pieces,) = sample.samples(settings)
    assert next(pieces) == "abc"
    assert len(list(pieces)) > 2


def test_a_step_may_be_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prompt=abc", "tokens=9"]
    assert printed(capsys, f"run={trained}@3", *arguments) == printed(capsys, f"run={trained}", *arguments)
    assert sample.main([f"run={trained}@2"]) == 2
    assert "has no checkpoint of step 2; it has those of steps 3" in capsys.readouterr().err


def test_help_has_every_setting_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("run= ") for line in lines) and any(line.startswith("top_k=50 ") for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: [f"run={run}", "top_p=0"], "top_p=0.0 must be > 0 and at most 1"),
        (lambda run: [f"run={run}", "stop="], "stop= is empty; give a text, or leave it out"),
        (lambda run: [f"run={run}", "cache=perhaps"], "cache=perhaps must be true or false"),
        (lambda run: [f"run={run}", "device=tpu"], "device=tpu must be one of auto, cpu, cuda"),
        (lambda run: [], "run=<run directory> is missing"),
        (lambda run: ["run=nowhere"], "run=nowhere is no run directory"),
        (lambda run: [f"run={run}", "token=3"], "unknown key 'token'; the nearest valid one is 'tokens'"),
        (lambda run: [f"run={run}", "tokens=many"], "tokens=many must be a whole number"),
        (lambda run: [f"run={run}", "top_k=0"], "top_k=0 must be >= 1"),
        (lambda run: [f"run={run}", "temperature=-1"], "temperature=-1.0 must be >= 0"),
        (lambda run: [f"run={run}", "temperature=nan"], "temperature=nan must be >= 0"),
        (lambda run: [f"run={run}", "n=0"], "n=0 must be >= 1"),
        (lambda run: [f"run={run}", "seed=" + "9" * 30], "less than 2**63"),
        (lambda run: ["run="], "run= is empty; give a path"),
        (lambda run: [str(run)], "must read key=value, for example run=runs/<name>"),
        (lambda run: [f"run={run}", "prompt=a", "prompt_file=b"], "prompt and prompt_file are both given"),
        (lambda run: [f"run={run}", f"prompt_file={run}/nothing"], "nothing does not exist"),
        (lambda run: [f"run={run}", f"prompt_file={run}"], "must be a file; it is a directory"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.model.__setitem__("n_layer", 10**9), "model has other shapes than the checkpoint"),
        (lambda config: config.model.__setitem__("n_embd", 32), "model has other shapes than the checkpoint"),
        (lambda config: config.model.__setitem__("n_layer", "two"), "model is none that can be built"),
        (lambda config: config.__setitem__("model", [1]), "model is none that can be built"),
        (lambda config: config.model.__setitem__("block_size", 1 << 40), "model has other shapes than the checkpoint"),
    ],
)
def test_a_configuration_that_does_not_fit_the_checkpoint_costs_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], None], message: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "foreign")
    config = OmegaConf.load(folder / "config.yaml")
    change(config)
    OmegaConf.save(config, folder / "config.yaml")
    assert sample.main([f"run={folder}", "tokens=1"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


class ForeignModel(GPT):
    """Of somebody else."""


def test_a_foreign_model_is_built_if_the_user_names_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = shutil.copytree(trained, tmp_path / "foreign"), f"{__name__}.ForeignModel"
    config = OmegaConf.load(folder / "config.yaml")
    config.model["_target_"] = target
    OmegaConf.save(config, folder / "config.yaml")
    assert sample.main([f"run={folder}", "tokens=1"]) == 2
    assert f"model is a foreign class; if you trust it, add 'model={target}'" in capsys.readouterr().err
    assert sample.main([f"run={folder}", "prompt=abc", "tokens=1", f"model={target}"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def test_a_file_that_would_be_waited_for_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "foreign")
    for path in (folder / "tokenizer.json", next(folder.glob("checkpoints/*/state.json"))):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert sample.main([f"run={folder}", "tokens=1"]) == 2
        assert "it is a FIFO" in capsys.readouterr().err
        path.unlink()
        path.write_bytes(content)


def test_parameters_that_are_not_finite_are_named(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poisoned(self: Saved, tensors: Mapping[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.fill_(torch.nan)

    monkeypatch.setattr(Saved, "read_into", poisoned)
    assert sample.main([f"run={trained}", "tokens=1"]) == 2
    assert "wte.weight has numbers that are not finite" in capsys.readouterr().err


def test_it_needs_no_data_set(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(trained, tmp_path / "moved")
    config = OmegaConf.load(folder / "config.yaml")
    config.data.root, config.data.source = str(tmp_path / "nowhere"), {"_target_": "no.such.Thing"}
    OmegaConf.save(config, folder / "config.yaml")
    assert sample.main([f"run={folder}", "prompt=abc", "tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def test_reading_changes_nothing_on_disk(trained: Path) -> None:
    def contents() -> dict[str, bytes | None]:
        return {str(path): path.read_bytes() if path.is_file() else None for path in trained.rglob("*")}

    before = contents()
    assert sample.main([f"run={trained}", "tokens=1"]) == 0
    assert contents() == before


@pytest.mark.parametrize("file", ["config.yaml", "tokenizer.json", "checkpoints/step_000003/state.json"])
def test_a_run_whose_files_lie_elsewhere_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "foreign")
    (folder / file).rename(tmp_path / "secret")
    (folder / file).symlink_to(tmp_path / "secret")
    assert sample.main([f"run={folder}", "tokens=1"]) == 2
    printed = capsys.readouterr().err
    assert "is a symbolic link to" in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("n=two", "n=two must be a whole number"),
        ("tokens=1.5", "tokens=1.5 must be a whole number"),
        ("temperature=warm", "temperature=warm must be a number"),
        ("top_k=few", "top_k=few must be a whole number"),
        ("temp=1", "unknown key 'temp'; the nearest valid one is 'temperature'"),
        ("toks=1", "unknown key 'toks'; the nearest valid one is 'tokens'"),
        ("zzz=1", "unknown key 'zzz'; there are run, prompt, prompt_file, n, "),
    ],
)
def test_what_is_wrong_names_its_key(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sample.parse(["run=r", argument])
    assert str(caught.value).startswith(message)


def test_a_temperature_next_to_0_is_as_0(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for temperature in ("0", "1e-320", "1e-39", "1e-30"):
        assert sample.main([f"run={trained}", "prompt=a", "tokens=9", f"temperature={temperature}"]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_a_closed_standard_input_is_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert sample.main([f"run={trained}", "prompt_file=-"]) == 2
    assert capsys.readouterr().err.startswith("error: prompt_file=- reads standard input, which is closed")
