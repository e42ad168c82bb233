import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import configs
from configs import ConfigError, Sweep, compose, differences, expand, from_command_line, plug_in

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_step=5", "unknown key 'max_step'; the nearest valid one is 'max_steps'"),
        ("optim.lrr=1", "unknown key 'optim.lrr'; the nearest valid one is 'optim.lr'"),
        ("model.n_layers=2", "unknown key 'model.n_layers'; the nearest valid one is 'model.n_layer'"),
        ("modl=nano", "unknown key 'modl'; the nearest valid one is 'model'"),
        ("warmup_steps=5", "unknown key 'warmup_steps'; the nearest valid one is 'schedule.warmup_steps'"),
        ("data/tokenizers=bpe", "unknown key 'data/tokenizers'; the nearest valid one is 'data/tokenizer'"),
        ("+max_step=5", "unknown key 'max_step'; the nearest valid one is 'max_steps'"),
        ("+model.n_layers=2", "unknown key 'model.n_layers'; the nearest valid one is 'model.n_layer'"),
        ("qqqq=1", "unknown key 'qqqq'; nothing valid is near it"),
        ("model=nanno", "model=nanno does not exist; the nearest valid one is 'nano'"),
        ("schedule=cosin", "schedule=cosin does not exist; the nearest valid one is 'cosine' (all: constant, cosine"),
        ("max_steps=ten", "Value 'ten' of type 'str' could not be converted to Integer"),
        ("max_steps=0", "max_steps=0 must be >= 1"),
        ("seed=-1", "seed=-1 must be >= 0"),
        ("seed=null", "field 'seed' is not Optional"),
        ("grad_clip=0", "grad_clip=0.0 must be > 0, or null for no clipping"),
        ("resume=yes", "resume=yes must be one of auto, never, must"),
        ("precision=fp16", "precision=fp16 must be one of auto, bf16, fp32"),
        ("compile=2", "compile=2 must be one of auto, true, false"),
        ("max_steps", "overrides read key=value"),
        ("data=files", "data.source.pattern"),
    ],
)
def test_a_bad_override_gets_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_misspelt_key_fails_before_anything_heavy_is_imported() -> None:
    code = "import sys, configs\ntry:\n    configs.compose(['optim.lrr=1'])\nexcept configs.ConfigError:\n"
    code += "    print(*sorted({'torch', 'wandb', 'datasets', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("group", [group for group in configs.GROUPS if group != "experiment"])
def test_every_option_composes(group: str) -> None:
    options = sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
    assert options
    for option in options:
        compose([f"{group}={option}", *(["data.source.pattern=x"] if option == "files" else [])])


def test_compile_may_be_written_as_yaml_writes_truth() -> None:
    assert [compose([f"compile={value}"]).compile for value in ("true", "False", "auto")] == ["true", "false", "auto"]


def test_a_plug_in_may_get_arguments_that_its_file_does_not_list() -> None:
    assert compose(["+optim.amsgrad=true"]).optim.amsgrad is True


def test_the_run_directory_is_the_same_every_time_and_another_for_another_run() -> None:
    default = compose([]).run_dir
    assert default == compose([]).run_dir == compose(["resume=must", "data.root=elsewhere"]).run_dir
    assert default.startswith("runs/nano-pysource-adamw-s1337-")
    others = [["optim.lr=1"], ["seed=2"], ["micro_batch=4"], ["model=micro"], ["max_steps=7"], ["schedule=wsd"]]
    assert len({default, *(compose(overrides).run_dir for overrides in others)}) == 1 + len(others)
    assert compose(["run_dir=there"]).run_dir == "there"


def test_differences_name_what_makes_it_another_run(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    saved.write_text(OmegaConf.to_yaml(compose(["optim.lr=0.25", "data.root=there", "micro_batch=8"])))
    assert differences(compose(["optim.lr=0.25", "log_every=3", "save_every=9"]), saved) == []
    assert differences(compose(["optim.lr=0.5"]), saved) == ["optim.lr=0.5 (there: 0.25)"]
    assert differences(compose(["optim.lr=0.25", "+optim.amsgrad=true"]), saved) == [
        "optim.amsgrad=True (there: False)"
    ]


def test_a_sweep_is_the_product_of_its_values() -> None:
    assert expand(["seed=1,2", "optim.lr=1e-3", "model=nano,micro"]) == [
        ["seed=1", "optim.lr=1e-3", "model=nano"],
        ["seed=1", "optim.lr=1e-3", "model=micro"],
        ["seed=2", "optim.lr=1e-3", "model=nano"],
        ["seed=2", "optim.lr=1e-3", "model=micro"],
    ]


def test_a_plug_in_that_refuses_its_arguments_says_so_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="schedule.warmup_steps=9 must lie in 0..max_steps=5"):
        plug_in(compose(["schedule.warmup_steps=9"]).schedule, max_steps=5)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'foo'"):
        plug_in(OmegaConf.create({"_target_": "trainer.Constant", "warmup_steps": 1, "foo": 1}), max_steps=50)


class Sweeps:
    """Stands for the runner of sweeps."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked: list[Any] = []

    def __call__(self, script: str, combinations: Sequence[Sequence[str]], /, *, at_once: int, ranks: int) -> int:
        self.asked.append((script, combinations, at_once, ranks))
        return self.status


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str, sweep: Sweep | None = None) -> DictConfig:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return from_command_line("train.py", "What it does.", sweep)


@pytest.mark.parametrize(
    ("arguments", "at_once", "ranks"),
    [
        (["-m", "seed=1,2", "max_steps=7"], 1, 1),
        (["seed=1,2", "--multirun", "max_steps=7"], 1, 1),
        (["seed=1,2", "-m", "--at-once", "3", "max_steps=7", "--ranks=2"], 3, 2),
    ],
)
def test_a_sweep_gets_every_combination_and_its_status_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], at_once: int, ranks: int
) -> None:
    sweep = Sweeps(status=3)
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, *arguments, sweep=sweep)
    assert ended.value.code == 3
    assert sweep.asked == [("train.py", [["seed=1", "max_steps=7"], ["seed=2", "max_steps=7"]], at_once, ranks)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at-once", "2"], "--at-once and --ranks are for sweeps; add -m"),
        (["-m", "--at-once", "0"], "argument --at-once: must be a whole number >= 1, got '0'"),
        (["-m", "--ranks", "two"], "argument --ranks: must be a whole number >= 1, got 'two'"),
        (["-m", "--cfg"], "--cfg shows the configuration of one run; leave out -m"),
        (["--cgf"], "unrecognized arguments: --cgf"),
        (["max_steps"], "overrides read key=value"),
        (["-m", "seed=1,2", "max_steps"], "overrides read key=value"),
    ],
)
def test_a_bad_command_line_gets_one_line_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    sweep = Sweeps(status=0)
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, *arguments, sweep=sweep)
    assert (ended.value.code, sweep.asked) == (2, [])
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_script_without_sweeps_refuses_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line(monkeypatch, "-m", "seed=1,2")
    assert capsys.readouterr().err == "error: train.py runs no sweeps; leave out -m\n"


def test_flags_and_overrides_mix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(monkeypatch).seed == 1337
    assert command_line(monkeypatch, "~optim.fused", "+optim.amsgrad=true", "seed=3").seed == 3
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, "seed=3", "--cfg", "optim.lr=-1")
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "\nseed: 3\n" in printed
    assert "lr: -1\n" in printed
    with pytest.raises(SystemExit):
        command_line(monkeypatch, "seed=3", "-h")
    assert capsys.readouterr().out == "What it does.\n"
