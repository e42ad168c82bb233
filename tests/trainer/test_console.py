"""What the console shows, on a narrow and a wide terminal and in a file."""

import io
import re
import sys
from functools import partial
from typing import Any

import pytest
from rich.console import Console as RichConsole

import trainer.console as module
from trainer.console import Console

ROWS = [
    {"step": 0, "tokens": 0, "seconds": 0.0, "train/loss": 10.9012, "val/loss": 10.8512},
    {"step": 99_990, "tokens": 10**9, "seconds": 800.0, "train/loss": 3.1234},
    {"step": 100_000, "tokens": 2 * 10**9, "seconds": 1610.0, "train/loss": 3.1233, "val/loss": 3.2345},
]


def shown(monkeypatch: pytest.MonkeyPatch, max_steps: int = 100_000, **console: Any) -> list[str]:
    """The lines that are written, without colours; those that a terminal overwrites included."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(module, "RichConsole", partial(RichConsole, **console))
    sink = Console(max_steps=max_steps, first_step=0)
    for row in ROWS:
        sink.write(row)
    sink.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    return [line.rstrip() for line in re.split(r"[\n\r]", text) if line.strip()]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_shows_every_number_in_one_line(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = shown(monkeypatch, width=width, force_terminal=True)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert re.search(r"100000/100000 .*train/loss 3\.1233  val/loss 3\.2345  1\.23M tokens/s +ETA 0:00:00", lines[-1])
    assert ("━" in lines[-1]) == (width >= 100)
    kept = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in kept] == ["0/100000", "100000/100000"]  # those with val/loss


def test_a_file_has_a_line_for_every_row_whatever_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = shown(monkeypatch, width=40)
    assert first == "step 0/100000       train/loss 10.9012  val/loss 10.8512"
    assert second.startswith("step 99990/100000   train/loss 3.1234  1.25M tokens/s  ETA 0:00:")
    assert third.startswith("step 100000/100000  train/loss 3.1233  val/loss 3.2345  1.23M tokens/s  ETA 0:00:00")


def test_the_remaining_time_has_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    sink = Console(max_steps=1010, first_step=10)
    now[0] = 110.0
    sink.write({"step": 11, "tokens": 100, "seconds": 10.0, "train/loss": 5.0})
    sink.close()
    assert written.getvalue() == "step 11/1010    train/loss 5.0000  ETA 2:46:30\n"


@pytest.mark.parametrize(
    ("rate", "words"), [(0.4, "0"), (15_600, "15,600"), (99_999, "99,999"), (123_456, "123k"), (1.5e6, "1.50M")]
)
def test_a_rate_has_six_characters_at_most(rate: float, words: str) -> None:
    assert module._rate(rate) == words
