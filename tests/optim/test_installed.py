"""The wheel: what it installs, and that what it installs works without the rest of the project."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]  # builds a wheel; imports torch in every process
ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
NEEDS: dict[str, tuple[str, ...]] = {
    "plain_torch": (),
    "hf_trainer": ("transformers", "accelerate"),
    "lightning_module": ("lightning",),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("optim", "data", "configs", "model"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    pip("wheel", *offline, "-w", folder / "dist", folder)
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel alone; torch and the frameworks of the recipes are taken from here."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    found = [find_spec(name) for name in ("torch", *(name for names in NEEDS.values() for name in names))]
    folders = {Path(spec.origin).parents[1]: None for spec in found if spec is not None and spec.origin is not None}
    (site / "elsewhere.pth").write_text("".join(f"{folder}\n" for folder in folders))
    return folder / "bin" / "python"


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "-q", *arguments, cwd=Path(sys.prefix))


def run(python: Path | str, *arguments: str | Path, cwd: Path) -> str:
    """Its output; of the checkout, which may count as installed, it sees nothing."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, *map(str, arguments)], cwd=cwd, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_one_import_name_with_types(wheel: Path) -> None:
    files = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {str(Path(name).parent) for name in files} == {"nanodescent/optim"}
    assert {Path(name).name for name in files} == {"py.typed", *(path.name for path in (ROOT / "optim").glob("*.py"))}


def test_the_wheel_needs_torch_alone_and_the_extra_train_pins_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = re.findall("^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    assert [each for each in needs if "extra ==" not in each] == ["torch>=2.11"]
    assert any(re.fullmatch(r'torch==[\d.]+; extra == "train"', each) for each in needs)


def test_importing_it_imports_torch_and_nothing_of_the_projects_other_needs(python: Path, tmp_path: Path) -> None:
    code = """
import sys
import nanodescent.optim, nanodescent.optim.build, nanodescent.optim.memory
needs = {"hydra", "omegaconf", "wandb", "datasets", "tiktoken", "matplotlib", "rich", "scipy", "plotly", "transformers"}
assert not needs & set(sys.modules), needs & set(sys.modules)
for name in ("optim", "data", "model", "configs", "train", "trainer", "files"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is installed")
"""
    run(python, "-c", code, cwd=tmp_path)


def test_every_optimizer_builds_steps_copies_and_pickles_under_its_installed_name(python: Path, tmp_path: Path) -> None:
    code = """
import copy, pickle
import torch
import nanodescent.optim as optim
from nanodescent.optim.build import build

for name in ("SGD", "SOAP", "Adafactor", "AdamW", "Lion", "Shampoo", "Signum", "Sophia"):
    curvature = {"curvature": {"_target_": "nanodescent.optim.GaussNewtonBartlett"}} if name == "Sophia" else {}
    params = {"w": torch.nn.Parameter(torch.ones(4, 3)), "b": torch.nn.Parameter(torch.ones(3))}
    node = {"_target_": f"nanodescent.optim.{name}", "lr": 0.1, **curvature}
    built = build(node, params, {"w": "matrix", "b": "vector"}, seed=0, global_batch=4)
    for again in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        own, optimizer = again((params, built))
        for _ in range(3):
            for param in own.values():
                param.grad = torch.full_like(param, 0.5)
                if name == "Sophia":
                    optimizer.optimizers[0].update_curvature({param: torch.ones_like(param)})
            optimizer.step(measured=True)
        assert all((param != 1).all() for param in own.values()), name
        assert type(optimizer.optimizers[0]) is getattr(optim, name)
"""
    run(python, "-c", code, cwd=tmp_path)


@pytest.mark.parametrize("recipe", [path.stem for path in sorted(RECIPES.glob("*.py"))])
def test_the_recipes_lower_a_loss_with_the_frameworks_themselves(recipe: str, python: Path, tmp_path: Path) -> None:
    for name in NEEDS[recipe]:
        pytest.importorskip(name, reason=f"docs/recipes/{recipe}.py needs {name}, which is not installed")
    printed = run(python, RECIPES / f"{recipe}.py", cwd=tmp_path)
    losses = re.findall(r"^(\w+): ([\d.]+) -> ([\d.]+)$", printed, re.MULTILINE)
    for optimizer in ("soap", "sophia"):
        assert any(name.lower().endswith(optimizer) for name, _, _ in losses)
    assert all(float(after) < float(before) for _, before, after in losses)


def test_the_package_may_be_imported_twice_under_two_names(python: Path, tmp_path: Path) -> None:
    """As where a checkout's own name and the installed one meet in one process."""
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
import torch, optim, nanodescent.optim
for package in (optim, nanodescent.optim):
    param = torch.nn.Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    package.Adafactor([param]).step()
    assert (param != 1).all()
assert optim.Adafactor is not nanodescent.optim.Adafactor
"""
    run(python, "-c", code, cwd=tmp_path)
