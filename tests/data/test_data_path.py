"""What data_path does about files that have changed since."""

from pathlib import Path

import pytest

import assembly.data
from assembly.data import data_path
from configs import compose, plug_in
from data import prepare as prepare_data


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    names = [f"data.source.pattern={tmp_path}/*.txt", f"data.root={tmp_path}/out"]
    return ["data=files", "data/tokenizer=bytes", *names]


def prepare(overrides: list[str]) -> Path:
    data = compose(overrides).data
    settings = data.split
    source, tokenizer = plug_in(data.source), plug_in(data.tokenizer)
    return prepare_data(source, tokenizer, Path(data.root), workers=1, console=False, **settings)


def test_training_names_the_prepared_data_set_and_is_silent(
    overrides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = prepare(overrides)
    assert data_path(compose(overrides)) == path
    assert caplog.messages == []


def test_training_on_files_that_have_changed_says_so_once(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepare(overrides)
    (tmp_path / "more.txt").write_text("more")
    assert data_path(compose(overrides), prepared=False) == path
    monkeypatch.setenv("RANK", "1")
    assert data_path(compose(overrides)) == path
    assert caplog.messages == []
    monkeypatch.setenv("RANK", "0")
    assert data_path(compose(overrides)) == path
    (message,) = caplog.messages
    assert "have changed since" in message and "20 files then, 21 now" in message


def test_a_data_set_that_is_not_prepared_is_left_to_who_opens_it(
    overrides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert not data_path(compose(overrides)).exists()
    assert not caplog.messages


def test_training_needs_no_source_files(overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = prepare(overrides)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    assert data_path(compose(overrides)) == path
    assert caplog.messages == []


def test_an_embedded_source_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["data=synthetic", f"data.root={tmp_path}"])
    path = data_path(config)
    assert (path / "dataset.json").is_file()
    monkeypatch.setattr(assembly.data, "prepare", lambda *arguments, **settings: pytest.fail("prepared again"))
    assert data_path(config) == path
