"""Who may import whom."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = (
    "assembly",
    "configs",
    "evaluation",
    "files",
    "data",
    "model",
    "optim",
    "trainer",
    "interchange",
    "launch",
    "report",
    "inference",
    "reproduce",
    "train",
    "scripts",
)
ALLOWED = {
    "model": {"model"},
    "files": {"files"},
    "data": {"data", "files"},
    "optim": {"optim"},
    "trainer": {"trainer", "files"},
    "configs": {"configs", "files"},
    "launch": {"launch", "configs", "files"},
    "evaluation": {"evaluation", "data", "files", "launch.run_files", "model", "trainer.metrics"},
    "interchange": {"interchange", "data", "files", "model"},
    "assembly": {"assembly", "launch.statuses", "configs", "data", "files", "interchange", "model", "optim", "trainer"},
    "train": {"assembly", "launch", "configs", "data", "files", "model", "optim", "trainer"},
    "report": {"report", "files"},
    "inference": {"inference"},
    "reproduce": {
        "reproduce",
        "inference",
        "report",
        "train",
        "assembly",
        "launch",
        "configs",
        "data",
        "files",
        "model",
        "optim",
        "trainer",
    },
}
ONLY_IN = {
    "hydra": ("configs", "train", "scripts", "reproduce"),
    "omegaconf": ("configs", "train", "scripts", "reproduce"),
    "wandb": ("trainer/wandb.py",),
    "tensorboard": ("trainer/tensorboard.py",),
    "optuna": ("launch/search_study.py", "launch/search_trials.py", "launch/search_summary.py"),
    "datasets": ("data/huggingface.py", "data/rows.py", "scripts/bench_data.py"),
}


def files(package: str) -> list[Path]:
    single = ROOT / f"{package}.py"
    return [single] if single.is_file() else sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(part for part in (base, node.module) if part)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    assert files(package)
    for path in files(package):
        for name in imports(path):
            if name.split(".")[0] in OURS:
                allowed = any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED[package])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_no_package_holds_more_than_a_quarter_of_the_code() -> None:
    lines = {package: sum(len(path.read_text().splitlines()) for path in files(package)) for package in OURS}
    largest = max(lines, key=lambda package: lines[package])
    assert lines[largest] <= sum(lines.values()) / 4, f"{largest} has {lines[largest]} of {sum(lines.values())} lines"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    for path in (path for package in OURS for path in files(package)):
        if library in {name.split(".")[0] for name in imports(path)}:
            assert str(path.relative_to(ROOT)).startswith(ONLY_IN[library]), f"{path} imports {library}"


def test_the_optimizers_need_nothing_but_torch() -> None:
    """And typing_extensions, which torch itself needs."""
    for path in files("optim"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in {"torch", "typing_extensions", "optim"} or top in sys.stdlib_module_names, (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_every_file_of_the_optimizers_is_read_in_one_go() -> None:
    longest = max(files("optim"), key=lambda path: len(path.read_text().splitlines()))
    assert len(longest.read_text().splitlines()) <= 150, longest.relative_to(ROOT)
