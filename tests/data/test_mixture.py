"""Mixtures: every part gives its share of the sequences, as a function of seed and step alone."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import Texts, numbered_texts, prepared
from foreign_files import llm_c

import data.verified
import train
from configs import compose
from data import (
    BPE,
    Bytes,
    DataError,
    Ids,
    Mixture,
    OfParts,
    TokenDataset,
    TokenFiles,
    TokenizerFile,
    TokenLoader,
    eval_batches,
)
from data.encoding import PLAN_FILE
from data.metadata import SHARES, Part
from data.windows import apportioned, starts

T = 16
SIZES = (1000, 400, 90)  # tokens of the three parts; token i of part n is 10,000 n + i
WEIGHTS = (5, 2.5, 2.5)
ORDERS = pytest.mark.parametrize("order", ["random", "shuffled", "sequential"])
Loader = Callable[..., TokenLoader]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = []
    for n, size in enumerate(SIZES):
        file = llm_c(tmp_path / f"in/{n}.bin", range(10_000 * n, 10_000 * n + size))
        val = llm_c(tmp_path / f"in/{n}_val.bin", range(10_000 * n + size - 1, 10_000 * n - 1, -1))
        source = TokenFiles(str(file), str(val))
        found.append(prepared(source, tmp_path / "prepared", Ids(30_000), val_fraction=None))
    return found


def mixed(folders: list[Path], weights: tuple[float, ...] = WEIGHTS) -> Path:
    parts = {str(folder): weight for folder, weight in zip(folders, weights, strict=True)}
    return prepared(Mixture(parts), folders[0].parent, OfParts(), val_fraction=None)


@pytest.fixture
def dataset(folders: list[Path]) -> TokenDataset:
    return TokenDataset.open(mixed(folders), "train")


@pytest.fixture
def loader(dataset: TokenDataset) -> Iterator[Loader]:
    made: list[TokenLoader] = []

    def make(**changes: Any) -> TokenLoader:
        settings = {"seq_len": T, "global_batch": 24, "micro_batch": 24, "seed": 5, "device": "cpu"} | changes
        made.append(TokenLoader(dataset, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def inputs(loader: TokenLoader, step: int) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in loader.batches(step)])


@ORDERS
def test_the_batch_does_not_depend_on_ranks_or_on_the_steps_before(loader: Loader, order: str) -> None:
    for step in (7, 0, 3):
        expected = inputs(loader(order=order), step)
        ranks = [loader(order=order, micro_batch=4, data_rank=rank, data_ranks=3) for rank in range(3)]
        assert torch.equal(torch.cat([inputs(rank, step) for rank in ranks]), expected)


@ORDERS
def test_no_window_reaches_from_one_part_into_another(loader: Loader, order: str) -> None:
    reading = loader(order=order)
    for step in range(40):
        (batch,) = reading.batches(step)
        assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(T))
        assert torch.equal(batch.targets, batch.inputs + 1)


def owners(dataset: TokenDataset, order: str, sequences: int, seed: int = 5) -> list[list[int]]:
    """By part, the places in it of the first sequences of a run, in the order of the run."""
    found = starts(dataset.parts, seq_len=T, global_batch=sequences, seed=seed, order=order, step=0)
    firsts = np.cumsum([0, *(part.n_tokens for part in dataset.parts)])[:-1]
    numbers = dataset.read(firsts, 1)[:, 0] // 10_000
    owner = np.searchsorted(firsts, found, "right") - 1
    places = (found - firsts[owner].astype(np.uint64)).tolist()
    by_part: dict[int, list[int]] = {n: [] for n in range(len(SIZES))}
    for number, place in zip(numbers[owner].tolist(), places, strict=True):
        by_part[number].append(place)
    return list(by_part.values())


def test_every_block_has_exactly_each_parts_share(dataset: TokenDataset) -> None:
    counts = {n: len(places) for n, places in enumerate(owners(dataset, "random", SHARES))}
    assert counts == {0: SHARES // 2, 1: SHARES // 4, 2: SHARES // 4}


def test_shares_are_even_over_short_stretches_too(dataset: TokenDataset) -> None:
    found = owners(dataset, "random", 4096)
    # Draws without replacement: the standard deviation is below that of 4096 coins, 32.
    assert abs(len(found[0]) - 2048) < 5 * 32
    assert owners(dataset, "random", 64, seed=6) != owners(dataset, "random", 64)


def test_shuffled_shows_each_part_once_per_epoch_of_its_own(dataset: TokenDataset) -> None:
    for places, size in zip(owners(dataset, "shuffled", 2000), SIZES, strict=True):
        n_windows = (size - 1) // T
        for first in range(0, len(places) - n_windows + 1, n_windows):
            epoch = places[first : first + n_windows]
            assert sorted(epoch) == list(range(0, n_windows * T, T))


def test_sequential_reads_each_part_as_it_lies(dataset: TokenDataset) -> None:
    for places, size in zip(owners(dataset, "sequential", 2000), SIZES, strict=True):
        n_windows = (size - 1) // T
        assert places == [i % n_windows * T for i in range(len(places))]


def test_the_second_block_goes_on_where_the_first_ended(dataset: TokenDataset) -> None:
    settings: dict[str, Any] = {"seq_len": T, "seed": 5, "order": "sequential"}
    both = starts(dataset.parts, global_batch=SHARES + 500, step=0, **settings)
    halves = [starts(dataset.parts, global_batch=SHARES, step=step, **settings) for step in (0, 1)]
    assert np.array_equal(both, np.concatenate(halves)[: SHARES + 500])


def test_validation_is_mixed_in_the_same_shares(folders: list[Path]) -> None:
    val = TokenDataset.open(mixed(folders), "val")
    found = list(eval_batches(val, seq_len=T, n_sequences=16, micro_batch=5, device="cpu"))
    parts = torch.cat([batch.inputs for batch in found])[:, 0] // 10_000
    assert Counter(parts.tolist()) == {0: 8, 1: 4, 2: 4}
    with pytest.raises(
        DataError, match=r"wants 10 sequences of 16 tokens, but val of tokens-ids-\w+ has 5: add eval_sequences=20 "
    ):
        next(eval_batches(val, seq_len=T, n_sequences=40, micro_batch=5, device="cpu"))
    assert len(list(eval_batches(val, seq_len=T, n_sequences=20, micro_batch=5, device="cpu"))) == 4


@pytest.mark.parametrize(
    ("shares", "n", "counts"),
    [((0.7, 0.3), 3, [2, 1]), ((0.3, 0.7), 3, [1, 2]), ((0.9, 0.1), 3, [3, 0]), ((0.5, 0.25, 0.25), 5, [3, 1, 1])],
)
def test_few_sequences_are_apportioned_as_near_to_the_shares_as_can_be(
    shares: tuple[float, ...], n: int, counts: list[int]
) -> None:
    ends = [round(SHARES * end) for end in itertools.accumulate(shares)]
    parts = [Part(f"{i}", 1000, share) for i, share in enumerate(np.diff(ends, prepend=0).tolist())]
    assert apportioned(parts, n) == counts


def test_a_part_shorter_than_a_window_is_named(dataset: TokenDataset) -> None:
    with pytest.raises(
        DataError, match=r"block_size=90 is larger than the data: train of tokens-ids-\w+ has 90 tokens"
    ):
        TokenLoader(dataset, seq_len=90, global_batch=1, micro_batch=1, seed=0, device="cpu")


def test_weights_need_not_add_up_and_their_order_does_not_matter(folders: list[Path]) -> None:
    first = TokenDataset.open(mixed(folders), "train")
    other = TokenDataset.open(mixed(folders[::-1], (1, 1, 2)), "train")
    assert [part.share for part in other.parts] == [part.share for part in first.parts]
    assert [part.name for part in other.parts] == [part.name for part in first.parts]


def test_parts_are_found_by_their_names_in_the_root(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    by_name = Mixture({folder.name: weight for folder, weight in zip(folders, WEIGHTS, strict=True)})
    assert prepared(by_name, folders[0].parent, OfParts(), val_fraction=None) == mixed(folders)


def test_what_one_part_trains_on_does_not_validate_another(tmp_path: Path) -> None:
    one, other = (llm_c(tmp_path / f"{n}.bin", range(n, n + 100)) for n in range(2))
    parts = {}
    for train_file, val_file in ((one, other), (other, one)):
        source = TokenFiles(str(train_file), str(val_file))
        parts[str(prepared(source, tmp_path / "prepared", Ids(300), val_fraction=None))] = 1.0
    with pytest.raises(
        DataError, match=r".bin is to validate, but has the same content as .*.bin, which is trained on"
    ):
        prepared(Mixture(parts), tmp_path / "prepared", OfParts(), val_fraction=None)


def half_prepared(folder: Path) -> None:
    """A folder as a preparation that was killed leaves it."""
    folder.mkdir()
    (folder / PLAN_FILE).write_text("{}")


def named(folder: Path, text: str) -> Path:
    """Documents with this text, prepared in that folder in place of what was there."""
    made = prepared(Texts([f"{text} {i}" for i in range(30)]), folder.parent / "made")
    shutil.rmtree(folder, ignore_errors=True)
    return made.rename(folder)


def mixed_with(part: Path, tmp_path: Path) -> Path:
    parts = {str(part): 3, str(tmp_path / "other"): 1}
    return prepared(Mixture(parts), tmp_path / "prepared", OfParts(), val_fraction=None)


def test_data_sets_of_one_name_are_told_apart_by_their_contents(tmp_path: Path) -> None:
    named(tmp_path / "other", "other")
    texts = {"a": "hello", "b": "hello", "c": "jello"}
    a, b, c = (mixed_with(named(tmp_path / root / "wiki", text), tmp_path) for root, text in texts.items())
    assert a == b != c
    assert TokenDataset.open(b, "train").checksum != TokenDataset.open(c, "train").checksum


def test_a_part_that_was_prepared_anew_makes_another_mixture_and_the_old_one_is_refused(tmp_path: Path) -> None:
    named(tmp_path / "other", "other")
    before = mixed_with(named(tmp_path / "wiki", "hello"), tmp_path)
    after = mixed_with(named(tmp_path / "wiki", "jello"), tmp_path)
    assert after != before
    assert TokenDataset.open(after, "train").n_tokens > 0
    with pytest.raises(DataError, match=r"wiki/train_00000.bin is damaged: .* or delete .*mixture-of_parts-\w+, which"):
        TokenDataset.open(before, "train")


def test_mixing_hashes_nothing_again(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.verified, "describe", lambda *arguments: pytest.fail("reads a part again"))
    TokenDataset.open(mixed(folders), "train")


def test_corpora_of_one_tokenizer_are_mixed_and_of_two_refused(tmp_path: Path) -> None:
    texts, others = Texts(numbered_texts(40)), Texts([text.upper() for text in numbered_texts(30)])
    others.name = "others"  # type: ignore[misc]  # another corpus, so another folder
    first = prepared(texts, tmp_path, BPE(300))
    apart, alike = (
        prepared(others, tmp_path, BPE(300)),
        prepared(others, tmp_path, TokenizerFile(str(first / "tokenizer.json"))),
    )
    with pytest.raises(
        DataError, match=r"was encoded with another tokenizer than .*data.tokenizer.path=<folder of \w+"
    ):
        prepared(Mixture({str(first): 1, str(apart): 1}), tmp_path, OfParts())
    path = prepared(Mixture({str(first): 1, str(alike): 1}), tmp_path, OfParts())
    assert TokenDataset.open(path, "train").n_tokens == sum(
        TokenDataset.open(part, "train").n_tokens for part in (first, alike)
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": 1}, "names 1 data sets; a mixture has at least two"),
        ({"a": 1, "b": 0}, "the weight of b is 0, expected a number above 0 and below 1e\\+100"),
        ({"a": 1, "b": True}, "the weight of b is True, expected a number above 0"),
        ({"a": 1e308, "b": 1e308}, "the weight of a is 1e\\+308, expected a number above 0 and below"),
        ({"a": 1, "b": 10**400}, "the weight of b is 10*, expected a number above 0"),
        ({1: 2, 3: 4}, r"the folder 1 is not a text: write it as \./1"),
        ({"a": 1, "b": float("inf")}, "the weight of b is inf, expected a number above 0"),
        ({"a": 1, "b": "half"}, "the weight of b is half, expected a number above 0"),
        ({"x/a": 1, "y/a": 2}, "has a twice, as x/a and as y/a: .*, rename one of the two"),
    ],
)
def test_impossible_weights_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"data.source.parts:? ?{message}"):
        Mixture(parts)


def test_what_cannot_be_mixed_is_refused_in_one_line(folders: list[Path]) -> None:
    root, one, other = folders[0].parent, *map(str, folders[:2])
    with pytest.raises(DataError, match=r"the weight of .*, 1e-06 of 1, is below 1/65536: leave it out"):
        prepared(Mixture({one: 1e-6, other: 1 - 1e-6}), root, OfParts())
    with pytest.raises(DataError, match="data=mixture has the tokenizer of its parts, not data/tokenizer=bytes"):
        prepared(Mixture({one: 1, other: 1}), root, Bytes())
    with pytest.raises(DataError, match=r"is a mixture itself; name its parts instead"):
        prepared(Mixture({one: 1, str(mixed(folders)): 1}), root, OfParts())
    with pytest.raises(DataError, match="data/tokenizer=of_parts is for data=mixture"):
        prepared(Texts(numbered_texts(9)), root, OfParts())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: None,
            r"part does not exist, neither here nor in data.root \(/part or .*/part\): name the",
        ),
        (Path.mkdir, r".*prepared/part is no prepared data set, it has no dataset.json: name the folder that scripts/"),
        (half_prepared, r"data set .*prepared/part is only half prepared: run `python scripts/prepare_data.py"),
    ],
    ids=["missing", "another folder", "half prepared"],
)
def test_a_part_that_is_not_prepared_is_refused_in_one_line(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir("/")
    root = folders[0].parent
    make(root / "part")
    with pytest.raises(DataError, match=f"^(data.source.parts: )?{message}") as caught:
        prepared(Mixture({folders[0].name: 1, "part": 1}), root, OfParts())
    assert len(str(caught.value).splitlines()) == 1


def test_train_py_trains_on_a_mixture_as_first_typed(folders: list[Path], tmp_path: Path, tiny: list[str]) -> None:
    parts = f"data.source.parts={{{folders[0].name}: 0.7, {folders[1].name}: 0.3}}"
    changes = [parts, f"data.root={folders[0].parent}", f"run_dir={tmp_path}/run", "max_steps=2"]
    settings = [each for each in tiny if not each.startswith("data")]
    assert train.main(compose([*settings, "data=mixture", *changes])) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"
