"""A profile shows the phases of ten steps, and changes nothing else."""

import gzip
import json
import logging
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from assembly.branch import differences
from configs import compose
from trainer.profiling import STEPS, TABLE, TRACE, WAIT, WARM_UP, Profile

ENDS_IN_TIME = WAIT + WARM_UP + STEPS + 1  # steps
FEW_FILES = ["log_every=20", "eval_every=10", "save_every=20", "sample_tokens=0"]


@pytest.mark.slow
def test_a_profile_has_the_phases_of_ten_steps_and_leaves_the_run_as_it_is(tiny: list[str], tmp_path: Path) -> None:
    given = [*tiny, f"max_steps={ENDS_IN_TIME}", "optim=sophiag", "micro_batch=2", *FEW_FILES]
    found = {}
    for name in ("profiled", "plain"):
        overrides = [*given, f"run_dir={tmp_path / name}", f"profile={name == 'profiled'}".lower()]
        assert train.main(compose(overrides)) == 0
        found[name] = json.loads((tmp_path / name / "result.json").read_text())["params_sha256"]
    assert found["profiled"] == found["plain"]
    assert not (tmp_path / "plain" / TRACE).exists()
    assert compose([*given, "profile=true"]).run_dir == compose(given).run_dir
    assert not differences(compose([*given, "profile=true"]), "fp32", tmp_path / "plain" / "config.yaml")

    with gzip.open(tmp_path / "profiled" / TRACE, "rt") as file:
        events = json.load(file)["traceEvents"]
    ranges = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert ranges["loader"] == ranges["curvature"] == ranges["clip"] == ranges["optimizer"] == STEPS
    assert ranges["backward"] == ranges["forward"] == 4 * STEPS + 2  # micro-batches; 2 of one curvature pass
    table = (tmp_path / "profiled" / TABLE).read_text().splitlines()
    rows = {line[:12].strip(): line[12:].split() for line in table[2:]}
    assert {name: row[0] for name, row in rows.items() if len(row) == 3} == {
        "loader": "1",
        "curvature": "1",
        "forward": "4",  # those of the curvature pass are within "curvature"
        "backward": "4",
        "clip": "1",
        "optimizer": "1",
        "evaluation": "0.1",
    }
    parts = sum(float(row[-2]) for name, row in rows.items() if name != "a step")
    assert parts == pytest.approx(float(rows["a step"][-2]), abs=0.005 * len(rows))  # what is printed is rounded


def test_a_run_too_short_for_a_profile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), nullcontext)
    for _ in range(WAIT + WARM_UP):
        profile.begin_step()
    with caplog.at_level(logging.WARNING):
        profile.close()
    assert "ended before its step 6" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_short_run_is_no_part_of_its_last_step(tiny: list[str], tmp_path: Path) -> None:
    steps = WAIT + WARM_UP + 1
    given = [*tiny, f"max_steps={steps}", "profile=true", f"run_dir={tmp_path / 'a'}", *FEW_FILES]
    assert train.main(compose(given)) == 0
    table = (tmp_path / "a" / TABLE).read_text()
    assert table.startswith("1 steps after 5 others") and "evaluation" not in table


class Event:
    """Stands for a device's: each is recorded 2 ms after the one before."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 2.0
        self.at = Event.now

    def elapsed_time(self, after: "Event") -> float:
        return after.at - self.at


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_on_a_gpu_phases_are_timed_in_its_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    stub = SimpleNamespace(Event=Event, synchronize=lambda: waited.append(True))
    monkeypatch.setattr(torch, "get_device_module", lambda device: stub)
    profile = Profile(tmp_path, torch.device("cuda"), nullcontext)
    for n in range(ENDS_IN_TIME):
        profile.begin_step()
        with profile.named("curvature"), profile.named("forward"):
            assert len(waited) == (n == ENDS_IN_TIME - 1)  # for the device, after the last step that is profiled
        with profile.named("backward"):
            pass
    head, *rows = (tmp_path / TABLE).read_text().splitlines()[1:]
    assert head.split()[-5:] == ["host", "ms", "device", "ms", "share"]
    on_device = {row.split()[0]: row.split()[-2:] for row in rows}  # a step: its own event, and two of each phase
    assert on_device["curvature"] == on_device["backward"] == ["2.00", "20.0%"]
    assert on_device["a"] == ["10.00", "100.0%"] and on_device["the"] == ["6.00", "60.0%"]
