"""A claim file to change, and a job runner that leaves the run directories of simulated training."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from configs.runs import plain
from launch.job import Job, Outcome
from reproduce import protocols
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.kind import named
from reproduce.plans import Planned
from reproduce.protocols import Comparison
from reproduce.records import COLUMNS, Ratios, Record, Recorded

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
    "pays": 0.0,
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

    started: the names of the jobs that it ran. branched: those that begin at a step of another run. fail: names of jobs
    that crash. stop_after: raises KeyboardInterrupt once so many have run. keeps: whether checkpoints stay.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss, self.started, self.branched = loss, list[str](), dict[str, str]()
        self.fail: set[str] = set()
        self.stop_after: int | None = None
        self.keeps = True
        self.flops: dict[str, float] = {}  # of a step, by arm, as a factor
        self.extra: dict[str, float] = {}  # of every row of metrics
        self.checksums: dict[str, str] = {}  # of the validation data, by arm
        self.optimum: dict[str, float] | None = {"a": 2e-3, "b": 2e-4}  # rates; None: all are as good

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        """See run_jobs."""
        return [self._run(job) for job in jobs]

    def _run(self, job: Job) -> Outcome:
        settings = given(job.overrides)
        run_dir = Path(settings["run_dir"].strip("'"))
        if not (run_dir / "result.json").is_file():
            if self.stop_after is not None and len(self.started) >= self.stop_after:
                raise KeyboardInterrupt
            self.started.append(job.name)
            if job.name in self.fail:
                return Outcome(job, run_dir, "failed", None, "out of memory", 0.0)
            if "start_from" in settings:
                trunk, _, step = settings["start_from"].rpartition("@")
                assert (Path(trunk) / "checkpoints" / f"step_{int(step):06d}").is_dir()
                self.branched[job.name] = settings["start_from"]
            self._write(run_dir, run_dir.name.partition("-")[0], settings)
        result = json.loads((run_dir / "result.json").read_bytes())
        return Outcome(job, run_dir, result["status"], result, None, 0.0)

    def _write(self, run_dir: Path, arm: str, settings: Mapping[str, str]) -> None:
        steps, seed = int(settings["max_steps"]), int(settings["seed"])
        loss = self.loss(arm, steps, seed)
        if loss is not None and self.optimum is not None:
            loss += 0.1 * math.log2(float(settings["optim.lr"]) / self.optimum[arm]) ** 2
        flops = 100.0 * steps * self.flops.get(arm, 1.0)
        last = {"step": steps, "tokens": 10.0 * steps, "seconds": 0.5 * steps, "flops": flops}
        rows = [{"step": 0, "tokens": 0, "seconds": 0.0, "flops": 0, "val/loss": 9.0, "clipped_steps": 1, **self.extra}]
        for step in range(20, steps, 20):  # undecayed, so above what a run of that length ends at
            there = self.loss(arm, step, seed)
            rows += [] if there is None else [{**last, **self.extra, "step": step, "val/loss": there + 0.2}]
        rows += [{**last, **self.extra, "val/loss": loss}] if loss is not None else []
        env = {"data": {"train": "t", "val": self.checksums.get(arm, "v")}, "git": {"commit": "c0ffee"}}
        result = {"status": "diverged" if loss is None else "finished", **last, "val/loss": loss}
        run_dir.mkdir(parents=True)
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config_of(settings)))
        for step in yaml.safe_load(settings.get("save_at", "[]")) if self.keeps else ():
            (run_dir / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run_dir / "env.json").write_text(json.dumps(env))
        (run_dir / "result.json").write_text(json.dumps(result))


def given(overrides: Sequence[str]) -> dict[str, str]:
    """The last value of every key."""
    return dict(override.partition("=")[::2] for override in overrides)


def config_of(settings: Mapping[str, str]) -> dict[str, Any]:
    """What config.yaml of a run with these settings says of its optimizer, schedule and length."""
    config = plain(composed((f"optim={settings['optim']}", f"schedule={settings['schedule']}")))
    for key, value in settings.items():
        *parents, last = key.split(".")
        if parents in (["optim"], ["schedule"]) or key in ("seed", "max_steps", "precision", "model.dropout"):
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = float(value) if key == "optim.lr" else yaml.safe_load(value)
    return config


@dataclass(frozen=True)
class Truth:
    """The losses of runs that happen in memory alone: what every run would end at, by its plan.

    Arm b is arm a with speed_up times the steps. rates, decay, warm_up: the optimum; each doubling away from it costs
    `bowl` nats, squared. noise: sd of a run over seeds, nats.
    """

    speed_up: float = 2.0
    noise: float = 0.001
    bowl: float = 0.1
    rates: Mapping[str, float] = field(default_factory=lambda: {"a": 2e-3, "b": 2e-4})
    decay: float = 0.1
    warm_up: float = 8.0

    def __call__(self, run: Planned) -> float | None:
        """The final loss of a run."""
        own = given(run.overrides)
        away = [math.log2(float(own["optim.lr"]) / self.rates[run.arm])]
        away += [math.log2(float(own.get("optim.weight_decay", self.decay)) / self.decay)]
        away += [math.log2(float(own.get("schedule.warmup_steps", self.warm_up)) / self.warm_up)]
        steps = run.steps * (self.speed_up if run.arm == "b" else 1.0)
        luck = random.Random(f"{run.arm} {run.steps} {run.seed}").gauss(0, self.noise)
        return float(3.0 + 8.0 * steps**-0.35 + luck + self.bowl * sum(each**2 for each in away))


@dataclass(frozen=True)
class Walk:
    """All runs of a claim, in memory. batches: in the order in which they were wanted."""

    claim: Claim[Any]
    batches: list[list[Planned]]
    runs: list[Recorded]

    def comparison(self, ratios: Ratios | None = None, **changes: Any) -> Comparison[Any]:
        """That of the last protocol. changes: of every record, a value or a function of the run."""
        runs = [
            each._replace(record=replace(each.record, **{k: v(each) if callable(v) else v for k, v in changes.items()}))
            for each in self.runs
        ]
        return protocols.of(self.claim)[-1].comparison(runs, ratios or {})


def walked(claim: Claim[Any], loss: Callable[[Planned], float | None]) -> Walk:
    """Runs the claim in memory; on its way a run is .2 nats above what one of that length ends at."""
    wanted, outcomes = protocols.of(claim), dict[str, float | None]()
    batches, runs = list[list[Planned]](), list[Recorded]()
    while batch := protocols.next_runs(wanted, outcomes):
        batches.append(batch)
        for run in batch:
            found = outcomes[run.config_hash] = loss(run)
            runs.append(Recorded(run, record_of(run, found, loss)))
    return Walk(claim, batches, runs)


def record_of(run: Planned, loss: float | None, of: Callable[[Planned], float | None]) -> Record:
    """The record of a simulated run."""
    curve: dict[str, list[float | None]] = {column: [] for column in COLUMNS}
    for step in range(20, run.steps, 20):
        there = of(replace(run, steps=step))
        for column, value in zip(COLUMNS, (step, 10.0 * step, 100.0 * step, 0.5 * step, there), strict=True):
            curve[column].append(value if column != "val/loss" or value is None else value + 0.2)
    status = "diverged" if loss is None else "finished"
    return Record(status, run.steps, loss, 0.5 * run.steps, 100.0 * run.steps, curve)


@pytest.fixture
def walk() -> Callable[..., Walk]:
    """Runs a claim in memory: walk(claim, loss) or walk(claim, **what Truth has)."""

    def found(claim: Claim[Any], loss: Callable[[Planned], float | None] | None = None, **truth: Any) -> Walk:
        return walked(claim, loss or Truth(**truth))

    return found


def planted(speed_up: float, noise: float = 0.004) -> Loss:
    """Arm b is arm a with so many times the steps; the arms of a seed share its luck."""

    def loss(arm: str, steps: int, seed: int) -> float:
        budget = steps * (speed_up if arm == "b" else 1.0)
        own, shared = random.Random(f"{arm} {steps} {seed}"), random.Random(seed)
        return float(3.0 + 8.0 * budget**-0.35 + shared.gauss(0, 0.05) + own.gauss(0, noise))

    return loss


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data set is here, so that R7 is not known, and the simulation behind R11, which takes seconds, is not run."""
    monkeypatch.setattr("reproduce.surroundings.data_path", lambda config, prepared: tmp_path / "no data")
    monkeypatch.setattr(type(named("speed_up")), "power", lambda self, found, evidence: None, raising=False)


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report is written beside results.json."""
    monkeypatch.setattr("reproduce.reproduction.write_report", lambda results, folder: None)


@pytest.fixture
def simulate() -> Callable[[float | Loss], Simulation]:
    """A simulation of a planted speed-up, or of a formula."""
    return lambda truth: Simulation(truth if callable(truth) else planted(truth))
