"""Exports a trained GPT-2: python scripts/export.py run=runs/<name>[@400] to=hf out=<new folder>.

Rows that only pad the vocabulary are left out. What the other program cannot express is refused by name.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from assembly.trained import RUN, find_run, read_trained
from configs import answer, identity
from configs.arguments import described, parse, setting
from files.paths import expanded
from interchange import LAYOUTS, Layout, Trained, layout_named
from interchange.card import card
from launch.run_files import read_environment


@dataclass
class Settings:
    """The settings on the command line."""

    run: str = setting(RUN)
    to: str = setting("hf: a folder for transformers; nanogpt: its ckpt.pt", choices=tuple(LAYOUTS))
    out: str = setting("the folder to make, complete or not at all; with a record of the training")


def main(arguments: list[str]) -> int:
    """Exports, and prints what was written; returns the exit status, 2 for bad input."""
    return answer(arguments, f"{__doc__}\n{described(Settings)}", _main)


def export(run: str, layout: Layout, out: Path) -> Trained:
    """Writes the model of RUN, or RUN@STEP, into the new folder out; returns what was written.

    Raises: ValueError: if the run cannot be read, or its model cannot be expressed.
    """
    place = find_run(run)
    node = place.config.get("model")
    settings: Mapping[str, Any] = node if isinstance(node, dict) else {}
    layout.check_settings(str(settings.get("_target_")), settings)
    found = read_trained(place)
    result = {key: found.state.get(key) for key in ("step", "tokens", "seconds", "flops")}
    losses = found.state.get("losses")
    result |= losses if isinstance(losses, dict) else {}
    record = _record(place.folder, place.config, result)
    text = card(place.folder.resolve().name, layout.usage, record, identity(place.config))
    trained = Trained(found.model, found.settings, found.tokenizer, text, result)
    layout.export(trained, out)
    return trained


def _record(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the model card's table."""
    environment = read_environment(folder)
    git, origin = environment.get("git") or {}, environment.get("start_from")
    began = None
    if isinstance(origin, dict) and Path(str(origin.get("run"))) != Path():
        began = f"{origin.get('run')}, step {origin.get('step')}"
    elif isinstance(origin, dict) and not origin.get("exact"):  # ".": the run itself, with another learning rate so far
        changed = "; ".join(map(str, origin.get("changed") or []))
        began = f"step {origin.get('step')} of this run with other settings ({changed})"
    return {
        "steps": result.get("step"),
        "tokens": result.get("tokens"),
        "val/loss (nats per token)": result.get("val/loss"),
        "train/loss (nats per token)": result.get("train/loss"),
        "FLOPs": result.get("flops"),
        "seconds of training": result.get("seconds"),
        "began with": began,
        "data (checksum of training, validation)": ", ".join((environment.get("data") or {}).values()) or None,
        "seed": str(config.get("seed")),
        "device": environment.get("device"),
        "precision": environment.get("precision"),
        "commit of nanodescent": git.get("commit"),
    }


def _main(arguments: list[str]) -> int:
    given = parse(Settings, arguments)
    layout, out = layout_named(given.to, "to"), expanded(given.out, "out")
    trained = export(given.run, layout, out)
    print(f"{out}: {layout.what}, step {trained.result['step']}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
