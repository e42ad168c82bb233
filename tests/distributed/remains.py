"""What a run leaves behind, and what two runs must have in common."""

import json
from pathlib import Path
from typing import Any

from trainer.metrics import read_rows


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "metrics.jsonl")


def ends(folder: Path) -> tuple[Any, ...]:
    """What must agree, bit for bit, between a run and its interrupted twin."""
    keys = ("status", "step", "tokens", "flops", "train/loss", "val/loss", "params_sha256")
    of_this_machine = ("seconds", "memory/peak_bytes", "optim/seconds_per_refresh")
    rows = [{k: v for k, v in row.items() if k not in of_this_machine} for row in metrics(folder)]
    rows = [{k: v for k, v in row.items() if not k.startswith("checkpoint/")} for row in rows]
    return tuple(result(folder)[key] for key in keys), rows
