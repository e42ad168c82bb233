"""A claim file to change, and a job runner that leaves the run directories of simulated training."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.jobs import Job, Outcome

Loss = Callable[[str, int, int], float | None]  # arm, steps, seed -> final val/loss; None: diverges
SOURCE = {"paper": "P", "url": "https://example.org", "sentence": "twice as fast", "setting": "s", "unverified": ["u"]}
SPEED_UP = {
    "title": "B needs half of A's steps",
    "kind": "speed_up",
    "source": SOURCE,
    "contrary": ["somebody found less"],
    "rule": "claimed 2",
    "overrides": [],
    "comparisons": [{"candidate": "b", "baseline": "a", "claimed": {"steps": 2.0, "flops": 2.0, "gap": 1.0}}],
    "protocols": ["paper", "tuned"],
    "fractions": {"paper": [0.5], "tuned": [0.5, 0.625, 0.75, 0.875, 1.0]},
    "halving": [{"fraction": 0.25, "keep": 2}, {"fraction": 0.5, "keep": 1}],
    "tuning_seed": 7,
    "seeds": [1, 2, 3],
    "timing_steps": 10,
    "evaluations": 4,
    "arms": {
        "a": {
            "label": "A",
            "role": "baseline",
            "overrides": ["optim=adamw"],
            "paper": ["optim.lr=5e-3"],
            "grid": [["optim.lr=1e-3"], ["optim.lr=2e-3"], ["optim.lr=4e-3"]],
        },
        "b": {
            "label": "B",
            "role": "candidate",
            "overrides": ["optim=lion"],
            "paper": ["optim.lr=5e-4"],
            "grid": [["optim.lr=1e-4"], ["optim.lr=2e-4"], ["optim.lr=4e-4"]],
        },
    },
    "scales": {"nano": {"budget": 160, "warmup_fraction": 0.1}, "small": {"budget": 1600, "warmup_steps": 100}},
}
SWEEP = {
    **{key: SPEED_UP[key] for key in ("title", "source", "contrary", "rule", "overrides", "tuning_seed", "seeds")},
    **{key: SPEED_UP[key] for key in ("evaluations", "arms", "scales")},
    "kind": "sweep",
    "axis": "learning rate",
    "chosen": "best",
    "expect": [{"quantity": "best_loss", "arm": "b", "against": "a", "claimed": 0.05, "no_effect": 0.15}],
}
MEMORY = {
    **{key: SPEED_UP[key] for key in ("title", "source", "contrary", "rule", "overrides")},
    "kind": "memory",
    "settings": {"sizes": ["nano"]},
    "arms": {"a": {"label": "A", "role": "baseline", "overrides": ["optim=adamw"]}},
    "scales": {"nano": {}},
}
BASES = {"speed_up": SPEED_UP, "sweep": SWEEP, "memory": MEMORY}


@pytest.fixture
def write_claim(tmp_path: Path) -> Callable[..., Path]:
    """Writes claims/<name>.yaml with some of its fields changed (None: without); the folder."""

    def write(name: str = "twice", base: str = "speed_up", **changes: Any) -> Path:
        folder = tmp_path / "claims"
        folder.mkdir(exist_ok=True)
        content = {**BASES[base], **changes}
        content = {key: value for key, value in content.items() if value is not None}
        (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
        return folder

    return write


class Simulation:
    """In place of run_jobs: skips what is done, and leaves run directories whose losses a formula gives.

    started: the names of the jobs that it ran. fail: names of jobs that crash. stop_after: raises KeyboardInterrupt
    once so many have run.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss, self.started = loss, list[str]()
        self.fail: set[str] = set()
        self.stop_after: int | None = None
        self.extra: dict[str, float] = {}  # of the first row of metrics
        self.checksums: dict[str, str] = {}  # of the validation data, by arm

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        """See run_jobs."""
        return [self._run(job) for job in jobs]

    def _run(self, job: Job) -> Outcome:
        settings = dict(override.partition("=")[::2] for override in job.overrides)
        run_dir = Path(settings["run_dir"].strip("'"))
        if not (run_dir / "result.json").is_file():
            if self.stop_after is not None and len(self.started) >= self.stop_after:
                raise KeyboardInterrupt
            self.started.append(job.name)
            if job.name in self.fail:
                return Outcome(job, run_dir, "failed", None, "out of memory", 0.0)
            self._write(run_dir, job.name.partition("-")[0], settings)
        result = json.loads((run_dir / "result.json").read_bytes())
        return Outcome(job, run_dir, result["status"], result, None, 0.0)

    def _write(self, run_dir: Path, arm: str, settings: Mapping[str, str]) -> None:
        steps, seed = int(settings["max_steps"]), int(settings["seed"])
        loss = self.loss(arm, steps, seed)
        last = {"step": steps, "tokens": 10.0 * steps, "seconds": 0.5 * steps, "flops": 100.0 * steps}
        rows = [{"step": 0, "tokens": 0, "seconds": 0.0, "flops": 0, "val/loss": 9.0, "clipped_steps": 1, **self.extra}]
        rows += [{**last, "val/loss": loss}] if loss is not None else []
        env = {"data": {"train": "t", "val": self.checksums.get(arm, "v")}, "git": {"commit": "c0ffee"}}
        result = {"status": "diverged" if loss is None else "finished", **last, "val/loss": loss}
        run_dir.mkdir(parents=True)
        (run_dir / "config.yaml").write_text("simulated: true\n")
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run_dir / "env.json").write_text(json.dumps(env))
        (run_dir / "result.json").write_text(json.dumps(result))


def planted(speed_up: float, noise: float = 0.004) -> Loss:
    """Arm b is arm a with so many times the steps; the arms of a seed share its luck."""

    def loss(arm: str, steps: int, seed: int) -> float:
        budget = steps * (speed_up if arm == "b" else 1.0)
        own, shared = random.Random(f"{arm} {steps} {seed}"), random.Random(seed)
        return float(3.0 + 8.0 * budget**-0.35 + shared.gauss(0, 0.05) + own.gauss(0, noise))

    return loss


@pytest.fixture
def simulate() -> Callable[[float | Loss], Simulation]:
    """A simulation of a planted speed-up, or of a formula."""
    return lambda truth: Simulation(truth if callable(truth) else planted(truth))
