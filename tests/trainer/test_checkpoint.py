import json
import logging
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import (
    MANIFEST,
    STATE,
    TENSORS,
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    copy_into,
    parameters_sha256,
)


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(4, 3, generator=generator),
        "optim.weight.exp_avg": torch.randn(4, 3, generator=generator).bfloat16(),
        "optim.weight.step": torch.tensor(float(step)),
    }
    return Checkpoint(tensors, {"step": step, "losses": {"train/loss": 0.1 + step}})


def store(folder: Path, keep: int = 2, permanent_every: int | None = None) -> CheckpointStore:
    return CheckpointStore(folder, keep=keep, permanent_every=permanent_every)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_round_trip_keeps_every_bit_and_dtype(tmp_path: Path) -> None:
    saved = checkpoint(7)
    store(tmp_path).save(saved)
    loaded = store(tmp_path).load_newest()
    assert loaded is not None
    assert loaded.state == saved.state
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.group("model").keys() == {"weight"}
    assert loaded.group("optim").keys() == {"weight.exp_avg", "weight.step"}


def test_a_run_that_never_saved_has_no_checkpoint(tmp_path: Path) -> None:
    assert store(tmp_path / "nothing").load_newest() is None


def test_the_newest_and_the_permanent_ones_stay(tmp_path: Path) -> None:
    kept = store(tmp_path, keep=2, permanent_every=30)
    for step in range(10, 100, 10):
        kept.save(checkpoint(step))
    assert names(tmp_path) == ["step_000030", "step_000060", "step_000080", "step_000090"]


def test_the_order_is_that_of_the_steps_not_of_the_names(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        store(tmp_path).save(checkpoint(step))
    loaded = store(tmp_path).load_newest()
    assert loaded is not None and loaded.state["step"] == 1_000_000


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "bit flip in tensors": lambda path: flip_a_bit(path / TENSORS),
    "bit flip in state": lambda path: flip_a_bit(path / STATE),
    "truncated tensors": lambda path: (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-8]),
    "no tensors": lambda path: (path / TENSORS).unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "manifest is no JSON": lambda path: (path / MANIFEST).write_text("{"),
    "manifest of another kind": lambda path: (path / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        store(tmp_path).save(checkpoint(step))
    DAMAGES[damage](tmp_path / "step_000020")
    with caplog.at_level(logging.WARNING):
        loaded = store(tmp_path).load_newest()
    assert loaded is not None and loaded.state["step"] == 10
    assert "step_000020 is damaged" in caplog.text
    assert names(tmp_path) == ["step_000010", "step_000020.damaged"]
    store(tmp_path).save(checkpoint(20))  # the place is free again
    again = store(tmp_path).load_newest()
    assert again is not None and again.state["step"] == 20


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(10))
    flip_a_bit(tmp_path / "step_000010" / TENSORS)
    with pytest.raises(CheckpointError, match="no checkpoint in .* is readable"):
        store(tmp_path).load_newest()


def test_what_a_killed_save_left_is_ignored_and_replaced(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(10))
    leftover = tmp_path / ".step_000020.tmp"
    leftover.mkdir()
    (leftover / TENSORS).write_bytes(b"half")
    loaded = store(tmp_path).load_newest()
    assert loaded is not None and loaded.state["step"] == 10
    store(tmp_path).save(checkpoint(20))
    assert names(tmp_path) == ["step_000010", "step_000020"]


def test_a_full_disk_leaves_the_earlier_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path).save(checkpoint(10))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.write_json", full)
    with pytest.raises(CheckpointError, match="step_000020 cannot be written: .*No space left.*intact"):
        store(tmp_path).save(checkpoint(20))
    assert names(tmp_path) == ["step_000010"]


def test_the_digest_of_parameters_sees_every_bit_name_shape_and_dtype() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    variants = [
        base,
        {**base, "a": torch.full((2, 3), -0.0)},
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({parameters_sha256(variant) for variant in variants}) == len(variants)
    assert parameters_sha256(base) == parameters_sha256(dict(reversed(base.items())))


@pytest.mark.parametrize(
    "tensors", [{}, {"w": torch.zeros(3)}, {"w": torch.zeros(2).bfloat16()}, {"w": torch.zeros(2), "x": torch.zeros(1)}]
)
def test_parameters_are_never_loaded_from_what_does_not_fit(tensors: dict[str, torch.Tensor]) -> None:
    parameters = {"w": torch.ones(2)}
    with pytest.raises(CheckpointError, match="does not fit the model"):
        copy_into(parameters, tensors)
    assert torch.equal(parameters["w"], torch.ones(2))


def test_nothing_but_tensors_and_json_is_written(tmp_path: Path) -> None:
    path = store(tmp_path).save(checkpoint(10))
    assert names(path) == sorted([TENSORS, STATE, MANIFEST])
    assert json.loads((path / STATE).read_text())["step"] == 10
