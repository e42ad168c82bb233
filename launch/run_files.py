"""Reads the files of a run directory and checks them: a damaged one is refused with one clear line.

A loss that is not finite is None; a run whose final loss is not finite has diverged, whatever its status says.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files.errors import ReadingError, shown
from files.reading import MIB, number, read_json, read_lines

STATUSES = ("finished", "diverged", "stopped")
CONFIG, ENVIRONMENT, METRICS, RESULT, LOCK = "config.yaml", "env.json", "metrics.jsonl", "result.json", "lock"
CHECKPOINTS, HEARTBEAT = "checkpoints", "heartbeat"
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What scripts/evaluate.py found of one of a run's checkpoints."""

    what: str  # "text", "hellaswag" or "lm-eval"
    on: str  # the data
    step: int  # of the checkpoint
    settings: Mapping[str, Any]  # with which the numbers compare: texts, numbers, null
    numbers: Mapping[str, float | None]


def is_run(folder: Path) -> bool:
    """Whether the folder is a run directory."""
    return (folder / CONFIG).is_file()


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Returns the content of result.json, None if there is none; status, step, losses and other numbers are checked.

    Raises: ReadingError: if the file is damaged.
    """
    path = run_dir / RESULT
    found = read_json(path, most_bytes=MIB)
    if found is None:
        return None
    if found.get("status") not in STATUSES:
        raise ReadingError(f"{path}: status={shown(found.get('status'))} must be one of {', '.join(STATUSES)}")
    for key in ("val/loss", "val/bits_per_byte", "train/loss", "tokens", "seconds", "flops", "tokens_per_second"):
        found[key] = number_in(found, key, path)
    found["step"] = None if found.get("step") is None else _step(found, path)
    if found["status"] == "finished" and found["val/loss"] is None:
        found["status"] = "diverged"
    return found


def read_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of metrics.jsonl, each with a valid step; nothing if there is no such file.

    Raises: ReadingError: if a row is damaged.
    """
    path = run_dir / METRICS
    for row in read_lines(path):
        row["step"] = _step(row, path)
        yield row


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Returns the content of env.json, empty if there is none; data maps splits to checksums, git names the commit.

    Raises: ReadingError: if the file is damaged.
    """
    path = run_dir / ENVIRONMENT
    found = read_json(path, most_bytes=MIB) or {}
    for key in ("data", "git"):
        content = found.get(key)
        if content is not None and not isinstance(content, dict):
            raise ReadingError(f"{path}: {key}={shown(content)} must be an object")
    for split, checksum in (found.get("data") or {}).items():
        if not isinstance(checksum, str):
            raise ReadingError(f"{path}: the checksum of {shown(split)} must be a text, it is {shown(checksum)}")
    commit = (found.get("git") or {}).get("commit")
    if commit is not None and not isinstance(commit, str):
        raise ReadingError(f"{path}: git.commit={shown(commit)} must be a text")
    return found


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """Returns the content of evaluation.json, empty if there is none. Raises: ReadingError: if the file is damaged."""
    path = run_dir / EVALUATION
    found = (read_json(path) or {"evaluations": []}).get("evaluations")
    if not isinstance(found, list):
        raise ReadingError(f"{path}: evaluations={shown(found)} must be a list")
    kinds = {"what": str, "on": str, "step": int, "settings": dict, "numbers": dict}
    for each in found:
        if not isinstance(each, dict) or {key: type(value) for key, value in each.items()} != kinds:
            raise ReadingError(f"{path}: {shown(each)} must be an object with {', '.join(kinds)}")
        for name in each["numbers"]:
            each["numbers"][name] = number_in(each["numbers"], name, path)
    return [Evaluation(**each) for each in found]


def time_of(path: Path) -> float | None:
    """When a file was last written, in seconds since the epoch; None if it cannot be told."""
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def number_in(row: Mapping[str, Any], key: str, path: Path) -> float | None:
    """Returns the number under key, None if there is none or it is not finite.

    Raises: ReadingError: if it is not a number.
    """
    value = row.get(key)
    found = number(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ReadingError(f"{path}: {key}={shown(value)} must be a number")
    return found


def _step(row: Mapping[str, Any], path: Path) -> int:
    found = number_in(row, "step", path)
    if found is None or found < 0 or found != int(found):
        raise ReadingError(f"{path}: step={shown(row.get('step'))} must be a whole number >= 0")
    return int(found)
