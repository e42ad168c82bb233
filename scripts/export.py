"""Exports a trained GPT-2: python scripts/export.py run=runs/<name> to=hf out=<new folder> [step=400].

run   the run directory; nothing of it is changed or run
to    hf: a folder for transformers, safetensors with configuration and tokenizer; nanogpt: its ckpt.pt
out   the folder to make, complete or not at all; also gets a model card with the record of the training
step  of the checkpoint; without it, the newest

Rows that only pad the vocabulary are left out. What the other program cannot express is refused by name.
"""

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from assembly.trained import checkpoints_of, model_node, read_model
from configs import ConfigError, answer, identity, read_config
from data import read_tokenizer
from files.errors import shown
from files.paths import expanded
from interchange import LAYOUTS, Layout, Trained, layout_named
from interchange.card import card
from launch.run_files import CONFIG, is_run, read_environment
from trainer.checkpoint import CheckpointError, Saved
from trainer.run_directory import TOKENIZER

KEYS, NEEDED = ("run", "to", "out", "step"), ("run", "to", "out")


def main(arguments: list[str]) -> int:
    """Exports, and prints what was written; returns the exit status, 2 for bad input."""
    return answer(arguments, __doc__, _main)


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Returns the settings, as typed. Raises: ConfigError: if a key is unknown or missing."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, is_pair, value = argument.partition("=")
        if not is_pair or key not in KEYS:
            near = get_close_matches(key, KEYS, 1)
            hint = f"the nearest valid one is {near[0]!r}" if near else f"there are {', '.join(KEYS)}"
            what = f"unknown key {shown(key)!r}" if is_pair else f"{shown(argument)}: write key=value"
            raise ConfigError(f"{what}; {hint}")
        given[key] = value
    for key in NEEDED:
        if key not in given:
            listed = f" ({', '.join(LAYOUTS)})" if key == "to" else ""
            raise ConfigError(f"{key}=... is missing{listed}; --help lists the keys")
    if "step" in given and not given["step"].isdecimal():
        raise ConfigError(f"step={shown(given['step'])} must be a whole number >= 0")
    return given


def export(folder: Path, layout: Layout, out: Path, step: int | None = None) -> Trained:
    """Writes a run's model into the new folder out; returns what was written.

    step: of the checkpoint; None: the newest. Raises: ValueError: if the run cannot be read, or its model cannot be
    expressed.
    """
    if not is_run(folder):
        raise ConfigError(f"run={folder} is no run directory: it has no {CONFIG}")
    config = read_config(folder / CONFIG)
    node = config.get("model")
    settings: Mapping[str, Any] = node if isinstance(node, dict) else {}
    layout.check_settings(str(settings.get("_target_")), settings)
    saved = _checkpoint(folder, step)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    settings = model_node(config, None, tokenizer, folder / CONFIG)
    model = read_model(settings, saved, folder / CONFIG)
    result = {key: saved.state.get(key) for key in ("step", "tokens", "seconds", "flops")}
    losses = saved.state.get("losses")
    result |= losses if isinstance(losses, dict) else {}
    text = card(folder.resolve().name, layout.usage, _record(folder, config, result), identity(config))
    trained = Trained(model, settings, tokenizer, text, result)
    layout.export(trained, out)
    return trained


def _checkpoint(folder: Path, step: int | None) -> Saved:
    store, paths = checkpoints_of(folder)
    if step is not None and step not in paths:
        raise CheckpointError(f"run={folder} has no checkpoint of step {step}; there are {', '.join(map(str, paths))}")
    saved = store.newest() if step is None else store.read(paths[step])
    if saved is None:
        raise CheckpointError(f"{store.folder} has no checkpoint any more")
    return saved


def _record(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the model card's table."""
    environment = read_environment(folder)
    git, origin = environment.get("git") or {}, environment.get("start_from")
    began = {"began with": f"{origin.get('run')}, step {origin.get('step')}"} if isinstance(origin, dict) else {}
    return {
        "steps": result.get("step"),
        "tokens": result.get("tokens"),
        "val/loss (nats per token)": result.get("val/loss"),
        "train/loss (nats per token)": result.get("train/loss"),
        "FLOPs": result.get("flops"),
        "seconds of training": result.get("seconds"),
        **began,
        "data (checksum of training, validation)": ", ".join((environment.get("data") or {}).values()) or None,
        "seed": str(config.get("seed")),
        "device": environment.get("device"),
        "precision": environment.get("precision"),
        "commit of nanodescent": git.get("commit"),
    }


def _main(arguments: list[str]) -> int:
    given = parse(arguments)
    layout, out = layout_named(given["to"], "to"), expanded(given["out"], "out")
    step = int(given["step"]) if "step" in given else None
    trained = export(expanded(given["run"], "run"), layout, out, step)
    print(f"{out}: {layout.what}, step {trained.result['step']}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
