"""single == DDP == FSDP2, for every option of configs/optim, on real processes."""

from collections.abc import Iterator
from pathlib import Path

import laws
import pytest
import torch
import world
from every_option import FEWEST, OPTIONS, slow_unless
from laws import MATRIX_METHODS, SENSITIVE
from torch import Tensor

pytestmark = pytest.mark.xdist_group("ranks")
STEPS = 6
KINDS = ["adamw", "adafactor", "soap", "sophiag"]  # of every kind one
PLACES = [(2, "ddp", OPTIONS), (2, "fsdp2", OPTIONS), (3, "ddp", KINDS), (3, "fsdp2", KINDS), (4, "hsdp", KINDS)]
NO_SECOND_DERIVATIVE = "fsdp2", "sophiah"  # refused, by a test below
CASES = [
    pytest.param(n, p, each, marks=[pytest.mark.slow] if n > 2 else slow_unless(FEWEST, each))
    for n, p, options in PLACES
    for each in options
    if (p, each) != NO_SECOND_DERIVATIVE
]
SHARDED = [option for option in OPTIONS if ("fsdp2", option) != NO_SECOND_DERIVATIVE]
FEWEST_SHARDED = [option for option in SHARDED if option in FEWEST]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks, so that sums are of the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Worlds:
    """What the ranks of a world found, computed once for all options, the slow ones apart."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], list[dict[str, laws.Outcome]]] = {}

    def outcomes(self, n: int, placement: str, option: str, law: str, *arguments: object) -> list[dict[str, Tensor]]:
        is_fast = option in FEWEST
        key = (n, placement, is_fast, law, *arguments)
        if key not in self._found:
            options = next(each for m, p, each in PLACES if (m, p) == (n, placement))
            options = [each for each in options if (each in FEWEST) == is_fast]
            options = [each for each in options if (placement, each) != NO_SECOND_DERIVATIVE]
            self._found[key] = world.run(n, getattr(laws, law), placement, options, *arguments)
        outcomes = []
        for rank, found in enumerate(self._found[key]):
            outcome = found[option]
            assert not isinstance(outcome, str), f"rank {rank}: {outcome}"
            outcomes.append(outcome)
        return outcomes


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds()


def alone(law: str, option: str, *arguments: object) -> dict[str, Tensor]:
    found = getattr(laws, law)("single", [option], *arguments)[option]
    assert not isinstance(found, str), found
    return dict(found)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative distance of a parameter."""
    return max(float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in expected.items())


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far two trainings are apart: the largest relative distance of a parameter, and of a step's loss."""
    parameters = {name: tensor for name, tensor in expected.items() if name != "losses"}
    losses, theirs = found["losses"], expected["losses"]
    return {"parameters": distance(found, parameters), "losses": float(((losses - theirs) / theirs).abs().max())}


@pytest.mark.parametrize(("n", "placement", "option"), CASES)
def test_the_same_gradients_make_the_same_parameters(worlds: Worlds, n: int, placement: str, option: str) -> None:
    expected = alone("of_given_gradients", option, STEPS)
    ranks = worlds.outcomes(n, placement, option, "of_given_gradients", STEPS)
    for found in ranks:
        assert all(torch.equal(found[name], ranks[0][name]) for name in expected)
    if option in MATRIX_METHODS:
        matrices = [name for name in expected if "c_" in name and name.endswith("weight")]
        assert matrices and all(torch.equal(ranks[0][name], expected[name]) for name in matrices)
    if placement == "ddp":
        assert all(torch.equal(ranks[0][name], expected[name]) for name in expected)
    assert distance(ranks[0], expected) <= 1e-6


@pytest.mark.parametrize(("n", "placement", "option"), CASES)
def test_training_goes_the_same_way(worlds: Worlds, n: int, placement: str, option: str) -> None:
    """Parameters and losses within 1e-5 after 20 steps, but for SENSITIVE ones.

    Those magnify the order of sums over ranks: gradients differ in their last bits (1e-7), and directions of
    rank-deficient factors that no gradient has reached are those bits, normalised; Muon rounds to bfloat16. How far
    that leads is measured on one process, with noise of that size put on its gradients; ranks may not lead farther
    than ten times that. A loss tells no less apart than the last bit of fp32, which by chance noise may leave alone.
    """
    steps = 20
    expected = alone("of_training", option, steps)
    found = worlds.outcomes(n, placement, option, "of_training", steps)[0]
    allowed = {"parameters": 1e-5, "losses": 1e-5}
    if option in SENSITIVE:
        noisy = apart(alone("of_training", option, steps, 1e-7), expected)
        last_bit = torch.finfo(torch.float32).eps
        allowed = {"parameters": 10 * noisy["parameters"], "losses": 10 * max(noisy["losses"], last_bit)}
    for what, size in apart(found, expected).items():
        assert size <= allowed[what], what


