"""bench.py data, startup and end_to_end, each on little work."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import bench, bench_end_to_end, bench_startup, benchmarking
from scripts.benchmarking import Command, took


def measured(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    assert bench.main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    found: list[dict[str, Any]] = json.loads((tmp_path / "found.json").read_text())["results"]
    return found


def saying(text: str, folder: Path, until: str | None = None, then: str = "") -> Command:
    return Command([sys.executable, "-c", f"import time; print({text!r}); {then}"], folder, until)


def test_a_command_is_measured_to_its_end_or_to_the_line_that_ends_it(tmp_path: Path) -> None:
    assert took(saying("step 1", tmp_path, then="time.sleep(0.2)")).seconds > 0.2
    assert took(saying("step 1", tmp_path, until="step", then="time.sleep(60)")).seconds < 30


@pytest.mark.parametrize(("until", "then"), [(None, "raise SystemExit(3)"), ("another", "")])
def test_a_command_that_fails_or_lacks_the_line_is_shown(tmp_path: Path, until: str | None, then: str) -> None:
    with pytest.raises(RuntimeError, match="step 1"):
        took(saying("step 1", tmp_path, until, then))


@pytest.mark.slow
def test_both_ways_of_preparing_make_as_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "MOST_RETAKES", 1)
    sizes = ("--megabytes", "1", "--rounds", "1", "--batches", "2", "--folder", str(tmp_path))
    found = measured(tmp_path, "data", *sizes)
    assert [each["what"] for each in found] == ["training the tokenizer", *["preparation"] * 2, *["a batch"] * 2]
    assert found[1]["tokens"] == found[2]["tokens"] > 100_000


@pytest.mark.slow
def test_the_parts_of_the_first_command_make_its_whole(tmp_path: Path) -> None:
    small = ("max_steps=2", "data.source.megabytes=1", "data.tokenizer.vocab_size=300")
    whole, parts = measured(tmp_path, "end_to_end", "--rounds", "1", "--override", *small)
    seconds = {part: each[0] for part, each in parts["seconds"].items()}
    assert list(seconds) == list(bench_end_to_end.PARTS)
    assert sum(seconds.values()) == pytest.approx(whole["seconds"][0]["seconds"])
    assert all(seconds[part] > 0 for part in ("imports", "preparation", "steps", "evaluation", "sample"))


def test_startup_reports_every_command_and_compares_first_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(bench_startup.our_commands(tmp_path))
    monkeypatch.setattr(bench_startup, "data_path", lambda config: tmp_path)
    monkeypatch.setattr(bench_startup, "our_commands", lambda folder: {name: saying(name, folder) for name in names})
    assert [each["what"] for each in measured(tmp_path, "startup", "--rounds", "1")] == names
    printed = [line for line in capsys.readouterr().out.splitlines() if any(name in line for name in names)]
    assert ["1.00" in line for line in printed] == ["first step" in name for name in names]
