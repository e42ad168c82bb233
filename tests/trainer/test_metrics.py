import json
import math
import resource
import signal
from pathlib import Path

import pytest

from files.errors import ReadingError
from trainer.metrics import JsonLines, read_rows


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "seconds": 0.5 * step, **values}


def write(path: Path, first: int, last: int) -> None:
    sink = JsonLines(path, first)
    for step in range(first, last):
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    sink.close()


def test_a_continued_run_leaves_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "uninterrupted.jsonl", 0, 9)
    write(tmp_path / "interrupted.jsonl", 0, 7)
    write(tmp_path / "interrupted.jsonl", 4, 9)
    assert (tmp_path / "interrupted.jsonl").read_text() == (tmp_path / "uninterrupted.jsonl").read_text()


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 3)
    for end in ('{"step": 3, "tok', '{"step": 3}'):
        path.write_text(path.read_text() + end)
        assert [found["step"] for found in read_rows(path)] == [0, 1, 2]
        write(path, 3, 3)
        assert len(path.read_text().splitlines()) == 3


def test_rows_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    sink.close()


def test_a_value_that_is_no_number_is_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0, **{"train/loss": math.nan, "grad_norm": math.inf}))
    sink.close()
    found = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["train/loss"] is None and found["grad_norm"] is None


def test_rows_that_a_full_disk_does_not_take_are_written_once_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "uninterrupted.jsonl", 0, 9)
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    for step in range(9):
        if step == 4:  # in the middle of a line
            limit = (tmp_path / "metrics.jsonl").stat().st_size + 20
            before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        if step == 7:
            assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "uninterrupted.jsonl").read_text()
    (record,) = caplog.records
    assert "metrics.jsonl cannot be written: " in record.getMessage()


def test_rows_that_wait_till_the_end_go_where_room_was_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full as long as the reserved room is taken."""
    write(tmp_path / "uninterrupted.jsonl", 0, 9)
    sink, written = JsonLines(tmp_path / "metrics.jsonl", 0), JsonLines._written
    reserved = tmp_path / ".metrics.jsonl.reserved"
    assert reserved.stat().st_size > 100_000

    def full(sink: JsonLines) -> OSError | None:
        return OSError(28, "No space left on device") if reserved.exists() else written(sink)

    monkeypatch.setattr(JsonLines, "_written", full)
    for step in range(9):
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    assert read_rows(tmp_path / "metrics.jsonl") == []
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "uninterrupted.jsonl").read_text()


def test_rows_that_are_lost_at_the_end_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0))
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(JsonLines, "_written", lambda self: full)
    for step in (1, 2):
        sink.write(row(step))
    sink.close()
    assert "metrics.jsonl lacks its last 2 rows: [Errno 28] No space left on device" in caplog.text
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_continued_run_needs_no_room_for_the_rows_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "metrics.jsonl", 0, 9)
    monkeypatch.setattr("trainer.metrics.write_text", lambda path, content: pytest.fail("wrote"))
    JsonLines(tmp_path / "metrics.jsonl", 4).close()
    assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [b"5", b"[1]", b"null", b'{"step": "3"}', b'{"step": 3}', b"\xff\xfe", b"{", b"[" * 10**5, b'{"step": true}', b""],
)
def test_a_line_that_is_no_row_is_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 4)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    assert [found["step"] for found in read_rows(path)] == [0, 1, 2, 3]
    JsonLines(path, 4).close()
    assert "has 1 lines that are no rows of metrics" in caplog.text
    assert path.read_bytes().splitlines() == lines


def test_numbers_that_json_lacks_are_read_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "tokens": 0, "seconds": 0.0, "val/loss": NaN, "lr": -Infinity}\n')
    (found,) = read_rows(path)
    assert found["val/loss"] is None and found["lr"] is None


def test_rows_that_lie_elsewhere_are_neither_read_nor_truncated(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.write_text("what nobody may lose\n")
    (run / "metrics.jsonl").symlink_to(elsewhere)
    with pytest.raises(ReadingError, match="metrics.jsonl is a symbolic link"):
        JsonLines(run / "metrics.jsonl", 0)
    assert elsewhere.read_text() == "what nobody may lose\n"
