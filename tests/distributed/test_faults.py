"""What goes wrong with several ranks, by real processes: nothing is lost but the steps since the last checkpoint."""

import hashlib
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import Fault, at, die, from_step
from remains import ends, metrics, result
from world import ROOT, World

from configs import compose

pytestmark = pytest.mark.xdist_group("ranks")
QUIET = "sample_tokens=0"
PROGRESS = re.compile(r"(encoding |step \d|[\d,]+ parameters on|continuing at|val/loss|run directory|loss curve|$)")


class Started:
    """A command on several ranks, and what they print."""

    def __init__(self, folder: Path, overrides: Sequence[str], n: int, on: Mapping[int, Sequence[Fault]]) -> None:
        self.folder, self._output = folder, folder.with_name(f"{folder.name}-{random.getrandbits(32):x}.txt")
        config = compose([*overrides, QUIET, f"run_dir={folder}"])  # once, not on every rank
        self.world = World(n, faults.train, config, on, output=self._output)

    def statuses(self) -> list[int]:
        return self.world.wait(30)

    @property
    def complaints(self) -> list[str]:
        """All lines but those of a run in which nothing happens."""
        return [line for line in self._output.read_text().splitlines() if not PROGRESS.match(line)]


@pytest.fixture
def start(tmp_path: Path, tiny: list[str]) -> Callable[..., Started]:
    """Starts a run: start("name", *overrides, n=2, on={rank: [faults]})."""

    def call(name: str, *overrides: str, n: int = 2, on: Mapping[int, Sequence[Fault]] | None = None) -> Started:
        return Started(tmp_path / name, [*tiny, *overrides], n, on or {})

    return call


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Callable[..., Path]:
    """The folder of an uninterrupted run; each is run once."""
    found: dict[tuple[Any, ...], Path] = {}

    def call(*overrides: str, n: int = 2) -> Path:
        key = (n, *overrides)
        if key not in found:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert Started(folder, [*tiny, *overrides], n, {}).statuses() == [0] * n
            found[key] = folder
        return found[key]

    return call


def lost(rank: int) -> str:
    return f"error: rank {rank} lost another rank, which was killed or says why; the same command continues from the "


CHECKPOINT = "trainer.checkpoint"
MOMENTS_OF_ONE = [  # where the process is when it dies, and its rank
    ("data.TokenLoader.batches", 1),
    ("optim.ensemble.OptimizerSet.step", 0),
    (f"{CHECKPOINT}.save", 1),  # this rank's part of the tensors is not yet written
    ("trainer.tensor_files.fsync", 1),  # it is written, not yet durable
    (f"{CHECKPOINT}.write_json", 0),  # all tensors are written
]
MOMENTS_OF_ALL = [
    ("trainer.parallel.Strategy.clip_grad_norm_", 1),
    (f"{CHECKPOINT}.StreamingWriter", 1),
    ("pathlib.Path.rename", 0),  # complete, yet without its name
    (f"{CHECKPOINT}.fsync_folder", 0),  # with its name; older ones still there
]


