import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from corpora import dataset_of

from data import DataError, TokenDataset, TokenLoader, eval_batches
from data.loader import PADDING, Batch
from data.windows import permuted

T = 16
ORDERS = pytest.mark.parametrize("order", ["random", "shuffled", "sequential"])
Loader = Callable[..., TokenLoader]


@pytest.fixture
def counting(tmp_path: Path) -> TokenDataset:
    """Token i is i, so a window names its own place."""
    return TokenDataset.open(dataset_of(tmp_path / "counting", np.arange(1000)), "train")


@pytest.fixture
def loader(counting: TokenDataset) -> Iterator[Loader]:
    made: list[TokenLoader] = []

    def make(dataset: TokenDataset = counting, **changes: Any) -> TokenLoader:
        settings = {"seq_len": T, "global_batch": 24, "micro_batch": 24, "seed": 5, "device": "cpu"} | changes
        made.append(TokenLoader(dataset, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def inputs(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in batches])


@ORDERS
@pytest.mark.parametrize(("micro_batch", "data_ranks"), [(1, 1), (8, 3), (4, 2), (2, 4), (1, 24), (24, 1)])
def test_global_batch_does_not_depend_on_micro_batch_and_data_ranks(
    loader: Loader, order: str, micro_batch: int, data_ranks: int
) -> None:
    for step in (0, 1, 7):
        expected = inputs(loader(order=order).batches(step))
        ranks = [
            loader(order=order, micro_batch=micro_batch, data_rank=r, data_ranks=data_ranks) for r in range(data_ranks)
        ]
        parts = [batch for rank in ranks for batch in rank.batches(step)]
        assert torch.equal(inputs(parts), expected)
        assert [batch.indices[0] for batch in parts] == list(range(0, 24, micro_batch))


@ORDERS
def test_batch_is_a_pure_function_of_seed_and_step(loader: Loader, order: str) -> None:
    in_order = loader(order=order)
    expected = [inputs(in_order.batches(step)) for step in range(6)]
    jumping = loader(order=order)
    for step in (5, 0, 1, 4, 4, 2, 3):
        assert torch.equal(inputs(jumping.batches(step)), expected[step])
    assert not torch.equal(expected[0], expected[1])
    is_drawn = order != "sequential"
    assert torch.equal(inputs(loader(order=order, seed=6).batches(0)), expected[0]) != is_drawn


def test_random_order_is_fixed_for_good(loader: Loader) -> None:
    # Philox-4x64-10 with key (5, 3), modulo the 984 places of a window: written down once, changed never.
    starts = loader(global_batch=6, micro_batch=6).batches(3)[0].inputs[:, 0]
    draws = np.random.Philox(key=[5, 3]).random_raw(6)
    assert starts.tolist() == [int(draw) % 984 for draw in draws] == [90, 795, 802, 642, 159, 246]


@ORDERS
def test_targets_are_the_inputs_one_token_later(loader: Loader, order: str) -> None:
    (batch,) = loader(order=order).batches(0)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (24, T)
    assert batch.inputs.is_contiguous() and batch.targets.is_contiguous()
    assert torch.equal(batch.inputs + 1, batch.targets)
    assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(T))


