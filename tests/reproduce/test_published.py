"""Runs that are published with the reports: they stand in for runs of one's own, and for nothing else."""

import json
import lzma
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from files.errors import ReadingError
from files.writing import write_text
from reproduce import published, reproduction
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.published import PublishedError, publish, take

pytestmark = pytest.mark.usefixtures("quick", "without_report")
Write = Callable[..., Path]


@pytest.fixture
def claim(write_claim: Write, monkeypatch: pytest.MonkeyPatch) -> Claim:
    monkeypatch.setattr(published, "checksums_here", lambda claim: {"train": "t", "val": "v"})
    return load("twice", "nano", folder=write_claim())


def reproduce(claim: Claim, root: Path, simulation: Any) -> Any:
    return reproduction.reproduce(claim, root / "claim", "again", run=simulation, time_arms=lambda claim: {})


@pytest.fixture
def archive(claim: Claim, simulate: Any, tmp_path: Path) -> Path:
    """What is published of the claim's runs; the atlas is beside it."""
    reproduce(claim, tmp_path / "theirs", simulate(2.0))
    for folder in (tmp_path / "theirs" / "atlas").iterdir():
        publish(folder, tmp_path / "published")
    return tmp_path / "published"


def test_published_runs_give_the_results_that_their_own_atlas_gives(
    claim: Claim, archive: Path, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    n_put = take(claim, tmp_path / "mine" / "atlas", archive)
    mine = reproduce(claim, tmp_path / "mine", simulation)
    assert simulation.started == [] and n_put == len(mine.runs) > 50
    assert replace(mine, notes=[]) == replace(reproduce(claim, tmp_path / "theirs", simulation), notes=[])
    assert sorted(path.name for path in archive.glob("*/*")) == ["a.jsonl.xz", "b.jsonl.xz"]


def test_an_own_run_is_kept_and_only_the_others_are_taken(
    claim: Claim, archive: Path, simulate: Any, tmp_path: Path
) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    one = next(theirs.glob("a-*"))
    own = tmp_path / "mine" / "atlas" / theirs.name / f"mine-{one.name.rpartition('-')[2]}"
    own.mkdir(parents=True)
    n_runs = sum(1 for _ in theirs.iterdir())
    assert take(claim, tmp_path / "mine" / "atlas", archive) == n_runs - 1
    assert list(own.iterdir()) == [] and not (own.parent / one.name).exists()
    assert take(claim, tmp_path / "mine" / "atlas", archive) == 0


def test_a_run_is_taken_whole_or_not_at_all(
    claim: Claim, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, content: str) -> None:
        if path.name == "metrics.jsonl":
            raise OSError("No space left on device")
        write_text(path, content)

    monkeypatch.setattr(published, "write_text", fails)
    with pytest.raises(OSError, match="No space"):
        take(claim, tmp_path / "mine", archive)
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    monkeypatch.setattr(published, "checksums_here", lambda claim: {"train": "t", "val": "v"})
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    assert take(claim, tmp_path / "mine", archive) == sum(1 for _ in theirs.iterdir())


def test_what_was_published_stays_when_an_atlas_without_it_is_published(archive: Path, tmp_path: Path) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    before = {path.name: path.read_bytes() for path in archive.glob("*/*")}
    (tmp_path / theirs.name).mkdir()
    assert publish(tmp_path / theirs.name, archive) == sum(1 for _ in theirs.iterdir())
    assert {path.name: path.read_bytes() for path in archive.glob("*/*")} == before


def test_only_an_arm_with_new_runs_is_written(archive: Path, tmp_path: Path) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    places = [archive / theirs.name / f"{arm}.jsonl.xz" for arm in "ab"]
    before = [place.stat().st_mtime_ns for place in places]
    (run, *_) = theirs.glob("b-*")
    shutil.copytree(run, run.with_name("b-160-s9-0123456789abcdef"))
    n_runs = publish(theirs, archive)
    after = [place.stat().st_mtime_ns for place in places]
    assert after[0] == before[0] and after[1] != before[1]
    assert publish(theirs, archive) == n_runs and [place.stat().st_mtime_ns for place in places] == after


def test_an_arm_that_has_another_name_by_now_is_published_once(archive: Path, tmp_path: Path) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    for place in theirs.glob("a-*"):
        place.rename(theirs / f"c{place.name[1:]}")
    assert publish(theirs, archive) == sum(1 for _ in theirs.iterdir())
    assert sorted(path.name for path in archive.glob("*/*")) == ["b.jsonl.xz", "c.jsonl.xz"]


def test_runs_that_have_not_ended_are_not_published(archive: Path, tmp_path: Path) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    next(theirs.glob("a-*/result.json")).unlink()
    assert publish(theirs, tmp_path / "again") == sum(1 for _ in theirs.iterdir()) - 1


def test_no_path_of_the_machine_is_published(archive: Path, tmp_path: Path) -> None:
    (theirs,) = (tmp_path / "theirs" / "atlas").iterdir()
    place = next(theirs.glob("a-*"))
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["run_dir"], config["data"]["root"] = str(place), str(tmp_path / "prepared")
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    publish(theirs, tmp_path / "again")
    texts = [lzma.decompress(path.read_bytes()).decode() for path in (tmp_path / "again").glob("*/*")]
    assert all(str(tmp_path) not in text for text in texts) and place.name in "".join(texts)


def test_runs_of_other_data_are_refused(
    claim: Claim, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "checksums_here", lambda claim: {"train": "t", "val": "other"})
    with pytest.raises(PublishedError, match="other data: val has checksum v in .*, here other; .* leave out"):
        take(claim, tmp_path / "mine", archive)
    assert not (tmp_path / "mine").exists()


def test_other_data_are_not_published_beside_what_is(
    claim: Claim, archive: Path, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    simulation.checksums = {"a": "w", "b": "w"}
    longer = replace(claim, fields=replace(claim.fields, seeds=[4, 5, 6]))
    reproduce(longer, tmp_path / "other", simulation)
    (folder,) = (tmp_path / "other" / "atlas").iterdir()
    before = {path.name: path.read_bytes() for path in archive.glob("*/*")}
    with pytest.raises(PublishedError, match="would hold runs of different data"):
        publish(folder, archive)
    assert {path.name: path.read_bytes() for path in archive.glob("*/*")} == before


def test_a_claim_of_which_nothing_is_published_says_what_is(claim: Claim, archive: Path, tmp_path: Path) -> None:
    (folder,) = archive.iterdir()
    with pytest.raises(PublishedError, match="no runs of nano-.* are published .there are: none.; leave out"):
        take(claim, tmp_path / "mine", tmp_path / "nowhere")
    folder.rename(archive / "nano-else")
    with pytest.raises(PublishedError, match="there are: nano-else"):
        take(claim, tmp_path / "mine", archive)


@pytest.mark.parametrize(
    "changes", [{"name": "../../outside-1"}, {"name": 3}, {"ended": "x"}, {"files": {}}, {"files": None}]
)
def test_a_line_that_is_no_run_is_refused(claim: Claim, archive: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = next(archive.glob("*/a.jsonl.xz"))
    first = json.loads(lzma.decompress(path.read_bytes()).splitlines()[0])
    path.write_bytes(lzma.compress(json.dumps({**first, **changes}).encode()))
    with pytest.raises(ReadingError, match=r"a\.jsonl\.xz, line 1: a run must have"):
        take(claim, tmp_path / "mine", archive)
    assert not (tmp_path / "mine").exists()


def test_a_damaged_archive_is_refused(claim: Claim, archive: Path, tmp_path: Path) -> None:
    path = next(archive.glob("*/a.jsonl.xz"))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ReadingError, match="is damaged"):
            take(claim, tmp_path / "mine", archive)
