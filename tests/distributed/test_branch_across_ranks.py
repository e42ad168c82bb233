"""A branch on several ranks of a trunk that one process trained, by real processes."""

import json
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from remains import metrics, result
from world import World

import train
from configs import compose

pytestmark = pytest.mark.xdist_group("ranks")
# dropout differs with the number of ranks, and so does the order of sums
COMMON = ["global_batch=12", "micro_batch=2", "model.dropout=0", "sample_tokens=0", "schedule=wsd"]
TRUNK, BRANCH = ["max_steps=20", "save_at=[8]"], ["max_steps=10"]
STEP = 8


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a finished run on one process."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    assert train.main(compose([*tiny, *COMMON, *TRUNK, f"run_dir={folder}"])) == 0
    return folder


@pytest.fixture
def start(tmp_path: Path, tiny: list[str]) -> Callable[..., tuple[list[int], list[str]]]:
    """Runs train.py on two ranks, start("name", *overrides); the exit statuses and the lines printed."""

    def call(name: str, *overrides: str) -> tuple[list[int], list[str]]:
        config = compose([*tiny, *COMMON, f"run_dir={tmp_path / name}", *overrides])
        output = tmp_path / f"{name}.txt"
        statuses = World(2, faults.train, config, {}, output=output).wait(60)
        return statuses, output.read_text().splitlines()

    return call


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_branch_from_what_one_process_trained(
    start: Callable[..., tuple[list[int], list[str]]], trunk: Path, tmp_path: Path, tiny: list[str], parallel: str
) -> None:
    assert train.main(compose([*tiny, *COMMON, *BRANCH, f"run_dir={tmp_path / 'replaced'}"])) == 0
    statuses, _ = start("branch", *BRANCH, f"parallel={parallel}", f"start_from={trunk}@{STEP}")
    assert statuses == [0, 0]
    found, expected = result(tmp_path / "branch"), result(tmp_path / "replaced")
    assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)  # ulps of fp32, carried through two steps
    assert (found["step"], found["tokens"], found["flops"]) == tuple(expected[k] for k in ("step", "tokens", "flops"))
    assert metrics(tmp_path / "branch")[0]["step"] == STEP
    began = json.loads((tmp_path / "branch" / "env.json").read_text())["start_from"]
    assert began == {"run": str(trunk), "step": STEP, "exact": True, "start": "everything", "changed": []}


def test_two_ranks_begin_with_the_weights_of_what_one_process_trained(
    start: Callable[..., tuple[list[int], list[str]]], trunk: Path, tmp_path: Path
) -> None:
    statuses, _ = start("on", "max_steps=4", "parallel=fsdp2", f"start_from={trunk}", "start=weights")
    assert statuses == [0, 0]
    first = metrics(tmp_path / "on")[0]
    assert (first["step"], first["val/loss"]) == (0, pytest.approx(result(trunk)["val/loss"], rel=1e-5))


def test_two_ranks_refuse_a_trunk_that_does_not_fit_in_one_line(
    start: Callable[..., tuple[list[int], list[str]]], trunk: Path, tmp_path: Path
) -> None:
    statuses, lines = start("branch", *BRANCH, "parallel=ddp", "optim=lion", f"start_from={trunk}@{STEP}")
    assert statuses == [2, 2]
    (line,) = lines
    assert line.startswith(
        f"error: start_from={trunk}@{STEP} is a run of another configuration: optim._target_=optim.L"
    )
    assert not (tmp_path / "branch").exists()
