"""State in bfloat16 and in 8-bit codes: what rounding may do, and that no law knows of it."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import test_laws as laws
import torch
from every_option import FEWEST, OPTIONS, few_fast
from torch import Tensor

from optim import AdamW, Lion, formats
from optim.build import build
from optim.formats import Place, decoded, encode
from optim.memory import state_bytes

OURS = [option for option in OPTIONS if option != "adamw"]  # which is torch's
NARROW = [name for name in formats.FORMATS if name != "fp32"]
CODES = [torch.int8, torch.uint8]


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Codes for the parameters of a model for tests."""
    for name, value in (("SMALLEST", 1), ("BLOCK", 4), ("SHORTEST_BLOCK", 2)):
        monkeypatch.setattr(formats, name, value)
    yield


def table(dtype: torch.dtype) -> np.ndarray:
    """The ratios that have a code, from the description."""
    top = 127 if dtype == torch.int8 else 255
    positive = (np.arange(top + 1) / top) ** 4
    return np.concatenate([-positive[:0:-1], positive]) if dtype == torch.int8 else positive


def rounded(numbers: Tensor, dtype: torch.dtype, blocks: int = 1, place: Place | None = None) -> Tensor:
    codes, maxima = torch.zeros(numbers.shape, dtype=dtype), torch.zeros(len(numbers), blocks)
    encode(numbers, codes, maxima, place)
    return decoded(codes, maxima)


def values(dtype: torch.dtype, *shape: int) -> Tensor:
    """Over many magnitudes, the first of every row 1."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 5 / 1e4
    found = found.clamp(-0.9, 0.9)
    found[:, 0] = 1
    return found if dtype == torch.int8 else found.abs()


@pytest.mark.parametrize("dtype", CODES)
def test_every_number_goes_to_a_neighbour_in_the_table(dtype: torch.dtype) -> None:
    numbers = values(dtype, 40, 500)
    known, exact = table(dtype), numbers.double().numpy()
    assert len(known) == (255 if dtype == torch.int8 else 256)
    found = rounded(numbers, dtype).double().numpy()
    above = np.clip(np.searchsorted(known, exact), 1, len(known) - 1)
    low, high = known[above - 1], known[above]
    assert np.all(np.minimum(abs(found - low), abs(found - high)) <= 1e-6 * abs(found) + 1e-12)
    # The one whose fourth root is nearer; where it should be 0, what is positive stays so.
    roots = [abs(each) ** 0.25 for each in (found, exact)]
    is_kept = (dtype == torch.uint8) & (exact > 0) & (low == 0)
    assert np.all((abs(roots[0] - roots[1]) <= 0.5001 / (127 if dtype == torch.int8 else 255)) | is_kept)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
def test_zero_and_the_largest_of_a_block_are_exact_and_rounding_twice_is_rounding_once(
    dtype: torch.dtype, factor: float
) -> None:
    numbers = values(dtype, 8, 512) * factor
    numbers[1] = 0
    numbers[:, 7] = 0
    if dtype == torch.int8:
        numbers[2, 3] = -2 * factor  # the largest of its block
    found = rounded(numbers, dtype, blocks=2)
    assert found.isfinite().all() and (found[numbers == 0] == 0).all()
    for each, own in ((numbers, found), (found, rounded(found, dtype, blocks=2))):
        a, b = each.view(8, 2, 256), own.view(8, 2, 256)
        where = a.abs().argmax(-1, keepdim=True)
        assert torch.equal(a.gather(-1, where), b.gather(-1, where))
    assert torch.equal(rounded(found, dtype, blocks=2), found)


def test_what_is_positive_never_becomes_zero() -> None:
    numbers = torch.full((1, 64), 1e-20)
    numbers[0, 0] = 1
    assert (rounded(numbers, torch.uint8) > 0).all()


def test_a_block_knows_nothing_of_the_others() -> None:
    numbers = values(torch.int8, 4, 512)
    changed = numbers.clone()
    changed[:, :256] *= 1000
    a, b = rounded(numbers, torch.int8, 2), rounded(changed, torch.int8, 2)
    assert torch.equal(a[:, 256:], b[:, 256:]) and not torch.equal(a[:, :256], b[:, :256])


@pytest.mark.parametrize("dtype", CODES)
def test_stochastic_rounding_is_right_on_average(dtype: torch.dtype) -> None:
    sign = torch.tensor([1.0, -1.0 if dtype == torch.int8 else 1.0]).repeat(128)
    numbers = 10 ** (-3 * torch.rand(20, 256, generator=torch.Generator().manual_seed(0))) * sign
    n = 400
    draws = torch.stack([rounded(numbers, dtype, place=Place(0, step)) for step in range(n)])
    error, spread = (draws.mean(0) - numbers).abs(), draws.std(0) / n**0.5
    inexact = spread > 0
    assert inexact.float().mean() > 0.9
    assert (error[inexact] < 5 * spread[inexact] + 1e-6).float().mean() > 0.995  # but next to a power of ten
    assert (rounded(numbers, dtype) - numbers).abs()[inexact].mean() > 3 * error[inexact].mean()


def test_the_noise_is_of_the_row_and_not_of_the_rank() -> None:
    numbers = values(torch.int8, 12, 64)
    of_all = rounded(numbers, torch.int8, place=Place(0, 5))
    assert torch.equal(rounded(numbers[7:], torch.int8, place=Place(7, 5)), of_all[7:])
    assert not torch.equal(rounded(numbers[7:], torch.int8, place=Place(0, 5)), of_all[7:])
    assert not torch.equal(rounded(numbers, torch.int8, place=Place(0, 6)), of_all)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((64, 768), 3),
        ((50304, 96), 1),
        ((64, 300), 2),  # of 150
        ((64, 8, 4, 16), 2),
        ((4096,), None),  # a vector
        ((8, 96), None),  # too small
        ((4096, 8), None),  # rows too short
        ((64, 257), None),  # a prime
    ],
)
def test_rows_are_cut_into_equal_blocks_or_kept_exactly(shape: tuple[int, ...], blocks: int | None) -> None:
    assert formats.blocks_of_row(shape) == blocks


@pytest.mark.parametrize(("state", "share"), [("bf16", 0.5), ("int8", 0.255), ("int8_stochastic", 0.255)])
def test_the_state_is_as_small_as_it_says(state: str, share: float) -> None:
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((512, 768), (768, 512))]
    sizes = []
    for each in ("fp32", state):
        optimizer = AdamW(params, state=each)
        optimizer.init_state()
        sizes.append(sum(t.nbytes for own in optimizer.state.values() for t in own.values() if t.ndim))
    assert sizes[1] <= share * sizes[0]


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("state", NARROW)
@few_fast("option", OURS)
def test_laws_hold_in_every_format(option: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "config", functools.partial(_in_format, state=state))
    laws.test_resume_is_bitwise_identical(option, torch.float32, 4)
    laws.test_state_has_the_bytes_that_the_meta_device_tells_beforehand(option)
    laws.test_parameters_without_numbers_are_no_trouble(option)
    laws.test_it_learns(option)
    laws.test_a_step_that_is_not_to_be_taken_leaves_all_as_it_was(option)


def _in_format(option: str, state: str, **changes: object) -> dict[str, object]:
    found = laws_config(option, **changes)
    for node in laws.nodes(found):
        if str(node.get("_target_", "")).startswith("optim.") and "lr" in node:
            node["state"] = state
    return found


laws_config = laws.config


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("state", NARROW)
@few_fast("option", ["adamw_ours", "sophiag", "shampoo", "adafactor"], FEWEST)
def test_compiled_code_rounds_alike(option: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    models = []
    for execution in ("eager", "compiled"):
        model = laws.gpt()
        laws.train(model, laws.built(_in_format(option, state, execution=execution), model), 0, 4)
        models.append(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_an_optimizer_whose_state_is_narrow_stays_near_the_exact_one() -> None:
    """Over 50 steps, to a few per cent of the distance; an error in a block's place would be all of it."""
    start = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    ends = {}
    for state in formats.FORMATS:
        param = torch.nn.Parameter(start.clone())
        optimizer = AdamW([param], lr=1e-2, state=state)
        for step in range(50):
            generator = torch.Generator().manual_seed(step)
            param.grad = param.detach() + torch.randn(param.shape, generator=generator)
            optimizer.step()
        ends[state] = param.detach()
    for state in NARROW:
        assert (ends[state] - ends["fp32"]).norm() < 0.05 * (ends["fp32"] - start).norm(), state


