"""Who needs to know how an optimizer works asks it; no other file knows a name of its settings."""

import math
from pathlib import Path

import pytest
import ranks
import torch
import world
from hooked import Turning

from configs import compose
from optim import SOAP
from optim.build import build
from optim.ensemble import OptimizerSet
from optim.factored import BLOCK, column_maxima
from optim.sharding import ALL_ROWS
from reproduce.timing import TimingError, step_times

ROOT = Path(__file__).parents[2]
TURNING = ["optim._target_=hooked.Turning", "~optim.fused", "~optim.betas", "~optim.eps"]


def test_an_optimizer_is_timed_by_the_interval_that_it_names(tiny: list[str]) -> None:
    odd = [*TURNING, "optim.turn_every=4"]
    with pytest.raises(TimingError, match=r"steps=6 must be a multiple of 4, .* of arm odd"):
        step_times({"odd": odd}, tiny, rounds=6, steps=6)
    assert all(0 < seconds < math.inf for seconds in step_times({"odd": odd}, tiny, rounds=6, steps=4)["odd"].rounds)


def test_intervals_of_groups_and_members_are_all_held() -> None:
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    groups = [{"params": params[:1], "turn_every": 4}, {"params": params[1:2], "turn_every": 6}]
    optimizers = [Turning(groups), SOAP(params[2:3], precondition_frequency=10), torch.optim.SGD(params[3:])]
    assert OptimizerSet(optimizers, {}).refresh_interval == 60
    assert OptimizerSet(optimizers[2:], {}).refresh_interval == 1


@pytest.mark.xdist_group("ranks")
def test_ranks_share_parameters_by_the_cost_that_the_optimizer_names() -> None:
    """By their numbers alone, two and two would be even."""
    expected = ranks.shares_of_turning("single")["values"]
    for rank, found in enumerate(world.run(2, ranks.shares_of_turning, "ddp")):
        assert found["owner"] == {"square": 0, "wide0": 1, "wide1": 1, "wide2": 1}
        assert found["loads"] == [16**2 + 2 * 16**3, 3 * (4 * 64 + 2 * 4 * 4 * 64)]
        assert all(torch.equal(found["values"][name], tensor) for name, tensor in expected.items()), rank


@pytest.mark.parametrize("option", ["adafactor", "shampoo", "soap", "sophiag"])
def test_a_diagnostic_is_named_in_one_file_alone(option: str) -> None:
    """Others hand on a mapping of optim/<name> to a number."""
    model = torch.nn.Linear(4, 3)
    roles = {"weight": "matrix", "bias": "vector"}
    node = compose([f"optim={option}"]).optim
    optimizer = build(node, dict(model.named_parameters()), roles, seed=0, global_batch=1)
    optimizer.init_state()
    found = optimizer.diagnostics()
    assert all(name.startswith("optim/") for name in found)
    files = [*ROOT.glob("optim/*.py"), *ROOT.glob("trainer/*.py"), ROOT / "train.py"]
    for name in {name.split("/")[1] for name in found}:
        assert len([path for path in files if name in path.read_text("utf-8")]) == 1, name


def test_rows_that_this_rank_holds_alone_are_all_rows() -> None:
    matrix = torch.randn(5, 3)
    sums = matrix.sum(0)
    assert ALL_ROWS.sum(sums) is sums and ALL_ROWS.count(matrix) == 5
    torch.testing.assert_close(ALL_ROWS.mean(matrix), matrix.mean())
    torch.testing.assert_close(ALL_ROWS.mean(matrix[:, 0]), matrix[:, 0].mean())
    assert ALL_ROWS.max(sums) is sums


@pytest.mark.parametrize("shape", [(5, 3), (BLOCK, 2), (2 * BLOCK + 3, 4), (BLOCK + 1, 2, 3)])
def test_maxima_in_blocks_are_those_of_all_rows(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    assert torch.equal(column_maxima(tensor), tensor.amax(0))
    tensor[-1].view(-1)[0] = math.nan
    torch.testing.assert_close(column_maxima(tensor), tensor.amax(0), rtol=0, atol=0, equal_nan=True)
    assert column_maxima(tensor[:0]).eq(-math.inf).all()  # as of a rank that holds none
