"""Every command in README, CONTRIBUTING and docs/ is run here in a small form, or stands in NOT_RUN with the reason."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import train
from configs import from_command_line
from launch.sweep import sweep
from scripts import bench, compare, doctor, evaluate, prepare_data, reproduce, runs, sample, send_metrics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHER_LANGUAGES = ("mermaid", "python")  # the examples in Python are lines of docs/recipes, which are run
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = ("bash", "make", "pip", "pre-commit", "pytest", "python", "ruff", "sbatch", "tensorboard", "torchrun")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PATTERN = "data.source.pattern='corpus/**/*.txt'"


class NotRun(NamedTuple):
    """Why a command is not run here, and the test that runs the same thing small or by other means, if there is one."""

    why: str
    instead: str = ""


BENCH = "tests/scripts/test_bench.py"
REPRODUCE = "tests/scripts/test_reproduce.py"
OPTIM_BENCH = f"{BENCH}::test_the_optimizer_benchmark_knows_state_floor_and_foreign_files"
NOT_RUN = {
    "pip install -e '.[train]'": NotRun("the package index; .ci/run does it in a fresh environment"),
    "pip install <checkout>": NotRun(
        "the package index",
        "tests/optim/test_installed.py::test_the_wheel_needs_torch_alone_and_the_extra_train_pins_it",
    ),
    **{
        f"python docs/recipes/{recipe}.py": NotRun(
            "it is run where the package alone is installed",
            "tests/optim/test_installed.py::test_the_recipes_lower_a_loss_with_the_frameworks_themselves",
        )
        for recipe in ("plain_torch", "hf_trainer", "lightning_module")
    },
    "pip install -e '.[dev]'": NotRun("the package index; .ci/run does it in a fresh environment"),
    "pip install pre-commit": NotRun("the package index"),
    "pre-commit install": NotRun("it changes the checkout", "tests/test_docs.py::test_the_hooks_are_checks_of_make"),
    "make check": NotRun("it is the whole suite; .ci/run runs the same"),
    "ruff format --check": NotRun("a part of make check"),
    "ruff check": NotRun("a part of make check"),
    "pytest tests/test_golden.py": NotRun("it is in this suite"),
    "python tests/golden/record.py losses": NotRun(
        "it replaces golden files", "tests/test_golden.py::test_ten_steps_lose_what_they_did"
    ),
    "python tests/golden/record.py configs": NotRun(
        "it replaces golden files", "tests/test_golden.py::test_claims_are_configured_as_they_were"
    ),
    **{
        f"python train.py schedule=wsd {each}": NotRun(
            "needs a trunk", "tests/test_branch.py::test_a_branch_ends_bit_for_bit_like_the_run_that_it_replaces"
        )
        for each in (
            "max_steps=2000 run_dir=runs/trunk 'save_at=[400,800]'",
            "max_steps=500 start_from=runs/trunk@400",
            "max_steps=1000 start_from=runs/trunk@800",
            "start_from=runs/<name>@400",
        )
    },
    "python train.py -m optim=<name> optim.lr=... max_steps=200": NotRun(
        "an hour, and the grammar of sweeps is run below"
    ),
    "torchrun --standalone --nproc_per_node=8 train.py parallel=ddp": NotRun(
        "a longer form of it is run below",
        "tests/test_working_directory.py::test_train_py_trains_in_a_folder_with_files_of_our_packages_names",
    ),
    "python <checkout>/train.py": NotRun(
        "a form, not a command",
        "tests/test_working_directory.py::test_train_py_trains_in_a_folder_with_files_of_our_packages_names",
    ),
    **{
        f"python train.py data={each}": NotRun(
            "tokens of others", "tests/data/test_token_files.py::test_train_py_trains_on_them_as_first_typed"
        )
        for each in (
            "tokens data.source.train='data/openwebtext/train.bin' data.source.val='data/openwebtext/val.bin'",
            "tokens data.source.train='fineweb10B/*_train_*.bin' data.source.val='fineweb10B/*_val_*.bin'",
            "fineweb10b data.order=sequential",
        )
    },
    "python train.py data=mixture 'data.source.parts={hf-gpt2-1a2b3c4d: 0.7, files-gpt2-5e6f7a8b: 0.3}'": NotRun(
        "needs its parts", "tests/data/test_mixture.py::test_train_py_trains_on_a_mixture_as_first_typed"
    ),
    "python scripts/prepare_data.py data=hf data.source.path=roneneldan/TinyStories data.source.split=train": NotRun(
        "the network", "tests/data/test_huggingface.py::test_the_command_prepares_a_folder_as_first_typed"
    ),
    "python scripts/prepare_data.py data=hf data.source.path=my_set data.source.text=content": NotRun(
        "a folder of yours", "tests/data/test_huggingface.py::test_the_command_prepares_a_folder_as_first_typed"
    ),
    "tensorboard --logdir runs": NotRun(
        "a server", "tests/test_train.py::test_tensorboard_has_the_rows_of_metrics_jsonl_also_after_a_kill"
    ),
    "torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=<host>:29400 --max-restarts=3 "
    "train.py parallel=fsdp2": NotRun("several machines"),
    "sbatch --job-name=gpt2-soap launch/slurm.sbatch data=openwebtext model=gpt2_small optim=soap": NotRun(
        "SLURM", "tests/launch/test_slurm.py::test_srun_gets_the_cpus_that_the_job_has"
    ),
    "bash scripts/gpu.sh": NotRun("a GPU"),
    "python scripts/reproduce.py claim=sophia_2x scale=nano --dry-run": NotRun(
        "it measures steps for half a minute",
        "tests/reproduce/test_command.py::test_a_dry_run_prints_the_checks_that_are_known_before_and_leaves_nothing_on_disk",
    ),
    "python train.py <overrides of the run> optim.lr=6e-3 run_dir=reproductions/atlas/nano-1a2b3c4d/mine": NotRun(
        "a form, not a command"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=nano": NotRun(
        "an hour", "tests/reproduce/test_reproduction.py::test_a_sweep_of_real_runs_ends_in_a_report"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=small ranks=8 parallel=ddp": NotRun("days on eight GPUs"),
    "python scripts/reproduce.py claim=all scale=nano": NotRun(
        "hours", f"{REPRODUCE}::test_the_readme_beside_the_ledger_shows_its_verdicts"
    ),
    "python scripts/bench.py train --model nano gpt2_small --peer <nanoGPT checkout> --rounds 9": NotRun(
        "minutes, another project's code", f"{BENCH}::test_the_training_benchmark_writes_its_figures"
    ),
    "python scripts/bench.py optim --optim adamw_ours sophiag lion signum sgd adafactor <authors' sophia.py>:SophiaG "
    "<a file with torch.optim.Adafactor>:Loop ... --steps 5 --rounds 9": NotRun(
        "minutes, other projects' code", OPTIM_BENCH
    ),
    "python scripts/bench.py optim --parallel 1 2 4 --optim soap adamw_ours --model micro --steps 10 "
    "--rounds 2": NotRun("minutes", f"{BENCH}::test_the_optimizer_benchmark_compares_ranks_with_one_process"),
    "OMP_NUM_THREADS=1 python scripts/bench.py tensors": NotRun(
        "half a minute", f"{BENCH}::test_small_tensors_are_measured_beside_torchs_foreach"
    ),
    "python scripts/bench.py checkpoint --model gpt2_small": NotRun(
        "gigabytes", f"{BENCH}::test_the_checkpoint_benchmark_compares_saves_and_cleans_up"
    ),
}

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
    "python train.py -m optim.lr=1e-3,2e-3 parallel=ddp --ranks 2": ["optim.lr=1e-3", "parallel=ddp", "--ranks=2"],
}


def commands_of(text: str) -> Iterator[str]:
    """The shell commands of a page, without comments: all lines of a fence, and inline code that begins with a program.

    Blanks and line ends within a command are one blank.
    """
    for language, block in FENCE.findall(text):
        if language not in OTHER_LANGUAGES:
            assert language == "", f"{language}: a fence in a language that the tests do not know"
            lines = block.replace("\\\n", " ").splitlines()
            yield from (plain for line in lines if (plain := _plain(line)))
    for code in INLINE.findall(FENCE.sub("", text)):
        plain = _plain(code.replace("\n", " "))
        words = [word for word in plain.split() if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if len(words) > 1 and words[0] in PROGRAMS:
            yield plain


def _plain(line: str) -> str:
    return " ".join(re.sub(r"(^|\s)#\s.*", "", line).split())


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
    start = words.index("-m") + 1
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


TRAIN = of("python train.py", without="-m")
SWEEPS = [each for each in of("python train.py") if each not in TRAIN]
RANKS = of("torchrun")
SCRIPTS = of("python scripts/")


def test_every_command_is_run_or_says_why_not() -> None:
    left = set(COMMANDS) - {*TRAIN, *SWEEPS, *RANKS, *SCRIPTS}
    assert not left, "no test runs these: add a runner, or the reason to NOT_RUN"


@pytest.mark.parametrize("command", TRAIN, ids=id_of)
def test_train_py_does_what_the_docs_show(
    command: str, here: Path, small: Callable[[list[str]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shlex.split(command)[2:]
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
    assert list(here.glob("runs/sweep-*.csv")) and list(here.glob("runs/*/result.json"))


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
        arguments = [argument.replace("<name>", name) for argument in arguments]
    script, added = {
        "scripts/bench.py": (bench, ["--model", "nano"] if "--help" not in arguments else []),
        "scripts/compare.py": (compare, ["out=out"]),
        "scripts/doctor.py": (doctor, tiny),
        "scripts/evaluate.py": (evaluate, []),
        "scripts/prepare_data.py": (prepare_data, ["data.root=prepared"]),
        "scripts/reproduce.py": (reproduce, []),
        "scripts/runs.py": (runs, []),
        "scripts/sample.py": (sample, ["tokens=4"]),
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
