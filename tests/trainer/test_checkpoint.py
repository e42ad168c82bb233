import hashlib
import json
import logging
import math
import pickle
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Saved,
    parameters_sha256,
)
from trainer.manifest import MANIFEST, STATE, digest_of

TENSORS = "shard-00001-model-00001-of-00001.safetensors"


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(4, 3, generator=generator),
        "optim.weight.exp_avg": torch.randn(4, 3, generator=generator).bfloat16(),
        "optim.weight.step": torch.tensor(float(step)),
    }
    return Checkpoint(tensors, {"step": step, "losses": {"train/loss": 0.1 + step}})


def store(folder: Path, keep: int = 2, permanent_every: int | None = None) -> CheckpointStore:
    return CheckpointStore(folder, keep=keep, permanent_every=permanent_every, asynchronous=False)


def read(saved: Saved) -> dict[str, torch.Tensor]:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in saved.metadata.items()}
    saved.read_into(tensors)
    return tensors


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_round_trip_keeps_every_bit_and_dtype(tmp_path: Path) -> None:
    saved = checkpoint(7)
    store(tmp_path).save(saved)
    loaded = store(tmp_path).newest()
    assert loaded is not None
    assert loaded.state == saved.state
    tensors = read(loaded)
    assert tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert loaded.group("model").keys() == {"weight"}
    assert loaded.group("optim").keys() == {"weight.exp_avg", "weight.step"}


def test_a_run_that_never_saved_has_no_checkpoint(tmp_path: Path) -> None:
    assert store(tmp_path / "nothing").newest() is None


def test_the_newest_and_the_permanent_ones_stay(tmp_path: Path) -> None:
    kept = store(tmp_path, keep=2, permanent_every=30)
    for step in range(10, 100, 10):
        kept.save(checkpoint(step))
    assert names(tmp_path) == ["step_000030", "step_000060", "step_000080", "step_000090"]


def test_the_order_is_that_of_the_steps_not_of_the_names(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        store(tmp_path).save(checkpoint(step))
    loaded = store(tmp_path).newest()
    assert loaded is not None and loaded.state["step"] == 1_000_000


def test_a_checkpoint_of_older_versions_is_verified_and_read(tmp_path: Path) -> None:
    """Their manifests have sha256."""
    store(tmp_path).save(checkpoint(10))
    path = tmp_path / "step_000010"
    content = {name: (path / name).read_bytes() for name in (TENSORS, STATE)}
    old = {name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in content.items()}
    (path / MANIFEST).write_text(json.dumps({"files": old}))
    assert torch.equal(read(store(tmp_path).read(path))["model.weight"], checkpoint(10).tensors["model.weight"])
    flip_a_bit(path / TENSORS)
    with pytest.raises(CheckpointError, match=r"is damaged: .* should have .*sha256.*, has .*sha256"):
        store(tmp_path).read(path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def link_away(path: Path) -> None:
    elsewhere = path.parents[2] / f"{path.parents[1].name}-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = {
    "bit flip in tensors": lambda path: flip_a_bit(path / TENSORS),
    "bit flip in state": lambda path: flip_a_bit(path / STATE),
    "truncated tensors": lambda path: (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-8]),
    "no tensors": lambda path: (path / TENSORS).unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "manifest is no JSON": lambda path: (path / MANIFEST).write_text("{"),
    "no digests": lambda path: (path / MANIFEST).write_text(json.dumps({"files": {TENSORS: {}, STATE: None}})),
    "manifest of another kind": lambda path: (path / MANIFEST).write_text("[]"),
    "a file too many": lambda path: (path / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b""),
    "a pickle in place of tensors": lambda path: replace_by_a_pickle(path),
    "tensors that lie elsewhere": lambda path: link_away(path / TENSORS),
    "a state that lies elsewhere": lambda path: link_away(path / STATE),
    "a manifest that lies elsewhere": lambda path: link_away(path / MANIFEST),
}


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def replace_by_a_pickle(path: Path) -> None:
    """With a manifest that vouches for it: what an attacker, not an accident, would leave."""
    content = pickle.dumps(Payload(path.parent / "executed"))
    for name in (TENSORS, ".metadata"):
        (path / name).write_bytes(content)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"] |= {name: digest_of(path / name) for name in (TENSORS, ".metadata")}
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        store(tmp_path).save(checkpoint(step))
    DAMAGES[damage](tmp_path / "step_000020")
    with caplog.at_level(logging.WARNING):
        loaded = store(tmp_path).newest(set_aside=True)
    assert loaded is not None and loaded.state["step"] == 10
    assert not (tmp_path / "executed").exists()
    assert "step_000020 is damaged" in caplog.text
    assert names(tmp_path) == ["step_000010", "step_000020.damaged"]
    store(tmp_path).save(checkpoint(20))  # the place is free again
    again = store(tmp_path).newest()
    assert again is not None and again.state["step"] == 20


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reader_changes_nothing(tmp_path: Path, damage: str) -> None:
    for step in (10, 20):
        store(tmp_path).save(checkpoint(step))
    DAMAGES[damage](tmp_path / "step_000020")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    loaded = store(tmp_path).newest()
    assert loaded is not None and loaded.state["step"] == 10
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_reader_keeps_up_with_a_run_that_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training, moments = store(tmp_path, keep=1), iter(range(20, 40, 10))
    training.save(checkpoint(10))

    def verify(*arguments: Any) -> str | None:
        """Once the run has saved another one, and deleted this one."""
        if (step := next(moments, None)) is not None:
            training.save(checkpoint(step))
        return CheckpointStore._damage(reader, *arguments)

    reader = store(tmp_path)
    monkeypatch.setattr(reader, "_damage", verify)
    loaded = reader.newest()
    assert loaded is not None and loaded.state["step"] == 30
    assert not warnings_in(caplog)


