"""A claim file to change, and a job runner that leaves the run directories of simulated training."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.jobs import Job, Outcome

Loss = Callable[[str, int, int], float | None]  # arm, steps, seed -> final val/loss; None: diverges
SOURCE = {"paper": "P", "url": "https://example.org", "statement": "twice as fast", "setting": "s", "unverified": ["u"]}
TRAINING = {  # what a scale's file has
    "budget": 160,
    "warmup_steps": 8,
    "fractions": [0.25, 0.5, 0.75, 1.0],
    "seeds": [1, 2, 3],
    "tuning_seeds": [7, 8],
    "tuned_axes": 3,
    "worse_by": 0.0,
    "evaluations": 8,
}
SPEED_UP = {
    "title": "B needs half of A's steps",
    "kind": "speed_up",
    "source": SOURCE,
    "contrary": ["somebody found less"],
    "rule": "claimed 2",
    "overrides": [],
    "comparisons": [
        {
            "candidate": "b",
            "baseline": "a",
            "claims": {"steps": {"claimed": 2.0, "least": 1.75}, "flops": {"claimed": 2.0, "least": 1.75}},
            "half_budget": {"claimed": 1.0, "least": 0.8},
        }
    ],
    "protocols": ["tuned"],
    "paper_schedule": ["schedule=cosine"],
    "timing_steps": 10,
    "arms": {
        "a": {
            "label": "A",
            "role": "baseline",
            "overrides": ["optim=adamw"],
            "paper": ["optim.lr=5e-3"],
            "usual": ["optim.lr=1e-3"],
            "axes": {
                "rate": {"sets": ["optim.lr={}"], "start": 2e-3},
                "decay": {"sets": ["optim.weight_decay={}"], "start": 0.1},
            },
        },
        "b": {
            "label": "B",
            "role": "candidate",
            "overrides": ["optim=lion"],
            "paper": ["optim.lr=5e-4"],
            "axes": {
                "rate": {"sets": ["optim.lr={}"], "start": 2e-4},
                "decay": {"sets": ["optim.weight_decay={}"], "start": 0.1},
            },
        },
    },
    "scales": {"nano": {}, "small": {"budget": 1600, "warmup_steps": 80}},
}
SWEEP = {
    **{key: SPEED_UP[key] for key in ("title", "source", "contrary", "rule", "overrides", "arms", "scales")},
    "kind": "sweep",
    "sweep": {"label": "rate", "axis": "rate", "values": [0.5, 1.0, 2.0]},
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
    """Writes claim/<name>.yaml with fields changed (None: without), and scale/*.yaml; returns the claims' folder."""

    def write(name: str = "twice", base: str = "speed_up", **changes: Any) -> Path:
        folder = tmp_path / "claim"
        folder.mkdir(exist_ok=True)
        (tmp_path / "scale").mkdir(exist_ok=True)
        for scale in ("nano", "small"):
            (tmp_path / "scale" / f"{scale}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(TRAINING)))
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
        self.optimum: dict[str, float] | None = {"a": 2e-3, "b": 2e-4}  # rates; None: all are as good

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
            self._write(run_dir, run_dir.name.partition("-")[0], settings)
        result = json.loads((run_dir / "result.json").read_bytes())
        return Outcome(job, run_dir, result["status"], result, None, 0.0)

    def _write(self, run_dir: Path, arm: str, settings: Mapping[str, str]) -> None:
        steps, seed = int(settings["max_steps"]), int(settings["seed"])
        loss = self.loss(arm, steps, seed)
        if loss is not None and self.optimum is not None:
            loss += 0.1 * math.log2(float(settings["optim.lr"]) / self.optimum[arm]) ** 2
        last = {"step": steps, "tokens": 10.0 * steps, "seconds": 0.5 * steps, "flops": 100.0 * steps}
        rows = [{"step": 0, "tokens": 0, "seconds": 0.0, "flops": 0, "val/loss": 9.0, "clipped_steps": 1, **self.extra}]
        for step in range(20, steps, 20):  # undecayed, so above what a run of that length ends at
            there = self.loss(arm, step, seed)
            rows += [] if there is None else [{**last, "step": step, "val/loss": there + 0.2}]
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