@pytest.mark.parametrize("placement", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_another_architecture_trains_the_same_way(placement: str) -> None:
    options, law = ["adamw", "adafactor", "sophiag"], (20, 0.0, "llama")
    outcomes = world.run(2, laws.of_training, placement, options, *law)[0]
    for option in options:
        found, expected = outcomes[option], alone("of_training", option, *law)
        assert not isinstance(found, str), found
        assert distance(found, expected) <= 1e-5, option


CHAIN = [(2, "fsdp2", 0, 2), (3, "ddp", 2, 4), (2, "ddp", 4, 5)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all options after steps on changing ranks and strategies."""
    folder = tmp_path_factory.mktemp("chain")
    for n, placement, first, last in CHAIN:
        for found in world.run(n, laws.of_a_continued_run, placement, SHARDED, folder, first, last):
            for option, outcome in found.items():
                assert not isinstance(outcome, str), f"{option}: {outcome}"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("option", SHARDED)
def test_checkpoints_move_between_strategies_and_numbers_of_ranks(chain: Path, option: str) -> None:
    found = alone("of_a_continued_run", option, chain, 5, STEPS)
    expected = alone("of_given_gradients", option, STEPS)
    if option in MATRIX_METHODS:
        matrices = [name for name in expected if "c_" in name and name.endswith("weight")]
        assert all(torch.equal(found[name], expected[name]) for name in matrices)
    assert distance(found, expected) <= 1e-6


@pytest.mark.parametrize("step", [2, 4])  # the first that is compressed, and a later one
def test_compression_forgets_a_step_that_is_not_finite_alike_on_all_ranks(step: int) -> None:
    found = world.run(2, laws.memory_of_powersgd, step)
    for each in found:
        assert each["finite"] == [n != step for n in range(6)]
        assert each["kept"] >= 3 and each["is_finite"]
    assert all(torch.equal(a, b) for a, b in zip(found[0]["right"], found[1]["right"], strict=True))


def test_hutchinson_is_refused_where_there_is_no_second_derivative() -> None:
    for found in world.run(2, laws.of_training, "fsdp2", ["sophiah"], 1):
        assert "Hutchinson needs second derivatives, which parallel=fsdp2 does not have: use parallel=ddp" in str(found)


@pytest.mark.parametrize("options", [FEWEST_SHARDED, pytest.param(SHARDED, marks=pytest.mark.slow)], ids=["few", "all"])
def test_four_ranks_hold_at_most_three_tenths_of_what_one_process_holds(options: list[str]) -> None:
    ranks = world.run(4, laws.bytes_held, "fsdp2", options)
    for option in options:
        full = float(alone("bytes_held", option)["bytes"])
        shares = [float(found[option]["bytes"]) / full for found in ranks]
        assert max(shares) <= 0.30, (option, shares)


def test_matrices_are_shared_out_evenly_and_alike_on_all_ranks() -> None:
    ranks = world.run(4, laws.loads_of, MATRIX_METHODS)
    assert all(found == ranks[0] for found in ranks)
    for option, loads in ranks[0].items():
        assert max(loads) <= 1.1 * sum(loads) / 4, option


def test_an_extra_backward_pass_crosses_ranks_once() -> None:
    one, three = (world.run(2, laws.reductions, n)[0] for n in (1, 3))
    assert one == three > 0


@pytest.mark.parametrize("n_sequences", [5, 12])
def test_evaluation_is_the_same_number_everywhere(n_sequences: int) -> None:
    expected = laws.evaluated("single", n_sequences)
    for n, placement in ((2, "ddp"), (3, "fsdp2")):
        assert set(world.run(n, laws.evaluated, placement, n_sequences)) == {expected}


@pytest.mark.parametrize("n_backward", [0, 1])
def test_parameters_are_sharded_again_after_forward_passes_without_backward(n_backward: int) -> None:
    assert world.run(2, laws.whole_after, n_backward) == [[], []]
