"""Every command in README, CONTRIBUTING and docs/ is run here in a small form, or stands in NOT_RUN with the reason."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from textwrap import indent

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import train
from configs import compose, from_command_line
from launch.sweep import sweep
from scripts import (
    bench,
    compare,
    doctor,
    evaluate,
    export,
    prepare_data,
    reproduce,
    runs,
    sample,
    scaling,
    send_metrics,
)
from tests.commands_in_docs import FENCE, PAGES, ROOT, commands_of
from tests.commands_not_run import NOT_RUN

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PATTERN = "data.source.pattern='corpus/**/*.txt'"


# OpenWebText from a folder.
OFFLINE = [
    "data/tokenizer=bytes",
    "data.source.folder=parquet",
    "data.source.expected_documents=null",
    "data.source.limit_documents=30",
    "data.val_fraction=0.2",
]

# In place of a command's own arguments, where they ask for more runs than it takes to try them.
FEWER = {
    "python train.py -m optim.lr=1e-3,2e-3 seed=1,2": ["optim.lr=1e-3", "seed=1"],
    "python train.py -m optim=adamw,lion 'seed=range(1,4)' --at-once 2": [
        "optim=lion",
        "seed=range(1,3)",
        "--at-once=2",
    ],
    "python train.py search=optuna search.trials=30 'search.space.optim.lr={low: 1e-4, high: 1e-2, log: true}' "
    "optim=adamw max_steps=200 eval_every=20 launch.at_once=3": [
        *(
            "search=optuna",
            "search.trials=2",
            "search.space.optim.lr={low: 1e-4, high: 1e-2, log: true}",
            "optim=adamw",
        ),
        *("max_steps=2", "eval_every=1", "launch.at_once=2"),
    ],
    "python train.py -m optim.lr=1e-3,2e-3 parallel=ddp micro_batch=4 --ranks 2": [
        *("optim.lr=1e-3", "parallel=ddp", "micro_batch=4", "--ranks=2")
    ],
}


COMMANDS = sorted({command for page in PAGES for command in commands_of(page.read_text("utf-8"))} - set(NOT_RUN))


def test_what_is_not_run_stands_in_the_docs_and_names_tests_that_exist() -> None:
    found = {command for page in PAGES for command in commands_of(page.read_text("utf-8"))}
    assert not set(NOT_RUN) - found
    assert not set(FEWER) - found
    for _, instead in NOT_RUN.values():
        path, _, name = instead.partition("::")
        assert not instead or f"def {name}(" in (ROOT / path).read_text("utf-8"), instead


def test_a_fence_and_inline_code_are_read_as_commands() -> None:
    page = (
        "`pip`, `val/loss`\n```\npython a.py \\\n  b='c d'  # why\n\nls\n```\n```python\nx = 1\n```\n`A=1 python\nb.py`"
    )
    assert list(commands_of(page)) == ["python a.py b='c d'", "ls", "A=1 python b.py"]


def test_examples_in_python_are_lines_of_the_recipes() -> None:
    recipes = [path.read_text("utf-8") for path in (ROOT / "docs" / "recipes").glob("*.py")]
    blocks = [
        block for page in PAGES for language, block in FENCE.findall(page.read_text("utf-8")) if language == "python"
    ]
    assert blocks
    for block in blocks:
        assert any(indent(block, "    ") in recipe for recipe in recipes), block  # lines of a function


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are called in, with the same texts in corpus/ as .txt and in parquet/."""
    texts = [f"Chapter {i}. " + "The quick brown fox jumps over the lazy dog. " * 20 for i in range(40)]
    (tmp_path / "corpus").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "corpus" / f"{i}.txt").write_text(text)
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "parquet" / "0.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(tiny: list[str]) -> Callable[[list[str]], list[str]]:
    """What makes a run of train.py small, beside its own arguments."""

    def small(arguments: list[str]) -> list[str]:
        given = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
        added = [each for each in tiny if not (each.startswith("data=") and "data" in given)]
        added += {"openwebtext": OFFLINE, "files": ["data/tokenizer=bytes"]}.get(given.get("data", ""), [])
        return [*added, "max_steps=2"]

    return small


