"""Data sets that `datasets` writes and reads; OpenWebText's own rules are in test_sources.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from corpora import prepared
from datasets import Dataset, DatasetDict, NamedSplit

from data import DataError, HuggingFace, TokenDataset
from data.identity import difference
from data.source import Source
from scripts import prepare_data

ROWS: list[str | None] = [f"row {i} ünï\n" if i % 7 else None for i in range(300)]


def texts(source: Source) -> list[str | None]:
    return [text for unit in source.units() for text in source.documents(unit)]


def table(rows: Sequence[Any] = ROWS, column: str = "text") -> Dataset:
    return Dataset.from_dict({"id": list(range(len(rows))), column: list(rows)})


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")


@pytest.fixture(params=["parquet", "json", "csv"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of three files for training and one of another split."""
    where = tmp_path / "set"
    where.mkdir()
    for i in range(3):
        piece = table(ROWS[100 * i : 100 * (i + 1)])
        getattr(piece, f"to_{request.param}")(where / f"train-{i}.{request.param}")
    getattr(table(["other"]), f"to_{request.param}")(where / f"test-0.{request.param}")
    return where


def test_a_folder_is_read_in_order_whatever_its_format(folder: Path) -> None:
    source = HuggingFace(str(folder))
    assert texts(source) == ROWS
    assert [Path(file).name[:7] for file in source.files()] == ["train-0", "train-1", "train-2"]
    assert texts(HuggingFace(str(folder), split="test")) == ["other"]


@pytest.mark.parametrize("limit", [2, 100, 101, 299])
def test_a_limit_keeps_the_first_rows(folder: Path, limit: int) -> None:
    assert texts(HuggingFace(str(folder), limit_documents=limit)) == ROWS[:limit]


def test_what_the_data_set_does_not_have_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.source.split=dev is no split of .*; it has (train, test|test, train)"):
        texts(HuggingFace(str(folder), split="dev"))
    with pytest.raises(DataError, match=r"(has )?no column 'content' \(data.source.text\), only \['id', 'text'\]"):
        texts(HuggingFace(str(folder), text="content"))
    with pytest.raises(DataError, match=r"'id' is a (n )?int.*, expected a string"):
        texts(HuggingFace(str(folder), text="id"))


