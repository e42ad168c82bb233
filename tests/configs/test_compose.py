import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import configs
from configs import (
    ConfigError,
    RunConfig,
    Sweep,
    as_yaml,
    compose,
    composition,
    differences,
    expand,
    flat,
    from_command_line,
    groups,
    plug_in,
)
from configs.schema import plain

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_step=5", "unknown key 'max_step'; the nearest valid one is 'max_steps'"),
        ("batch_size=4", "unknown key 'batch_size'; nanoGPT's batch_size is here micro_batch (docs/nanogpt.md)"),
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
        ("max_steps=ten", "max_steps=ten must be a whole number"),
        ("max_steps=0", "max_steps=0 must be >= 1"),
        ("seed=-1", "seed=-1 must be >= 0"),
        ("seed=null", "seed=null must be a whole number and not null"),
        ("grad_clip=0", "grad_clip=0.0 must be > 0, or null for off"),
        ("resume=yes", "resume=yes must be one of auto, never, must"),
        ("precision=fp16", "precision=fp16 must be one of auto, bf16, fp32"),
        ("compile=2", "compile=2 must be one of auto, true, false"),
        ("max_steps", "overrides read key=value"),
        ("data=files", "data.source.pattern"),
        ("seed=2.5", "seed=2.5 must be a whole number"),
        ("seed=true", "seed=true must be a whole number"),
        ("seed=" + "9" * 30, "must lie between -2**63 and 2**63"),
        ("max_steps=" + "9" * 5000, "cannot be read"),
        ("grad_clip=nan", "grad_clip=nan must be a finite number"),
        ("spike_factor=inf", "spike_factor=inf must be a finite number"),
        ("grad_clip=-1", "grad_clip=-1.0 must be > 0"),
        ("model.n_layer=two", "model.n_layer=two must be a whole number"),
        ("model._target_=optim.AdamW", "model._target_=optim.AdamW is not a model: it has no forward()"),
        ("model.bias=1", "model.bias=1 must be true or false"),
        ("data.val_fraction=5%", "data.val_fraction=5% must be a number"),
        ("data.workers=two", "data.workers=two must be a whole number or null"),
        ("data.tokenizer=bpe", "must be a mapping (an option is chosen by data/tokenizer=...)"),
        ("data/tokenizer=zzz", "data/tokenizer=zzz does not exist"),
        ("optim.lr=abc", "optim.lr=abc must be a number"),
        ("optim.lr=true", "optim.lr=true must be a number"),
        ("optim.lr=null", "optim.lr=null must be a number and not null"),
        ("optim.lr=", "optim.lr= must be a number"),
        ("optim.lr=[1]", "optim.lr=[1] must be a number"),
        ("optim.lr=nan", "optim.lr=nan must be a finite number"),
        ("optim.lr=${nothing}", "optim.lr: Interpolation key 'nothing' not found"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] must be a list of 2 numbers"),
        ("optim.betas=0.9,0.95", "add -m to run each, or give one (a list is written 'optim.betas=[0.9,0.95]')"),
        ("optim.decay_roles=matrix", "must be a list of roles such as [embedding,matrix]"),
        ("optim.lr=1e-3,2e-3", "optim.lr=1e-3,2e-3 has several values; add -m to run each"),
        ("optim=adamw,lion", "optim=adamw,lion names several options; add -m to run each"),
        ("+optim.role_settings.embedding.lr=abc", "optim.role_settings.embedding.lr=abc must be a number"),
        ("+optim.role_settings=3", "must be a mapping of roles to settings"),
        ("schedule.warmup_steps=2.5", "schedule.warmup_steps=2.5 must be a whole number"),
        ("schedule.foo=1", "unknown key 'schedule.foo'"),
        ("schedule.max_steps=1", "the nearest valid one is 'max_steps' (trainer.Cosine takes warmup_steps, final_lr"),
        ("optim=null", "optim=null does not exist"),
        ("~optim", "~optim leaves a run without optim"),
        ("~seed", "~seed: a run needs seed; give it another value"),
        ("~data.root", "~data.root: a run needs data.root"),
        ("~optim._target_", "a run needs optim._target_"),
        ("~optim.rho", "unknown key 'optim.rho'"),
        ("~schedule.warmup_steps", "schedule.warmup_steps is missing: trainer.Cosine needs it"),
        ("++c", "'++c' is no override"),
        ("-m", "'-m' is no option of this command"),
        ("optim.betas.x=1", "unknown key 'optim.betas.x': optim.betas is the value [0.9, 0.95]; give all of it"),
        ("optim.eps.x=1", "unknown key 'optim.eps.x'"),
        ("model.n_layer.x=1", "unknown key 'model.n_layer.x': model.n_layer is the value"),
        ("optim._target_=torch.nn.Linear", "torch.nn.Linear is not an optimizer: it has no step()"),
        (
            "optim._target_=torch.nowhere.Adam",
            "cannot be imported: ModuleNotFoundError: No module named 'torch.nowhere'",
        ),
        ("runs/folder", "'runs/folder' is no override"),
        ("optim@there=adamw", "unknown key 'optim@there'"),
        ("hydra.run.dir=x", "hydra.run.dir: Hydra's own settings are not used"),
        ("logging.wandb.project=x", "(logging=wandb has it)"),
        ("logging=[jsonl,wand]", "logging=wand does not exist; the nearest valid one is 'wandb'"),
        ("logging=jsonl,wandb", "give them as a list 'logging=[jsonl,wandb]'"),
        ("logging=[]", "logging=[] does not exist"),
        ("optim=[adamw,lion]", "optim=[adamw,lion] does not exist"),
        ("optim.rho=0.1", "(optim=sophiag or sophiah have it)"),
        ("+logging.wandb=x", "logging.wandb must be a mapping with _target_"),
        ("data.root=", "data.root= is empty; give a path"),
        ("run_dir=$NO_SUCH_VARIABLE/x", "needs the environment variable NO_SUCH_VARIABLE, which is not set"),
        ("run_dir=\udcff", "is not UTF-8 text"),
        ("optim._target_=torch.optim.RAdam", "('~optim.fused' leaves it out)"),
        ("optim._target_=torch.optim.Radam", "torch.optim has no Radam; it has"),
        ("optim._target_=optim.Sofia", "optim has no Sofia; it has Adafactor"),
        ("optim._target_=nowhere.Class", "cannot be imported: ModuleNotFoundError"),
        ("optim._target_=Class", "must be an import path such as package.Class"),
        ("optim._target_=trainer.Cosine", "is not an optimizer: it has no step()"),
        ("optim._target_=os.system", "name a class"),
        ("schedule._target_=trainer.DDP", "is not a schedule: it has no apply()"),
        ("+logging.x={_target_: trainer.Cosine}", "is not a sink: it has no write()"),
        ("data.source._target_=data.BPE", "is not a source of data: it has no fill()"),
    ],
)
def test_a_bad_override_gets_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_of_what_is_given_twice_the_last_counts() -> None:
    found = compose(["optim=lion", "seed=1", "optim=sgd", "optim.momentum=0.5", "seed=2"])
    assert (found.optim["_target_"], found.optim["momentum"], found.seed) == ("optim.SGD", 0.5, 2)
    assert found.run_dir == compose(["optim=sgd", "optim.momentum=0.5", "seed=2"]).run_dir


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: [", "while parsing"),
        ("- 1", "must be a mapping"),
        ("_target_: optim.Lion\nlr: ${nowhere}", "optim.lr: Interpolation key 'nowhere' not found"),
        ("_target_: optim.Lion\nlr: fast", "optim.lr=fast must be a number (optim.Lion)"),
        ("_target_: optim.Lion\nparams: 1", "optim.params is no setting of optim: the run passes its own"),
        ("lr: 1", "optim must be a mapping with _target_"),
        ("roles: {matrix: 1}", "optim.roles.matrix must be a mapping with _target_"),
        ("roles: 3", "optim.roles.<role> must be a mapping with _target_"),
        ("defaults: [nowhere]", "nowhere"),
    ],
)
def test_an_option_of_the_users_own_that_is_wrong_gets_one_line(own_configs: Path, text: str, message: str) -> None:
    (own_configs / "optim" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose(["optim=mine"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ to change."""
    folder = shutil.copytree(configs.FOLDER, tmp_path / "configs")
    for module in (composition, groups):
        monkeypatch.setattr(module, "FOLDER", folder)
    return folder


def test_a_misspelt_key_fails_before_anything_heavy_is_imported() -> None:
    code = "import sys, configs\ntry:\n    configs.compose(['optim.lrr=1'])\nexcept configs.ConfigError:\n"
    code += "    print(*sorted({'torch', 'wandb', 'datasets', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


MANDATORY = {
    "data=files": ["data.source.pattern=x"],
    "data=hf": ["data.source.path=x"],
    "data=tokens": ["data.source.train=x", "data.source.val=y"],
    "data=mixture": ["data.source.parts={x: 1, y: 2}"],
    "data/tokenizer=file": ["data.tokenizer.path=x"],
    "data/tokenizer=ids": ["data.tokenizer.vocab_size=300"],
    "data/tokenizer=characters": ["data.tokenizer.meta=x"],
}


@pytest.mark.parametrize("group", configs.GROUPS)
def test_every_option_composes(group: str) -> None:
    options = sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
    assert options
    for option in options:
        compose([f"{group}={option}", *MANDATORY.get(f"{group}={option}", [])])


def test_compile_may_be_written_as_yaml_writes_truth() -> None:
    assert [compose([f"compile={value}"]).compile for value in ("true", "False", "auto")] == ["true", "false", "auto"]


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["optim.amsgrad=true"], "optim.amsgrad", True),
        (["+optim.amsgrad=true"], "optim.amsgrad", True),
        (["optim=sophiag", "optim.eps=1e-8"], "optim.eps", 1e-8),
        (["optim=sophiag", "optim.curvature.paper_code=true"], "optim.curvature.paper_code", True),
        (["optim=sgd", "optim.dampening=0.5"], "optim.dampening", 0.5),
        (["optim=shampoo", "optim.roles.rest.eps=1e-6"], "optim.roles.rest.eps", 1e-6),
        (["data=synthetic", "data.source.n_words=20"], "data.source.n_words", 20),
        (["data.tokenizer.sample_megabytes=1"], "data.tokenizer.sample_megabytes", 1),
        (["logging=wandb", "logging.wandb.close_seconds=1"], "logging.wandb.close_seconds", 1),
        (["+optim.role_settings.embedding.lr=1e-4"], "optim.role_settings.embedding.lr", 1e-4),
        (["schedule.warmup_steps=1e2"], "schedule.warmup_steps", 100),
        (["seed=1e3"], "seed", 1000),
    ],
)
def test_a_hyperparameter_is_set_whether_its_file_lists_it_or_not(
    overrides: list[str], key: str, value: object
) -> None:
    found = flat(compose(overrides)).get(key)
    assert found == value and type(found) is type(value)


def test_what_nobody_sets_is_shown_with_the_default_of_its_constructor() -> None:
    config = compose(["optim=sophiag", "data=synthetic"])
    assert (config.optim["eps"], config.optim["curvature"]["paper_code"]) == (1e-12, False)
    assert config.data.source["n_words"] == 500
    assert compose(["~optim.betas"]).optim["betas"] == [0.9, 0.999]
    for given in ("params", "max_steps", "device", "run_dir"):
        assert given not in {*config.optim, *config.schedule, *config.parallel, *config.data.source}


def test_a_default_written_down_makes_no_other_run() -> None:
    plain, written = ["optim=sophiag"], ["optim=sophiag", "optim.eps=1e-12", "optim.curvature.paper_code=false"]
    assert compose(plain).run_dir == compose(written).run_dir
    assert configs.composed(plain).settings == configs.composed(written).settings
    assert compose(plain).run_dir != compose([*plain, "optim.eps=1e-11"]).run_dir


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "nano-pysource-adamw-s1337-dd16e5a0"),
        (["optim=sophiag", "seed=3"], "nano-pysource-sophiag-s3-3f79e8be"),
        (["model=micro", "data=synthetic", "optim.lr=1"], "micro-synthetic-adamw-s1337-5fc187a0"),
    ],
)
def test_runs_made_before_are_found_under_their_names(overrides: list[str], name: str) -> None:
    usual_then = ["max_steps=500", "eval_every=50"]
    assert compose([*usual_then, *overrides]).run_dir == f"runs/{name}"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["optim._target_=torch.optim.RAdam", "~optim.fused"], "-radam-"),
        (["optim=soap", "optim.roles.rest._target_=torch.optim.AdamW", "~optim.roles.rest.execution"], "-soap+adamw-"),
        (["optim=adamw_ours"], "-adamw_ours-"),
        (
            ["data=synthetic", "data.source={_target_: data.PySource, megabytes: 1}", "~data.source.n_documents"],
            "-pysource-",
        ),
    ],
)
def test_a_runs_name_says_which_classes_it_has(overrides: list[str], part: str) -> None:
    assert part in compose(overrides).run_dir


def test_the_run_directory_is_the_same_every_time_and_another_for_another_run() -> None:
    default = compose([]).run_dir
    assert default == compose([]).run_dir == compose(["resume=must", "data.root=elsewhere"]).run_dir
    assert default.startswith("runs/nano-pysource-adamw-s1337-")
    others = [["optim.lr=1"], ["seed=2"], ["micro_batch=4"], ["model=micro"], ["max_steps=7"], ["schedule=wsd"]]
    assert len({default, *(compose(overrides).run_dir for overrides in others)}) == 1 + len(others)
    assert compose(["run_dir=there"]).run_dir == "there"


def test_differences_name_what_makes_it_another_run(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    saved.write_text(as_yaml(compose(["optim.lr=0.25", "data.root=there", "micro_batch=8"])))
    assert differences(compose(["optim.lr=0.25", "log_every=3", "save_every=9"]), saved) == []
    assert differences(compose(["optim.lr=0.5"]), saved) == ["optim.lr=0.5 (there: 0.25)"]
    assert differences(compose(["optim.lr=0.25", "+optim.amsgrad=true"]), saved) == [
        "optim.amsgrad=true (there: false)"
    ]


def test_a_run_directory_of_before_or_with_defaults_written_down_is_the_same_run(tmp_path: Path) -> None:
    saved, ours = tmp_path / "config.yaml", compose(["optim=sophiag"])
    old = plain(ours)
    assert isinstance(old, dict)
    del old["optim"]["eps"], old["optim"]["curvature"]["paper_code"], old["data"]["tokenizer"]["sample_megabytes"]
    del old["timeout_seconds"], old["spike_factor"], old["model"]["qk_norm"]
    saved.write_text(json.dumps(old))
    assert differences(ours, saved) == []
    assert differences(compose(["optim=sophiag", "optim.eps=1e-12"]), saved) == []
    assert differences(compose(["optim=sophiag", "optim.eps=1e-9"]), saved) == ["optim.eps=1e-09 (there: 1e-12)"]


def test_comparing_with_a_foreign_file_imports_and_looks_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    saved = tmp_path / "config.yaml"
    content = as_yaml(compose([])).replace("torch.optim.AdamW", "evil.Optimizer")
    saved.write_text(content.replace("max_steps: 250", "max_steps: ${oc.env:SECRET}"))
    found = differences(compose([]), saved)
    assert "max_steps=250 (there: ${oc.env:SECRET})" in found
    assert "optim._target_=torch.optim.AdamW (there: evil.Optimizer)" in found


def test_a_sweep_is_the_product_of_its_values() -> None:
    assert expand(["seed=1,2", "optim.lr=1e-3", "model=nano,micro"]) == [
        ["seed=1", "optim.lr=1e-3", "model=nano"],
        ["seed=1", "optim.lr=1e-3", "model=micro"],
        ["seed=2", "optim.lr=1e-3", "model=nano"],
        ["seed=2", "optim.lr=1e-3", "model=micro"],
    ]


def test_a_plug_in_that_refuses_its_arguments_says_so_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="schedule.warmup_steps=-1 must be >= 0"):
        plug_in(compose(["schedule.warmup_steps=-1"]).schedule, max_steps=5)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'foo'"):
        plug_in({"_target_": "trainer.Constant", "warmup_steps": 1, "foo": 1}, max_steps=50)


class Picky:
    """Raises what the words stand for."""

    def __init__(self, words: str) -> None:
        raise {"assert": AssertionError(), "key": KeyError("k"), "run": RuntimeError("a\nb"), "value": ValueError("x")}[
            words
        ]


@pytest.mark.parametrize(
    ("words", "message"),
    [("assert", "AssertionError"), ("key", "KeyError: 'k'"), ("run", "RuntimeError: a b"), ("value", "x")],
)
def test_whatever_a_plug_ins_constructor_raises_is_one_line_that_names_it(words: str, message: str) -> None:
    target = f"{__name__}.Picky"
    with pytest.raises(ConfigError) as caught:
        plug_in({"_target_": target, "words": words})
    assert str(caught.value) == f"{target}: {message}"


class Sweeps:
    """Stands for the runner of sweeps."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked: list[Any] = []

    def __call__(
        self, script: str, combinations: Sequence[Sequence[str]], /, *, launch: Mapping[str, Any], search: Any
    ) -> int:
        self.asked.append((script, combinations, launch))
        return self.status


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str, sweep: Sweep | None = None) -> RunConfig:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return from_command_line("train.py", "What it does.", sweep)


@pytest.mark.parametrize(
    ("arguments", "at_once", "ranks"),
    [
        (["-m", "seed=1,2", "max_steps=7"], 1, 1),
        (["seed=1,2", "--multirun", "max_steps=7"], 1, 1),
        (["seed=1,2", "-m", "--at-once", "3", "max_steps=7", "--ranks=2"], 3, 2),
        (["seed=1,2", "launch.at_once=3", "max_steps=7", "launch.ranks=2", "-m"], 3, 2),
    ],
)
def test_a_sweep_gets_every_combination_and_its_status_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], at_once: int, ranks: int
) -> None:
    sweep = Sweeps(status=3)
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, *arguments, sweep=sweep)
    assert ended.value.code == 3
    launch = {"_target_": "launch.local.Local", "at_once": at_once, "ranks": ranks}
    assert sweep.asked == [("train.py", [["seed=1", "max_steps=7"], ["seed=2", "max_steps=7"]], launch)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at-once", "2"], "--at-once and --ranks are for sweeps; add -m"),
        (["-m", "--at-once", "0"], "argument --at-once: must be a whole number >= 1, got '0'"),
        (["-m", "--ranks", "two"], "argument --ranks: must be a whole number >= 1, got 'two'"),
        (["launch=slrum"], "launch=slrum does not exist; "),
        (["launch.rnks=2"], "unknown key 'launch.rnks'; the nearest valid one is 'launch.ranks'"),
        (["launch.partition=gpu"], "launch.partition=gpu is a key of launch=slurm; choose that, too"),
        (["-m", "launch.at_once=1,2"], "launch.at_once=1,2 has several values; give one"),
        (
            ["search=optuna", "search.space.seed=interval(1,2)"],
            "search.space.seed=interval(1,2) has several values; give",
        ),
        (["launch.ranks.of=2"], "unknown key 'launch.ranks.of'; the nearest valid one is 'launch.ranks'"),
        (["launch.ranks=two"], "launch.ranks=two must be a whole number (launch.local.Local)"),
        (["~launch"], "~launch: a command needs launch; choose local"),
        (["~launch.ranks"], "~launch.ranks: give launch.ranks another value, or leave it out"),
        (["search.trials=3"], "search.trials=3 is a key of search=...: add search=optuna"),
        (["search=optuna", "search.spase.optim.lr=1"], "unknown key 'search.spase.optim.lr'; the nearest valid one is"),
        (["search=optuna", "search.sampler=cma"], "search.sampler=cma must be tpe or random (launch.search.Optuna)"),
        (
            ["search=optuna", "-m"],
            "-m runs all combinations, search=optuna chooses among them; leave out one of the two",
        ),
        (["-m", "--cfg"], "--cfg shows the configuration of one run; leave out -m"),
        (["--cgf"], "unrecognized arguments: --cgf"),
        (["--max_steps=5"], "--max_steps=5: keys are written without dashes: max_steps=5"),
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
    assert capsys.readouterr().err == "error: train.py starts no other processes; leave out -m\n"


def test_flags_and_overrides_mix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(monkeypatch).seed == 1337
    assert command_line(monkeypatch, "~optim.fused", "+optim.amsgrad=true", "seed=3").seed == 3
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, "seed=3", "--cfg", "optim.lr=-1", "launch=local", "search=optuna")
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "\nseed: 3\n" in printed
    assert "lr: -1\n" in printed
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, "seed=3", "-h")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("What it does.\n\nOptions, ")


OWN = """
import torch
class Plain(torch.optim.SGD):
    def __init__(self, params, rate=0.1, *, names: "list[str]" = ("a",), **rest): super().__init__(params, lr=rate)
class Sink:
    def __init__(self, run_dir, settings, url="x"): pass
    def write(self, row): pass
    def close(self): pass
def made(params): return Plain(params)
"""


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["optim._target_=own.Plain", "optim.rate=0.5"], "optim.rate", 0.5),
        (["optim._target_=own.Plain", "optim.momentum=0.5"], "optim.momentum", 0.5),  # **rest takes it
        (["+logging.mine._target_=own.Sink"], "logging.mine._target_", "own.Sink"),
        (["+logging.mine._target_=own.Sink", "logging.mine.url=a#b"], "logging.mine.url", "a#b"),
    ],
)
def test_a_class_of_the_users_own_plugs_in_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], key: str, value: object
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert flat(compose(overrides)).get(key) == value
    assert "own" not in sys.modules  # its source says enough
    for target, message in (("own.Nope", "own has no Nope; it has Plain, Sink"), ("own.made", "is a function")):
        with pytest.raises(ConfigError, match=message):
            compose([f"optim._target_={target}"])
