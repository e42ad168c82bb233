"""Golden files: what every optimizer option does in ten steps, and what every arm of every claim is configured as.

python tests/golden/record.py losses | configs     writes tests/golden/losses/<option>.txt or configs/<claim>.json anew

A change that should not alter numerics leaves them alone; one that should records them anew, and says why.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

STEPS = 10
SETTINGS = [
    "data=synthetic",
    "model=pico",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    f"max_steps={STEPS}",
    "global_batch=4",
    "micro_batch=4",
    "eval_sequences=4",
    "eval_every=10",
    "save_every=10",
    "log_every=1",
    "sample_tokens=0",
    "schedule.warmup_steps=2",
    "precision=fp32",
    "device=cpu",
]
INTERVALS = ("every", "precondition_frequency", "update_interval", "svd_factor", "kappa", "rank_interval")


def options() -> list[str]:
    """The optimizers that configs/optim offers."""
    return sorted(path.stem for path in (HERE.parents[1] / "configs" / "optim").glob("*.yaml"))


def losses(option: str, folder: Path) -> list[float]:
    """train/loss of ten steps of an optimizer, and val/loss after them, nats per token."""
    import train
    from configs import compose, flat

    chosen = [*SETTINGS, f"data.root={folder / 'prepared'}", f"run_dir={folder / option}", f"optim={option}"]
    intervals = [f"{key}=3" for key in flat(compose(chosen)) if key.rpartition(".")[2] in INTERVALS]
    assert train.main(compose([*chosen, *intervals])) == 0
    rows = [json.loads(line) for line in (folder / option / "metrics.jsonl").read_text().splitlines()]
    return [*(row["train/loss"] for row in rows if "train/loss" in row), rows[-1]["val/loss"]]


def configs_of(claim: str) -> dict[str, Any]:
    """By scale, where the runs lie and which are planned; by arm, what differs from `train.py` without arguments."""
    from configs import compose, flat
    from reproduce import claims, protocols
    from reproduce.atlas import Atlas

    usual = flat(compose([]))
    found: dict[str, Any] = {}
    for scale in claims.scales(claim):
        loaded = claims.load(claim, scale)
        several = protocols.of(loaded)
        runs = protocols.expected(several)
        arms = {arm.name: flat(compose([*loaded.common, *arm.overrides])) for arm in loaded.arms}
        found[scale] = {
            "atlases": sorted({Atlas(Path(), each.claim).folder.name for each in several}),
            "arms": {name: _difference(settings, usual) for name, settings in arms.items()},
            "runs": [f"{run.name} {run.config_hash}" for run in runs],
        }
    return found


def _difference(settings: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in settings.items() if key not in usual or usual[key] != value}
    return {key: value for key, value in changed.items() if key != "run_dir"}


def main(what: str) -> None:
    """Writes the golden files of one sort."""
    folder = HERE / what
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    if what == "losses":
        import torch

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as scratch:
            for option in options():
                lines = [f"{loss!r}\n" for loss in losses(option, Path(scratch))]
                (folder / f"{option}.txt").write_text("".join(lines))
        return
    from reproduce import claims

    for name in claims.names():
        (folder / f"{name}.json").write_text(json.dumps(configs_of(name), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