def test_a_checkpoint_is_deleted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that is interrupted leaves no half of it under its name, and the next start removes the rest."""
    store(tmp_path, keep=1).save(checkpoint(10))
    with monkeypatch.context() as patch:
        rmtree = shutil.rmtree
        patch.setattr(shutil, "rmtree", lambda path, **how: None if "10" in path.name else rmtree(path, **how))
        store(tmp_path, keep=1).save(checkpoint(20))
    assert names(tmp_path) == [".step_000010.tmp", "step_000020"]
    store(tmp_path).remove_temporaries()
    assert names(tmp_path) == ["step_000020"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.weight", "optim.weight.exp_avg"])
def test_a_state_that_is_not_finite_is_not_written_and_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    kept = store(tmp_path, keep=1)
    kept.save(checkpoint(10))
    bad = checkpoint(20)
    bad.tensors[name][3, 2] = value
    kept.save(bad)
    assert names(tmp_path) == ["step_000010"]
    (record,) = warnings_in(caplog)
    assert f"step_000020 is not written: {name} has numbers that are not finite" in record.getMessage()
    kept.save(checkpoint(20))
    assert names(tmp_path) == ["step_000020"]


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(10))
    flip_a_bit(tmp_path / "step_000010" / TENSORS)
    with pytest.raises(CheckpointError, match="no checkpoint in .* is readable"):
        store(tmp_path).newest()


def test_what_a_killed_save_left_is_ignored_and_replaced(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(10))
    leftover = tmp_path / ".step_000020.tmp"
    leftover.mkdir()
    (leftover / TENSORS).write_bytes(b"half")
    loaded = store(tmp_path).newest()
    assert loaded is not None and loaded.state["step"] == 10
    store(tmp_path).save(checkpoint(20))
    assert names(tmp_path) == ["step_000010", "step_000020"]


def test_a_full_disk_is_reported_and_leaves_run_and_earlier_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path).save(checkpoint(10))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.write_json", full)
        store(tmp_path).save(checkpoint(20))
    assert "step_000020 cannot be written: " in caplog.text
    assert "No space left" in caplog.text
    assert names(tmp_path) == ["step_000010"]
    store(tmp_path).save(checkpoint(30))
    assert names(tmp_path) == ["step_000010", "step_000030"]


def test_a_limit_on_file_size_met_while_tensors_are_written_is_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path).save(checkpoint(10))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        store(tmp_path).save(checkpoint(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "step_000020 cannot be written: rank 0: " in caplog.text
    assert names(tmp_path) == ["step_000010"]


def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path) -> None:
    saved = checkpoint(10)
    expected = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    asynchronous = CheckpointStore(tmp_path, keep=1, permanent_every=None)
    asynchronous.save(saved)
    for tensor in saved.tensors.values():
        tensor.zero_()
    asynchronous.wait()
    loaded = store(tmp_path).newest()
    assert loaded is not None
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read(loaded).items())
    assert asynchronous.written is not None
    assert asynchronous.written.bytes == sum(p.stat().st_size for p in (tmp_path / "step_000010").glob("shard*"))
    assert 0 <= asynchronous.written.blocked_seconds <= asynchronous.written.seconds


def test_the_digest_of_parameters_sees_every_bit_name_shape_and_dtype() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    variants = [
        base,
        {**base, "a": torch.full((2, 3), -0.0)},
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({parameters_sha256(variant.items()) for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "tensors", [{"x": torch.ones(3)}, {"model.weight": torch.ones(3)}, {"model.weight": torch.ones(4, 3).bfloat16()}]
)
def test_tensors_are_never_read_into_what_does_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    store(tmp_path).save(checkpoint(10))
    loaded = store(tmp_path).newest()
    assert loaded is not None
    with pytest.raises(CheckpointError, match=r"does not fit the run: (x|model\.weight) should be"):
        loaded.read_into(tensors)
    assert all((tensor == 1).all() for tensor in tensors.values())


def test_nothing_but_tensors_and_json_is_written(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(10))
    path = tmp_path / "step_000010"
    assert names(path) == sorted([TENSORS, STATE, MANIFEST])
    assert json.loads((path / STATE).read_text())["step"] == 10


def test_checkpoints_at_chosen_steps_stay(tmp_path: Path) -> None:
    kept = CheckpointStore(tmp_path, keep=1, permanent_every=30, permanent_at=[20, 50], asynchronous=False)
    for step in range(10, 100, 10):
        kept.save(checkpoint(step))
    assert names(tmp_path) == [f"step_{step:06d}" for step in (20, 30, 50, 60, 90)]


def test_reading_one_checkpoint_changes_nothing_and_says_whether_it_is_damaged_or_gone(tmp_path: Path) -> None:
    for step in (10, 20):
        store(tmp_path).save(checkpoint(step))
    elsewhere = store(tmp_path / "elsewhere")
    assert elsewhere.read(tmp_path / "step_000010").state["step"] == 10
    flip_a_bit(tmp_path / "step_000020" / TENSORS)
    with pytest.raises(CheckpointError, match="step_000020 is damaged: "):
        elsewhere.read(tmp_path / "step_000020")
    with pytest.raises(CheckpointError, match="step_000030 is not there any more"):
        elsewhere.read(tmp_path / "step_000030")
    assert names(tmp_path) == ["step_000010", "step_000020"]