def test_random_windows_reach_both_ends_of_the_data(loader: Loader, tmp_path: Path) -> None:
    short = TokenDataset.open(dataset_of(tmp_path / "short", np.arange(T + 3)), "train")
    starts = loader(short).batches(0)[0].inputs[:, 0]
    assert set(starts.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("n_tokens", "global_batch"), [(T + 1, 4), (5 * T, 3), (1000, 24), (1000, 62), (10 * T + 1, 35)]
)
def test_shuffled_visits_every_window_once_per_epoch(
    loader: Loader, tmp_path: Path, n_tokens: int, global_batch: int
) -> None:
    dataset = TokenDataset.open(dataset_of(tmp_path / "some", np.arange(n_tokens)), "train")
    n_windows = (n_tokens - 1) // T
    shuffled = loader(dataset, order="shuffled", global_batch=global_batch, micro_batch=global_batch)
    n_steps = -(-3 * n_windows // global_batch)
    starts = torch.cat([inputs(shuffled.batches(step))[:, 0] for step in range(n_steps)])[: 3 * n_windows]
    for epoch in starts.view(3, n_windows):
        assert sorted(epoch.tolist()) == list(range(0, n_windows * T, T))


def test_sequential_reads_the_windows_as_they_lie_and_begins_again(loader: Loader) -> None:
    reading = loader(order="sequential", global_batch=24, micro_batch=24)
    starts = torch.cat([inputs(reading.batches(step))[:, 0] for step in range(6)])
    assert starts.tolist() == [i % 62 * T for i in range(144)]  # 62 windows of 16 fit into 1000 tokens


def test_every_epoch_has_an_order_of_its_own() -> None:
    index = np.arange(1000, dtype=np.uint64)
    orders = [permuted(index, 1000, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(abs(np.corrcoef(index, order)[0, 1]) < 0.1 for order in orders)  # 3 sigma of 1000 independent pairs


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 4095, 4096, 4097, 30_011])
def test_permuted_is_a_permutation(n: int) -> None:
    assert sorted(permuted(np.arange(n, dtype=np.uint64), n, 3, 9).tolist()) == list(range(n))


def test_permuted_costs_no_memory_for_huge_ranges() -> None:
    n = 10**15
    found = permuted(np.arange(n - 5000, n, dtype=np.uint64), n, 0, 0)
    assert len(set(found.tolist())) == 5000
    assert found.max() < n
    assert 0.45 < found.astype(float).mean() / n < 0.55  # 12 sigma of 5000 uniform draws


@pytest.mark.parametrize(("micro_batch", "data_ranks"), [(1, 1), (4, 1), (4, 3), (3, 2), (50, 2)])
def test_evaluation_covers_the_same_windows_for_any_data_ranks(
    counting: TokenDataset, micro_batch: int, data_ranks: int
) -> None:
    parts: dict[int, Batch] = {}
    counts = []
    for rank in range(data_ranks):
        found = list(
            eval_batches(
                counting,
                seq_len=T,
                n_sequences=22,
                micro_batch=micro_batch,
                device="cpu",
                data_rank=rank,
                data_ranks=data_ranks,
            )
        )
        counts.append(len(found))
        for batch in found:
            if batch.indices[0] == PADDING:
                assert batch.inputs.shape == (1, T)
                continue
            assert batch.indices[0] not in parts
            parts[batch.indices[0]] = batch
    assert len(set(counts)) == 1  # ranks compute in step
    covered = [parts[first] for first in sorted(parts)]
    windows = inputs(covered)
    assert windows[:, 0].tolist() == [i * 62 // 22 * T for i in range(22)]  # 62 windows of 16 fit into 1000 tokens
    assert torch.equal(windows, windows[:, :1] + torch.arange(T))
    assert torch.equal(torch.cat([batch.targets for batch in covered]), windows + 1)


def test_evaluation_on_all_windows_covers_the_split(counting: TokenDataset) -> None:
    found = list(eval_batches(counting, seq_len=T, n_sequences=62, micro_batch=8, device="cpu"))
    assert inputs(found).flatten().tolist() == list(range(62 * T))


def test_evaluation_refuses_a_slice_larger_than_the_split(counting: TokenDataset) -> None:
    with pytest.raises(DataError, match="wants 63 sequences of 16 tokens, but train has 62"):
        next(eval_batches(counting, seq_len=T, n_sequences=63, micro_batch=1, device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 7}, r"global_batch=24 must be a multiple of .* = 7 \* 1 = 7; nearest: 21 or 28"),
        ({"micro_batch": 24, "data_ranks": 2}, r"= 24 \* 2 = 48; nearest: 48"),
        (
            {"seq_len": 1000},
            "block_size=1000 is larger than the data: train of .* has 1000 tokens, expected at least 1001",
        ),
        ({"order": "sorted"}, "data.order='sorted' must be one of random, shuffled, sequential"),
        ({"seed": -1}, "seed=-1 must be >= 0"),
    ],
)
def test_impossible_settings_are_refused(loader: Loader, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loader(**changes)


def test_an_error_of_the_prefetch_thread_surfaces_with_its_step(loader: Loader, counting: TokenDataset) -> None:
    reading = loader(global_batch=48, micro_batch=48)
    for file in counting.path.glob("train_*.bin"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="was truncated while in use"):
        for step in range(3):
            reading.batches(step)


def test_close_leaves_no_thread(counting: TokenDataset) -> None:
    before = threading.active_count()
    reading = TokenLoader(counting, seq_len=T, global_batch=8, micro_batch=8, seed=0, device="cpu")
    reading.batches(0)
    reading.close()
    assert threading.active_count() == before


def test_memory_does_not_grow_with_what_has_been_read(loader: Loader, tmp_path: Path) -> None:
    # 64 MB of tokens; a kept memory map would count every page it touched.
    tokens = np.zeros(32_000_000, np.uint16)
    dataset = TokenDataset.open(dataset_of(tmp_path / "large", tokens, shard_tokens=10_000_000), "train")
    reading = loader(dataset, seq_len=1024, global_batch=64, micro_batch=64, order="shuffled")
    process = psutil.Process()
    before = process.memory_info().rss  # before the first batch: one touch may map megabytes of a cached file
    for step in range(500):
        reading.batches(step)
    assert process.memory_info().rss - before < 16_000_000  # two steps of 2 MB in flight, and what malloc keeps
