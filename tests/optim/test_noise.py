"""Random numbers that are a function of integers."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from optim.hyper import Shape
from optim.noise import BITS, MASK, gaussians, inverse_erf, key_of, mixed

CPU = torch.device("cpu")


def drawn(shape: Shape, *numbers: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return gaussians(shape, key_of(*numbers), dtype, CPU)


def test_the_hash_tells_all_numbers_apart() -> None:
    numbers = torch.arange(1 << 20)
    found = mixed(numbers)
    assert len(found.unique()) == len(numbers) and found.min() >= 0 and found.max() <= MASK
    assert torch.equal(mixed(numbers + MASK + 1), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussians_have_the_normal_distribution(dtype: torch.dtype) -> None:
    found = drawn((500, 200), 1, 2, 3, dtype=dtype)
    assert found.dtype == dtype and found.isfinite().all()
    assert stats.kstest(found.flatten().double().numpy(), "norm").pvalue > 0.01
    torch.testing.assert_close(found, drawn((500, 200), 1, 2, 3).to(dtype), rtol=1e-5, atol=1e-5)


def test_a_number_without_dimensions_is_drawn_too() -> None:
    assert torch.equal(drawn((), 1, 2, 3), drawn((1,), 1, 2, 3)[0])


def test_the_inverse_of_erf_is_as_exact_as_fp32_where_uniform_numbers_are_drawn() -> None:
    places = torch.cat([torch.arange(0, 1 << BITS, 61), torch.arange(1 << 12), (1 << BITS) - 1 - torch.arange(1 << 12)])
    x = (2 * places + 1 - (1 << BITS)).double() / (1 << BITS)
    for dtype, error in ((torch.float32, 4e-7), (torch.float64, 1e-13)):
        found, expected = inverse_erf(x.to(dtype)).double().numpy(), special.erfinv(x.numpy())
        assert np.abs(found / expected - 1).max() < error


@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_numbers_draw_independently(place: int) -> None:
    """Correlations of 1000 numbers have a spread of 0.03; the largest of 200 x 199 / 2 is about four times that."""
    numbers = [[n if i == place else 7 for i in range(3)] for n in range(200)]
    draws = torch.stack([drawn((50, 20), *each).flatten() for each in numbers])
    for each in (draws, draws.mT):  # between keys, and between places
        correlations = torch.corrcoef(each).fill_diagonal_(0)
        assert correlations.abs().max() < 5.5 / np.sqrt(each.shape[1])


def test_a_draw_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(drawn((3, 4), 5), drawn((3, 4), 5))
    assert torch.equal(torch.get_rng_state(), before)