def test_a_file_that_changes_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = prepared(HuggingFace(str(folder)), tmp_path / "out")
    assert difference(HuggingFace(str(folder)), path) is None
    file = next(folder.glob("train-1.*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert difference(HuggingFace(str(folder)), path) is not None


@pytest.mark.parametrize("shards", [1, 3])
def test_what_save_to_disk_wrote_is_read_by_rows(tmp_path: Path, shards: int) -> None:
    table().save_to_disk(str(tmp_path / "one"), num_shards=shards)
    both = DatasetDict({"train": table(), "test": table(["other"])})
    both.save_to_disk(str(tmp_path / "both"), num_shards={"train": shards, "test": 1})
    for source in (HuggingFace(str(tmp_path / "one")), HuggingFace(str(tmp_path / "both"))):
        assert texts(source) == ROWS
        assert len(source.files()) == shards
    assert texts(HuggingFace(str(tmp_path / "both"), split="test")) == ["other"]
    assert texts(HuggingFace(str(tmp_path / "one"), limit_documents=33)) == ROWS[:33]
    with pytest.raises(DataError, match=r"data.source.split=dev is no split of .*both; it has train, test"):
        texts(HuggingFace(str(tmp_path / "both"), split="dev"))


@pytest.mark.parametrize(
    ("saved", "accepted", "listed"),
    [
        (None, ["train"], "train"),
        ("test", ["test"], "test"),
        ("test[:9%]", ["test", "test[:9%]"], r"test\[:9%\], test"),
    ],
)
def test_the_split_of_one_saved_data_set_is_the_one_in_its_state(
    tmp_path: Path, saved: str | None, accepted: list[str], listed: str
) -> None:
    split = None if saved is None else NamedSplit(saved)
    Dataset.from_dict({"text": ROWS}, split=split).save_to_disk(str(tmp_path / "one"))
    for name in accepted:
        assert texts(HuggingFace(str(tmp_path / "one"), split=name)) == ROWS
    for name in {"train", "test", "bogus"} - set(accepted):
        with pytest.raises(DataError, match=rf"split={name} is no split of .*one; it has {listed}$"):
            texts(HuggingFace(str(tmp_path / "one"), split=name))


@pytest.mark.parametrize("saved", [table(), DatasetDict({"train": table()})], ids=["one", "splits"])
def test_a_saved_data_set_has_no_configurations(tmp_path: Path, saved: Dataset | DatasetDict) -> None:
    saved.save_to_disk(str(tmp_path / "set"))
    message = (
        "data.source.name=nosuch: .*set, which save_to_disk wrote, has no configurations: set data.source.name=null"
    )
    with pytest.raises(DataError, match=message):
        texts(HuggingFace(str(tmp_path / "set"), name="nosuch"))


def test_an_empty_saved_data_set_is_called_empty_and_does_not_hide_the_other_splits(tmp_path: Path) -> None:
    Dataset.from_dict({"text": []}).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match=r"one, which save_to_disk wrote, has no rows: name a data set that has text"):
        texts(HuggingFace(str(tmp_path / "one")))
    DatasetDict({"train": table(), "test": table([])}).save_to_disk(str(tmp_path / "both"))
    assert texts(HuggingFace(str(tmp_path / "both"))) == ROWS
    with pytest.raises(DataError, match=r"both/test, which save_to_disk wrote, has no rows"):
        texts(HuggingFace(str(tmp_path / "both"), split="test"))


def test_saved_rows_that_were_selected_are_those_that_are_read(tmp_path: Path) -> None:
    table().select(range(20, 10, -1)).save_to_disk(str(tmp_path / "some"))
    assert texts(HuggingFace(str(tmp_path / "some"))) == ROWS[20:10:-1]


def test_large_saved_sets_are_divided_into_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.rows.unit_bytes", lambda total: 500)
    table().save_to_disk(str(tmp_path / "set"))
    source = HuggingFace(str(tmp_path / "set"))
    assert len(source.units()) > 5
    assert texts(source) == ROWS
    assert sum(unit.n_documents or 0 for unit in source.units()) == 300


def test_a_saved_set_becomes_a_data_set(tmp_path: Path) -> None:
    table().save_to_disk(str(tmp_path / "set"))
    path = prepared(HuggingFace(str(tmp_path / "set"), expected_documents=300), tmp_path / "out")
    meta = TokenDataset.open(path, "train").meta
    assert sum(entry["n_documents"] for entry in meta["splits"].values()) == sum(row is not None for row in ROWS)
    assert meta["rows_without_text"] == sum(row is None for row in ROWS)


def test_another_number_of_rows_than_expected_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data=hf should have 301 documents, but .* holds (300|a number that is not)"):
        HuggingFace(str(folder), expected_documents=301).units()


def test_a_folder_without_data_and_a_damaged_set_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data.source.path=.*empty: `datasets` cannot read it \(") as caught:
        texts(HuggingFace(str(tmp_path / "empty")))
    assert len(str(caught.value).splitlines()) == 1
    table().save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set/state.json").write_text("{")
    with pytest.raises(DataError, match=r"set is no data set of save_to_disk \(") as caught:
        texts(HuggingFace(str(tmp_path / "set")))
    assert len(str(caught.value).splitlines()) == 1


def test_no_code_of_a_folder_is_executed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\n")
    table().to_json(folder / "train.json")
    with pytest.raises(DataError, match=r"cannot read it \(RuntimeError: Dataset scripts are no longer supported"):
        texts(HuggingFace(str(folder)))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit_documents": 1}, "limit_documents=1 must be >= 2, or null for all"),
        ({"expected_documents": "all"}, "expected_documents=all must be a whole number, or null"),
        ({"revisions": []}, "revisions is empty: name at least one, such as main"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"data.source.{message}"):
        HuggingFace("a/b", **change)


def test_the_command_prepares_a_folder_as_first_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(column="content").save_to_disk(str(tmp_path / "my_set"))
    arguments = ["data=hf", f"data.source.path={tmp_path}/my_set", "data.source.text=content", "data/tokenizer=bytes"]
    assert prepare_data.main([*arguments, f"data.root={tmp_path}/out"]) == 0
    assert "257 token ids" in capsys.readouterr().out