def test_tensors_in_another_order_of_memory_are_updated_too() -> None:
    """Of a convolution's weight in channels_last, whose rows are no views of memory."""
    weights = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        param = torch.nn.Parameter(weights.clone(memory_format=memory))
        optimizer = Lion([param], state="int8")
        for _ in range(2):
            param.grad = torch.sin(weights * 9).to(memory_format=memory)
            optimizer.step()
        assert optimizer.state[param]["exp_avg"].dtype == torch.int8
        found.append(param.detach())
    assert torch.equal(*found) and not torch.equal(found[0], weights)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="Lion: state='int4' must be one of fp32, bf16, int8, int8_stochastic"):
        Lion([torch.nn.Parameter(torch.zeros(2))], state="int4")


def test_a_state_of_another_format_is_refused() -> None:
    params = [torch.nn.Parameter(torch.zeros(64, 64))]
    a, b = AdamW(params), AdamW(params, state="int8")
    params[0].grad = torch.ones(64, 64)
    a.step()
    with pytest.raises(ValueError, match=r"AdamW: state 'exp_avg' .* should be .*int8.* is .*float32.*, state= among"):
        b.load_state_dict(a.state_dict())


def test_the_bytes_of_a_config_know_the_format() -> None:
    params = {"w": torch.nn.Parameter(torch.zeros(64, 768))}
    found = [state_bytes({"_target_": "optim.Lion", "state": s}, params, {"w": "matrix"}) for s in ("fp32", "int8")]
    assert found == [64 * 768 * 4, 64 * 768 + 64 * 3 * 4]
    assert build({"_target_": "optim.Lion", "state": "int8"}, params, {"w": "matrix"}, seed=0, global_batch=1)