def call_train(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """As `python train.py` does, in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        config = from_command_line(str(ROOT / "train.py"), train.__doc__ or "", sweep)
    except SystemExit as ended:
        return int(ended.code or 0)
    return train.main(config)


def smaller(command: str) -> list[str]:
    """The command's words; with fewer values where FEWER has them, which must be of the same keys."""
    words = shlex.split(command)
    if command not in FEWER:
        return words
    start = words.index("-m") + 1 if "-m" in words else 2
    missing = keys(words[start:]) - keys(FEWER[command])
    assert not missing, f"FEWER[{command!r}] lacks {missing}"
    return [*words[:start], *FEWER[command]]


def keys(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if "=" in word or word.startswith("-")}


def id_of(command: str) -> str:
    return re.sub(r"[^\w.=/-]+", " ", command)


def of(start: str, *, without: str = "nothing") -> list[str]:
    """The commands to run that begin so."""
    return [each for each in COMMANDS if each.startswith(start) and without not in each.split()]


TRAIN = [each for each in of("python train.py", without="-m") if each not in of("python train.py search=optuna")]
SWEEPS = [each for each in of("python train.py") if each not in TRAIN]
RANKS = of("torchrun")
SCRIPTS = of("python scripts/")


def test_every_command_is_run_or_says_why_not() -> None:
    left = set(COMMANDS) - {*TRAIN, *SWEEPS, *RANKS, *SCRIPTS}
    assert not left, "no test runs these: add a runner, or the reason to NOT_RUN"


def ranks_of(command: str) -> int:
    """How many ranks a command starts; the templates of sbatch have 8 GPUs on each node."""
    if command.startswith("sbatch"):
        return 16 if "slurm.sbatch" in command else 8
    found = re.findall(r"(?:nnodes=|nproc_per_node=|launch\.ranks=|--ranks[ =])(\d+)", command)
    return prod(map(int, found))


WITH_RANKS = sorted(
    {each for page in PAGES for each in commands_of(page.read_text("utf-8")) if ranks_of(each) > 1}
    - {each for each in NOT_RUN if "reproduce.py" in each}
)


@pytest.mark.parametrize("command", WITH_RANKS, ids=id_of)
def test_a_command_with_ranks_shares_its_batch_among_them(command: str) -> None:
    own = [each for each in shlex.split(command) if re.match(r"parallel=|global_batch=|micro_batch=", each)]
    config = compose([*["parallel=ddp"] * command.startswith("sbatch"), *own])  # which the templates have
    assert config.parallel["_target_"] != "trainer.Single"
    assert config.global_batch % (config.micro_batch * ranks_of(command)) == 0


@pytest.mark.parametrize("command", TRAIN, ids=id_of)
def test_train_py_does_what_the_docs_show(
    command: str,
    here: Path,
    small: Callable[[list[str]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    arguments = shlex.split(command)[2:]
    if "runs/<name>" in command:
        name = request.getfixturevalue("a_run")
        arguments = [argument.replace("<name>", name) for argument in arguments]
    if "data=openwebtext" in arguments or "data=files" in arguments:
        extra = [each for each in small(arguments) if each.startswith("data")]
        data = [each for each in arguments if each.startswith("data")]
        assert prepare_data.main([*data, *extra]) == 0
    if "--help" not in arguments:
        arguments += [*small(arguments), "run_dir=run"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert call_train(arguments, monkeypatch) == 0
    assert {"--help", "--cfg"} & set(arguments) or (here / "run" / "loss.png").is_file()


@pytest.mark.slow  # processes that import torch
@pytest.mark.parametrize("command", SWEEPS, ids=id_of)
def test_sweeps_do_what_the_docs_show(
    command: str, here: Path, small: Callable[[list[str]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = smaller(command)[2:]
    arguments += small(arguments)
    assert call_train(arguments, monkeypatch) == 0
    assert [*here.glob("runs/sweep-*.csv"), *here.glob("runs/search-*/trials.csv")] and list(
        here.glob("runs/*/result.json")
    )


@pytest.mark.slow  # processes that import torch
@pytest.mark.parametrize("command", RANKS, ids=id_of)
def test_torchrun_does_what_the_docs_show(command: str, here: Path, small: Callable[[list[str]], list[str]]) -> None:
    words = [re.sub("(?<=nproc_per_node=).*", "2", word) for word in shlex.split(command)[1:]]
    script = words.index("train.py")
    arguments = [*words[:script], str(ROOT / "train.py"), *words[script + 1 :], *small(words), "run_dir=run"]
    done = subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (here / "run" / "loss.png").is_file()


@pytest.fixture
def a_run(here: Path, small: Callable[[list[str]], list[str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a finished run in runs/, beside another one."""
    for name, seed in (("a-run", 1), ("another", 2)):
        assert call_train([*small([]), f"seed={seed}", f"run_dir=runs/{name}"], monkeypatch) == 0
    return "a-run"


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=[pytest.mark.slow] if "doctor" in each else []) for each in SCRIPTS],  # which compiles
    ids=id_of,
)
def test_scripts_do_what_the_docs_show(
    command: str, here: Path, tiny: list[str], request: pytest.FixtureRequest
) -> None:
    _, path, *arguments = shlex.split(command)
    if "runs/" in command:
        name = request.getfixturevalue("a_run")
        arguments = [argument.replace("<name>", name).replace("<folder>", "out") for argument in arguments]
    script, added = {
        "scripts/bench.py": (bench, ["--model", "nano"] if "--help" not in arguments else []),
        "scripts/compare.py": (compare, ["out=out"]),
        "scripts/doctor.py": (doctor, tiny),
        "scripts/evaluate.py": (evaluate, []),
        "scripts/export.py": (export, []),
        "scripts/prepare_data.py": (prepare_data, ["data.root=prepared"]),
        "scripts/reproduce.py": (reproduce, []),
        "scripts/runs.py": (runs, []),
        "scripts/sample.py": (sample, ["tokens=4"]),
        "scripts/scaling.py": (scaling, []),
        "scripts/send_metrics.py": (send_metrics, []),
    }[path]
    if "data=openwebtext" in arguments:
        added = [*added, *OFFLINE]
    assert script.main([*arguments, *added]) == 0


def test_the_hooks_are_checks_of_make() -> None:
    hooks = re.findall(r"entry: ([\w ]+),", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    checks = [line.strip().removesuffix(" .") for line in (ROOT / "Makefile").read_text("utf-8").splitlines()]
    assert hooks == ["ruff format", "ruff check", "mypy"]
    assert {"ruff format --check", "ruff check", "mypy"} <= set(checks)