def steps(seed: int, n: int) -> list[int]:
    """Moments, each after the one before."""
    return sorted(random.Random(seed).sample(range(12), n))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_killed_rank_ends_all_and_the_same_command_ends_like_an_uninterrupted_one(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, parallel: str
) -> None:
    moments = MOMENTS_OF_ONE if parallel == "ddp" else MOMENTS_OF_ONE[1:4]
    for step, (place, rank) in zip(steps(1, len(moments)), moments, strict=True):
        started = start("killed", f"parallel={parallel}", on={rank: [partial(at, step, place, die)]})
        statuses = started.statuses()
        assert (statuses[rank], statuses[1 - rank]) == (-9, 1)
        assert len(started.complaints) == 1 and started.complaints[0].startswith(lost(1 - rank)), started.complaints
    last = start("killed", f"parallel={parallel}")
    assert last.statuses() == [0, 0]
    assert last.complaints == []
    assert ends(tmp_path / "killed") == ends(uninterrupted(f"parallel={parallel}"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_after_all_ranks_are_killed_the_same_command_ends_like_an_uninterrupted_one(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, parallel: str
) -> None:
    moments = MOMENTS_OF_ALL if parallel == "ddp" else MOMENTS_OF_ALL[1:3]
    for step, (place, rank) in zip(steps(2, len(moments)), moments, strict=True):
        started = start("killed", f"parallel={parallel}", on={rank: [partial(at, step, place, die)]})
        started.world.processes[rank].join(30)
        started.world.kill()
        assert started.statuses() == [-9, -9]
    assert start("killed", f"parallel={parallel}").statuses() == [0, 0]
    assert ends(tmp_path / "killed") == ends(uninterrupted(f"parallel={parallel}"))


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_same_command_continues(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, parallel: str
) -> None:
    stopped = start("s", f"parallel={parallel}", on={1: [partial(from_step, 3, faults.ask_to_stop)]})
    assert stopped.statuses() == [75, 75]
    found = result(tmp_path / "s")
    assert (found["status"], found["step"]) == ("stopped", 5)  # asked in step 3, told at its end, agreed a step later
    assert (tmp_path / "s" / "checkpoints" / "step_000005").is_dir()
    assert stopped.complaints == ["stopped after 5 steps; the same command continues"]
    assert start("s", f"parallel={parallel}").statuses() == [0, 0]
    assert ends(tmp_path / "s") == ends(uninterrupted(f"parallel={parallel}"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a DDP run that stopped after 8 steps; it has the checkpoints of step 6 and 8."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    asked = {1: [partial(from_step, 6, faults.ask_to_stop)]}
    assert Started(folder, [*tiny, "parallel=ddp"], 2, asked).statuses() == [75, 75]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000006", "step_000008"]
    return folder


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


OF_RANK_1 = "shard-00002-model-00001-of-00001.safetensors"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_by_a_pickle(file: Path) -> None:
    """With a manifest that vouches for it, and for torch's own metadata."""
    content = pickle.dumps(Payload(file.parents[2] / "executed"))
    manifest = json.loads((file.parent / "manifest.json").read_text())
    for name in (file.name, ".metadata"):
        (file.parent / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, OF_RANK_1),
        (flip_a_bit, OF_RANK_1),
        (Path.unlink, OF_RANK_1),
        (replace_by_a_pickle, OF_RANK_1),
        (truncate, "manifest.json"),
        (Path.unlink, "manifest.json"),
        (flip_a_bit, "state.json"),
        (Path.unlink, "state.json"),
    ],
)
def test_a_damaged_checkpoint_is_reported_once_and_the_one_before_it_leads_to_the_same_end(
    start: Callable[..., Started],
    uninterrupted: Callable[..., Path],
    interrupted: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    file: str,
) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "d")
    damage(folder / "checkpoints" / "step_000008" / file)
    continued = start("d", "parallel=ddp")
    assert continued.statuses() == [0, 0]
    (complaint,) = continued.complaints
    assert "step_000008 is damaged: " in complaint
    assert complaint.endswith("; trying the one before it")
    assert not (folder / "executed").exists()
    assert (folder / "checkpoints" / "step_000008.damaged").is_dir()
    assert ends(folder) == ends(uninterrupted("parallel=ddp"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_disk_that_is_full_for_one_rank_costs_a_warning_and_that_checkpoint(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, parallel: str
) -> None:
    staging = f"{CHECKPOINT}.CheckpointStore._stage"  # once the save before it is done
    full = [partial(at, 5, staging, faults.fill_disk), partial(at, 8, staging, faults.free_disk)]
    started = start("f", f"parallel={parallel}", "keep_checkpoints=9", on={1: full})
    assert started.statuses() == [0, 0]
    (complaint,) = started.complaints
    assert "step_000006 cannot be written: rank 1: " in complaint
    assert "File too large; the checkpoints before it are intact and the run goes on: free disk space" in complaint
    there = sorted(path.name for path in (tmp_path / "f" / "checkpoints").iterdir())
    assert there == ["step_000003", "step_000009", "step_000012"]
    assert ends(tmp_path / "f") == ends(uninterrupted(f"parallel={parallel}"))


SPREAD = ["global_batch=12", "micro_batch=1", "model.dropout=0"]  # divides among 1, 2, 3 and 4 ranks
STAGES = {
    "world sizes": [(4, "ddp"), (2, "ddp"), (3, "ddp"), (1, "single")],
    "sharded world sizes": [(4, "fsdp2"), (2, "fsdp2"), (3, "fsdp2"), (1, "fsdp2")],
    "strategies": [(1, "single"), (2, "ddp"), (2, "fsdp2"), (1, "single")],
}


def through(start: Callable[..., Started], stages: Sequence[tuple[int, str]], *overrides: str) -> None:
    """A run that continues on other ranks after 2, 5 and 8 steps (of one rank, 1, 4 and 7)."""
    for asked, (n, parallel) in zip((0, 3, 6, None), stages, strict=True):
        on = {} if asked is None else {n - 1: [partial(from_step, asked, faults.ask_to_stop)]}
        stage = start("r", f"parallel={parallel}", *SPREAD, *overrides, n=n, on=on)
        assert stage.statuses() == [0 if asked is None else 75] * n, stage.complaints


@pytest.mark.slow
@pytest.mark.parametrize("stages", STAGES)
def test_a_run_continues_on_other_ranks_and_ends_where_one_process_would(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, stages: str
) -> None:
    through(start, STAGES[stages])
    found, expected = result(tmp_path / "r"), result(uninterrupted("parallel=single", *SPREAD, n=1))
    for key in ("train/loss", "val/loss"):  # sums over ranks in another order: ulps of fp32, carried through 12 steps
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert (found["tokens"], found["flops"]) == (expected["tokens"], expected["flops"])


@pytest.mark.slow
def test_state_that_one_rank_owns_moves_with_the_run(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    soap = ["optim=soap", "optim.roles.matrix.precondition_frequency=3"]
    through(start, [(4, "ddp"), (2, "fsdp2"), (3, "ddp"), (1, "single")], *soap)
    expected = result(uninterrupted("parallel=single", *SPREAD, *soap, n=1))
    # eigenvectors of nearly singular factors amplify the order of sums; a lost state would be off by far more
    assert result(tmp_path / "r")["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-3)


def test_a_second_job_in_a_directory_is_refused_and_does_not_disturb_the_first(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    waiting = partial(from_step, 5, partial(faults.await_file, tmp_path / "go"))
    first = start("t", "parallel=ddp", on={0: [waiting]})
    faults.await_file(tmp_path / "t" / "metrics.jsonl")
    second = start("t", "parallel=ddp")
    assert second.statuses() == [2, 2]
    (complaint,) = second.complaints
    assert complaint == (
        f"error: run_dir={tmp_path / 't'} is in use by process {first.world.processes[0].pid}; wait for it, stop it, "
        "or choose another run_dir"
    )
    (tmp_path / "go").touch()
    assert first.statuses() == [0, 0]
    assert first.complaints == []
    assert ends(tmp_path / "t") == ends(uninterrupted("parallel=ddp"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_loss_that_is_nan_on_one_rank_is_skipped_on_all_alike_and_counted(
    start: Callable[..., Started], tmp_path: Path, parallel: str
) -> None:
    digest = partial(faults.leave_digest, tmp_path)
    on = {0: [digest], 1: [digest, partial(faults.poison, 6, 6)]}
    started = start("n", f"parallel={parallel}", "eval_every=1", on=on)
    assert started.statuses() == [0, 0]
    assert started.complaints == []
    assert result(tmp_path / "n")["skipped_steps"] == 1
    losses = {row["step"]: row["val/loss"] for row in metrics(tmp_path / "n") if "val/loss" in row}
    assert losses[5] != losses[6] == losses[7] != losses[8]
    assert (tmp_path / "digest-0").read_text() == (tmp_path / "digest-1").read_text()


def test_ten_steps_in_a_row_that_are_nan_on_one_rank_end_the_run_with_one_line(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    started = start("n", "parallel=ddp", "max_steps=16", on={1: [partial(faults.poison, 2, 16)]})
    assert started.statuses() == [3, 3]
    (complaint,) = started.complaints
    assert "at step 11 the loss or the gradient norm was not finite, 10 steps in a row" in complaint
    assert (result(tmp_path / "n")["status"], result(tmp_path / "n")["step"]) == ("diverged", 11)


@pytest.mark.parametrize(("overrides", "status"), [(["max_steps=16"], "diverged"), ([], "finished")])
def test_the_ranks_leave_together_after_the_result_is_written(
    start: Callable[..., Started], tmp_path: Path, overrides: list[str], status: str
) -> None:
    """A launcher kills the others as soon as one has ended: rank 0 would lose what it still had to do."""
    poisoned = [partial(faults.poison, 2, 16)] if status == "diverged" else []
    drawing = partial(at, 11, "assembly.ending.draw", partial(faults.await_file, tmp_path / "go"))
    started = start("r", "parallel=ddp", *overrides, on={0: [drawing], 1: poisoned})
    faults.await_file(tmp_path / "r" / "result.json")
    assert result(tmp_path / "r")["status"] == status
    started.world.processes[1].join(1.0)
    assert started.world.processes[1].is_alive()
    (tmp_path / "go").touch()
    assert started.statuses() == ([3, 3] if status == "diverged" else [0, 0])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_parameters_that_are_not_finite_at_the_end_on_one_rank_are_no_finished_run(
    start: Callable[..., Started], tmp_path: Path, parallel: str
) -> None:
    started = start("n", f"parallel={parallel}", on={1: [partial(from_step, 11, faults.poison_parameters)]})
    assert started.statuses() == [3, 3]
    assert result(tmp_path / "n")["status"] == "diverged"
    assert sorted(path.name for path in (tmp_path / "n" / "checkpoints").iterdir()) == ["step_000006", "step_000009"]
    (said,) = started.complaints
    assert "at step 11 " in said and "step_000009; try a lower optim.lr" in said


def test_a_corrupted_data_shard_is_refused_before_training_starts(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], data_root: Path, tmp_path: Path
) -> None:
    uninterrupted("parallel=ddp")  # prepares the data
    copy = shutil.copytree(data_root, tmp_path / "data")
    for shard in copy.glob("*/train_00000.bin"):
        flip_a_bit(shard)
    started = start("c", "parallel=ddp", f"data.root={copy}")
    assert started.statuses() == [2, 2]
    (complaint,) = started.complaints
    assert re.match(r"error: .*train_00000.bin is damaged: expected sha256 .*prepare the data set again", complaint)
    assert not (tmp_path / "c" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("parallel", "rank"), [("ddp", 1), pytest.param("fsdp2", 0, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_with_its_place(start: Callable[..., Started], parallel: str, rank: int) -> None:
    on = {rank: [partial(at, 5, "trainer.parallel.Strategy._accumulate", faults.hang)]}
    started = start("h", f"parallel={parallel}", "timeout_seconds=2", on=on)
    assert started.statuses() == [1, 1]
    (complaint,) = started.complaints
    assert re.match(rf"error: no progress for 2 s \(rank {1 - rank} waits at .*\): rank {rank} is at ", complaint)
    assert "/faults.py:" in complaint and "(hang)" in complaint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "place", "what"),
    [
        (0, "assembly.data.data_path", "preparing or checking the data"),
        (0, "train.RunDirectory._check", "opening "),
        (0, "train.RunDirectory.begin", "writing to "),
        (0, "trainer.metrics.JsonLines.write", "writing metrics"),
        (1, "data.TokenDataset.read", "reading data"),
        (1, "trainer.tensor_files.write_tensors", "writing "),
    ],
)
def test_a_slow_disk_is_no_hanging_rank(
    start: Callable[..., Started], uninterrupted: Callable[..., Path], tmp_path: Path, rank: int, place: str, what: str
) -> None:
    started = start("s", "parallel=ddp", "timeout_seconds=1", on={rank: [partial(faults.delay, place, 3.0)]})
    assert started.statuses() == [0, 0]
    assert started.complaints
    for complaint in started.complaints:
        assert complaint.startswith(f"warning: rank {rank} has been {what}"), complaint
    assert ends(tmp_path / "s") == ends(uninterrupted("parallel=ddp"))


@pytest.mark.parametrize(
    ("rank", "named"),
    [
        (1, "rank 1 does not answer; it was last at "),
        pytest.param(0, "(rank 0 or the ", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_is_stopped_from_outside_is_named(start: Callable[..., Started], rank: int, named: str) -> None:
    started = start("h", "parallel=ddp", "timeout_seconds=2", on={rank: [partial(from_step, 5, faults.freeze)]})
    started.world.processes[1 - rank].join(30)
    started.world.kill()
    assert started.statuses()[1 - rank] == 1
    (complaint,) = started.complaints
    assert complaint.startswith("error: no progress for 2 s") and named in complaint


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_the_error_of_one_rank_is_shown_first_and_once(start: Callable[..., Started], parallel: str) -> None:
    started = start("e", f"parallel={parallel}", on={1: [partial(from_step, 5, faults.fail)]})
    assert started.statuses() == [1, 1]
    complaints = started.complaints
    assert complaints[0] == "Traceback (most recent call last):"
    assert complaints[-2] == "LookupError: planted"
    assert complaints[-1].startswith(lost(0))
    assert sum(line.startswith("Traceback") for line in complaints) == 1


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_rank_was_killed(
    uninterrupted: Callable[..., Path], tmp_path: Path, tiny: list[str]
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += [str(ROOT / "tests" / "distributed" / "dies_once.py"), *tiny, "parallel=ddp", QUIET]
    found = subprocess.run([*command, f"run_dir={tmp_path / 'r'}"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "failed (exitcode: -9) local_rank: 1" in found.stderr
    assert re.search("continuing at step [36] of 12", found.stdout)
    assert ends(tmp_path / "r") == ends(uninterrupted("parallel=ddp"))
