"""The laws of a run, on a GPT small enough to train in a fraction of a second."""

import json
import logging
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from every_option import FEWEST, few_fast
from killing import Killed, kill_at
from remains import ends, metrics, result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import assembly.ending
import assembly.run
import assembly.setting_up
import train
from assembly.data import data_path
from assembly.run import Run
from configs import RunConfig, compose
from data import TokenLoader
from trainer.checkpoint import CheckpointStore
from trainer.metrics import read_rows
from trainer.ranks import Ranks
from trainer.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path, tiny: list[str]) -> Callable[..., int]:
    """Runs train.py's main in this process: run("name", *overrides)."""

    def config(name: str, *overrides: str) -> RunConfig:
        settings = [each for each in tiny if not (each.startswith("model.dropout") and "model=llama_nano" in overrides)]
        return compose([*settings, f"run_dir={tmp_path / name}", *overrides])

    def call(name: str, *overrides: str) -> int:
        return train.main(config(name, *overrides))

    call.config = config  # type: ignore[attr-defined]
    return call


def test_a_run_leaves_what_it_promises(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a") == 0
    folder, found = tmp_path / "a", result(tmp_path / "a")
    assert found["status"] == "finished"
    assert (found["step"], found["tokens"]) == (12, 12 * 8 * 16)
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {"git", "packages", "device", "precision", "data"} <= json.loads((folder / "env.json").read_text()).keys()
    assert "optim:" in (folder / "config.yaml").read_text()
    rows = metrics(folder)
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 5, 10, 12]
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 2, 4, 6, 8, 10, 11]
    assert rows[-1]["val/loss"] == found["val/loss"] < rows[0]["val/loss"]
    bits_per_nat = [row["val/bits_per_byte"] / row["val/loss"] for row in rows if "val/loss" in row]
    assert bits_per_nat == pytest.approx([bits_per_nat[0]] * 4) and rows[-1]["val/bits_per_byte"] > 0
    assert found["val/bits_per_byte"] == rows[-1]["val/bits_per_byte"]
    assert all({"step", "tokens", "seconds", "flops"} <= row.keys() for row in rows)
    printed = capsys.readouterr().out
    assert f"val/loss {found['val/loss']:.4f}" in printed
    assert str(folder / "loss.png") in printed


def test_a_run_whose_last_checkpoint_cannot_be_written_says_so_and_how_to_have_it(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, complete = tmp_path / "a", CheckpointStore._complete

    def full_at_the_end(self: CheckpointStore, path: Path, *arguments: Any) -> None:
        if path.name == "step_000008":
            raise OSError(28, "No space left on device")
        complete(self, path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_complete", full_at_the_end)
        assert run("a", "max_steps=8", "save_every=4") == 0
    assert f"the newest is of step 4; to have it, free disk space, delete {folder / 'result.json'} and" in (
        capsys.readouterr().out
    )
    before = result(folder)
    (folder / "result.json").unlink()
    assert run("a", "max_steps=8", "save_every=4") == 0
    assert (folder / "checkpoints" / "step_000008").is_dir()
    assert result(folder)["params_sha256"] == before["params_sha256"]
    assert "hint: the checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "clipped"), [("1e-3", 12), ("1e3", 0), ("null", 0)])
def test_the_steps_whose_gradient_was_clipped_are_counted(
    run: Callable[..., int], tmp_path: Path, limit: str, clipped: int
) -> None:
    assert run("c", f"grad_clip={limit}") == 0
    counts = [row["clipped_steps"] for row in metrics(tmp_path / "c") if "clipped_steps" in row]
    assert counts[-1] == clipped
    assert counts[0] == min(clipped, 1)


def test_a_validation_set_with_fewer_sequences_is_evaluated_as_a_whole_and_a_line_says_so(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("more", "eval_sequences=100000", "max_steps=2") == 0
    said = re.search(r"evaluating on (\d+) sequences, not on eval_sequences=100000: ", capsys.readouterr().out)
    assert said is not None
    assert run("all", f"eval_sequences={said[1]}", "max_steps=2") == 0
    assert "evaluating on" not in capsys.readouterr().out
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("more", "all")]
    assert results[0]["val/loss"] == results[1]["val/loss"]


@pytest.mark.usefixtures("undrawn")
@few_fast("optimizer", few=FEWEST)
def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    run: Callable[..., int], tmp_path: Path, optimizer: str
) -> None:
    assert run("uninterrupted", f"optim={optimizer}") == 0
    for step in (1, 4, 8, 11):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, step)
            run("killed", f"optim={optimizer}")
    assert run("killed", f"optim={optimizer}") == 0
    assert ends(tmp_path / "killed") == ends(tmp_path / "uninterrupted")


def test_another_architecture_trains_and_continues_bit_for_bit(run: Callable[..., int], tmp_path: Path) -> None:
    llama = ("model=llama_nano", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16")
    assert run("uninterrupted", *llama) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 7)
        run("interrupted", *llama)
    assert run("interrupted", *llama) == 0
    ends_of = [ends(tmp_path / name) for name in ("uninterrupted", "interrupted")]
    assert ends_of[0] == ends_of[1]
    rows = metrics(tmp_path / "uninterrupted")
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]


def test_a_run_killed_after_its_last_step_still_ends_the_same(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("uninterrupted") == 0

    def killed(*arguments: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunDirectory, "finish", killed)
        run("killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    assert run("killed") == 0
    assert ends(tmp_path / "killed") == ends(tmp_path / "uninterrupted")


def test_a_run_killed_while_it_is_shown_has_its_result(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        assert result(tmp_path / "killed")["status"] == "finished"
        raise Killed

    for what in ("plot_loss", "sample"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(assembly.ending, what, killed)
            run("killed")
        (tmp_path / "killed" / "result.json").unlink()


@pytest.mark.parametrize("what", ["sample", "plot_loss", "print_summary"])
def test_what_fails_after_the_last_step_costs_the_run_nothing(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise LookupError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly.ending, what, fail)
        assert run("a") == 0
    assert result(tmp_path / "a")["status"] == "finished"
    assert "failed (LookupError: planted); the run itself is unharmed" in caplog.text


def test_what_the_main_rank_tells_the_others_can_be_sent(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_main = Ranks.from_main

    def sent(ranks: Ranks, *arguments: Any) -> Any:
        return pickle.loads(pickle.dumps(from_main(ranks, *arguments)))

    monkeypatch.setattr(Ranks, "from_main", sent)
    settings = ["data/tokenizer=bpe", "data.tokenizer.vocab_size=300", f"data.root={tmp_path}", "data.prompt=abc"]
    assert train.main(compose([*tiny, *settings, f"run_dir={tmp_path / 'a'}", "max_steps=1"])) == 0
    assert "\n\nabc" in capsys.readouterr().out


def test_data_that_disappear_after_the_last_read_cost_neither_result_nor_sample(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = train.finish

    def without_data(run: Run, status: str) -> None:
        shutil.rmtree(run.train_data.path)
        finish(run, status)

    monkeypatch.setattr(train, "finish", without_data)
    folder = tmp_path / "a"
    assert train.main(compose([*tiny, f"run_dir={folder}", f"data.root={tmp_path}", "data.prompt=abc"])) == 0
    assert result(folder)["status"] == "finished"
    assert "\n\nabc" in capsys.readouterr().out


@pytest.mark.parametrize("prompt", ["", "é 模型 \n {", "x" * 100])
def test_any_prompt_is_continued(
    tmp_path: Path, tiny: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], prompt: str
) -> None:
    config = compose([*tiny, f"run_dir={tmp_path / 'a'}", "max_steps=2"])
    config.data.prompt = prompt
    assert train.main(config) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert prompt in capsys.readouterr().out


@pytest.mark.parametrize("where", ["parameters", "val/loss"])
def test_a_run_that_ends_with_nan_has_diverged_and_its_result_is_json(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if where == "parameters":
            assert run("n", "optim.lr=1e30", "schedule=constant", "schedule.warmup_steps=0", "max_nonfinite=null") == 3
        else:
            patch.setattr(train.Strategy, "evaluate", lambda *arguments: math.nan)
            assert run("n") == 3
    found = json.loads((tmp_path / "n" / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["status"] == "diverged"
    assert found["val/loss"] is None
    printed = capsys.readouterr().err
    assert "at step 11 parameters or val/loss were not finite after the last step" in printed


def test_parameters_that_are_not_finite_replace_no_checkpoint(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, model_of, models = TokenLoader.batches, assembly.setting_up.model_of, list[torch.nn.Module]()

    def spoiled(loader: TokenLoader, step: int) -> Any:
        if step == 7:
            torch.nn.init.constant_(next(models[-1].parameters()), math.nan)
        return batches(loader, step)

    def made(*arguments: Any) -> Any:
        models.append(model_of(*arguments))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly.setting_up, "model_of", made)
        patch.setattr(TokenLoader, "batches", spoiled)
        assert run("n", "keep_checkpoints=1", "max_nonfinite=null") == 3
    assert [path.name for path in (tmp_path / "n" / "checkpoints").iterdir()] == ["step_000006"]
    assert "step_000009 is not written: model." in caplog.text
    assert "last good checkpoint: " in (printed := capsys.readouterr().err) and "step_000006; try" in printed


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_diverges_with_its_last_step_keeps_the_checkpoint_before(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    """The parameters are finite then, and their loss is not."""
    evaluate = train.evaluate

    def of_the_last_step_nan(run: Run) -> dict[str, float]:
        row = evaluate(run)
        return row if run.step < 12 else run.losses.__setitem__("val/loss", math.nan) or {"val/loss": math.nan}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", of_the_last_step_nan)
        assert run("n", f"keep_checkpoints={keep}", "save_every=4") == 3
    kept = sorted(path.name for path in (tmp_path / "n" / "checkpoints").iterdir())
    assert kept == ["step_000004", "step_000008"][-keep:]
    assert "step_000008; try" in capsys.readouterr().err


def test_a_checkpoint_whose_parameters_are_not_finite_is_not_continued(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Strategy, "has_finite_parameters", lambda self: False)
        assert run("a") == 2
    assert "step_000003 has parameters that are not finite; delete it" in capsys.readouterr().err


def test_what_killed_saves_left_is_gone_once_the_run_goes_on(run: Callable[..., int], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run("a")
    (tmp_path / "a" / "checkpoints" / ".step_000004.tmp").mkdir()
    (tmp_path / "a" / ".metrics.jsonl.tmp").touch()
    assert run("a") == 0
    assert not list((tmp_path / "a").rglob("*.tmp"))


def test_a_refused_run_leaves_the_directory_as_it_was_found(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("new/run", "model.block_size=1000000") == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert run("mine") == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def start(folder: Path, tiny: list[str], *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *tiny, f"run_dir={folder}", *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.is_file() and any(row["step"] >= step for row in read_rows(file)):
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)]
)
def test_the_same_command_continues_after_a_signal(
    run: Callable[..., int], tmp_path: Path, tiny: list[str], number: signal.Signals, status: int
) -> None:
    longer = "max_steps=200"
    process = start(tmp_path / "signalled", tiny, longer)
    wait_for_step(tmp_path / "signalled", 5, process)
    process.send_signal(number)
    printed, _ = process.communicate()
    assert process.returncode == status, printed
    if status == 75:
        assert result(tmp_path / "signalled")["status"] == "stopped"
        assert "the same command continues" in printed
    process = start(tmp_path / "signalled", tiny, longer)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run("uninterrupted", longer) == 0
    torch.set_num_threads(threads)
    assert ends(tmp_path / "signalled") == ends(tmp_path / "uninterrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_a_run_is_set_up_ends_it_and_the_same_command_begins_it(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly.setting_up, "open_data", lambda *arguments: os.kill(os.getpid(), number))
        assert train.as_rank(run.config("s")) == 75  # type: ignore[attr-defined]
    assert "the same command continues" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()
    assert signal.getsignal(number) is before
    assert run("s") == 0


def test_a_signal_while_modules_are_imported_gives_the_same_status() -> None:
    program = "import os, signal; from launch.stopping import exit_at_once; exit_at_once(); os.kill(os.getpid(), 15)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 75


def test_runs_that_differ_in_micro_batch_consume_the_same_tokens_and_agree(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    batches = TokenLoader.batches

    def recorded(loader: TokenLoader, step: int) -> Any:
        found = batches(loader, step)
        seen.setdefault(len(found), []).append(torch.cat([batch.inputs for batch in found]))
        return found

    monkeypatch.setattr(TokenLoader, "batches", recorded)
    for micro_batch in (8, 2):
        assert run(f"m{micro_batch}", f"micro_batch={micro_batch}", "model.dropout=0") == 0
    assert len(seen[1]) == len(seen[4]) == 12
    assert all(torch.equal(one, other) for one, other in zip(seen[1], seen[4], strict=True))
    eight, two = ([row["train/loss"] for row in metrics(tmp_path / m) if "train/loss" in row] for m in ("m8", "m2"))
    # fp32 sums in another order: a few ulps (1.2e-7) of a loss near 5, carried through 12 steps.
    assert two == pytest.approx(eight, rel=1e-5)


def poison(patch: pytest.MonkeyPatch, step: int, factor: float, steps: float = math.inf) -> None:
    """Multiplies the training loss by factor, `steps` steps long from `step` on; not that of evaluation."""
    counter = iter(range(10**6))

    def poisoned(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch.inputs, batch.targets)
        if not model.training:
            return loss
        return loss * factor if step <= next(counter) // 2 < step + steps else loss  # 2 micro-batches per step

    patch.setattr(train, "next_token_loss", poisoned)


@pytest.mark.parametrize(
    ("factor", "overrides", "message"),
    [
        (math.nan, ["max_nonfinite=2"], "at step 7 the loss or the gradient norm was not finite, 2 steps in a row"),
        (math.inf, ["max_nonfinite=1"], "at step 6 the loss or the gradient norm was not finite, 1 steps in a row"),
        (10.0, [], "at step 6 the loss jumped to "),
    ],
)
def test_a_diverged_run_says_so_and_keeps_its_last_good_checkpoint(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    overrides: list[str],
    message: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 6, factor)
        assert run("d", *overrides) == 3
    found = result(tmp_path / "d")
    assert found["status"] == "diverged"
    printed = capsys.readouterr().err
    assert message in printed
    assert "step_000006; try a lower optim.lr" in printed
    assert run("d", *overrides) == 3
    assert f"this run has diverged at step {found['step']}" in capsys.readouterr().out


@few_fast("optimizer")
def test_a_step_that_is_not_finite_is_skipped_counted_and_forgotten(
    run: Callable[..., int], tmp_path: Path, optimizer: str
) -> None:
    """Parameters and state after it are those before it: the next steps are as finite as ever."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 5, math.nan, steps=1)
        assert run("n", f"optim={optimizer}", "eval_every=1") == 0
    rows = {row["step"]: row for row in metrics(tmp_path / "n")}
    assert rows[5]["val/loss"] == rows[6]["val/loss"] != rows[7]["val/loss"]
    assert result(tmp_path / "n")["skipped_steps"] == 1
    assert math.isfinite(result(tmp_path / "n")["train/loss"])


def test_a_finished_run_is_recognised_and_left_alone(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file() and path.name != "lock"}
    assert run("a") == 0
    assert "this run has finished at step 12" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != "lock"} == before


def test_any_optimizer_of_torchs_interface_plugs_in_by_import_path(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("r", "optim._target_=torch.optim.RAdam", "~optim.fused") == 0
    assert result(tmp_path / "r")["status"] == "finished"


class Rows:
    """A sink of somebody's own."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, *, label: str, run_dir: Path, settings: dict[str, Any]) -> None:
        self.seen[:] = [label, run_dir.name, settings["max_steps"]]

    def write(self, row: Any) -> None:
        self.seen.append(row["step"])

    def close(self) -> None:
        self.seen.append("closed")


def test_any_sink_plugs_in_by_import_path(run: Callable[..., int]) -> None:
    assert run("a", f"+logging.mine._target_={__name__}.Rows", "+logging.mine.label=x") == 0
    assert Rows.seen == ["x", "a", 12, 0, 2, 4, 5, 6, 8, 10, 11, 12, "closed"]


class Broken:
    """A sink that takes three rows."""

    def __init__(self, *, run_dir: Path, settings: dict[str, Any]) -> None:
        self.left = 3

    def write(self, row: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise LookupError("planted")


def test_a_sink_that_fails_costs_the_run_nothing(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("a", f"+logging.mine._target_={__name__}.Broken") == 0
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "warning: the sink Broken failed (OSError: [Errno 28] No space left on device) and gets no more rows",
        "warning: closing the sink Broken failed (LookupError: planted); the run itself is unharmed",
    ]
    assert [row["step"] for row in metrics(tmp_path / "a")] == [0, 2, 4, 5, 6, 8, 10, 11, 12]


def test_wandb_offline_runs_beside_it(run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert run("w", "logging=wandb", "logging.wandb.mode=offline") == 0
    assert list((tmp_path / "w").glob("wandb/offline-run-*/run-*.wandb"))


def test_tensorboard_has_the_rows_of_metrics_jsonl_also_after_a_kill(run: Callable[..., int], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 8)
        run("t", "logging=[jsonl,tensorboard]")
    assert run("t", "logging=[jsonl,tensorboard]") == 0
    events = EventAccumulator(str(tmp_path / "t" / "tensorboard")).Reload()
    rows = [row for row in metrics(tmp_path / "t") if "train/loss" in row]
    found = events.Scalars("train/loss")
    assert [event.step for event in found] == [row["step"] for row in rows]
    assert [event.value for event in found] == pytest.approx([row["train/loss"] for row in rows])


def test_bf16_trains(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("b", "precision=bf16", "max_steps=4") == 0
    assert json.loads((tmp_path / "b" / "env.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_runs_and_is_logged(run: Callable[..., int], tmp_path: Path, schedule: str) -> None:
    assert run("s", f"schedule={schedule}", "max_steps=4", "log_every=1", "optim.lr=0.5") == 0
    rates = [row["lr"] for row in metrics(tmp_path / "s") if "lr" in row]
    assert rates[:2] == [0.25, 0.5]


@pytest.mark.parametrize("override", ["optim.lr=-1", "optim=lion optim.lr=-1", "schedule=wsd schedule.warmup_steps=99"])
def test_what_needs_no_data_is_checked_before_they_are_prepared(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert run("bad", *override.split(), f"data.root={tmp_path / 'new'}") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["micro_batch=3"],
            "global_batch=8 must be a multiple of micro_batch * ranks = 3 * 1 = 3; nearest: 6 or 9",
        ),
        (["model.block_size=1000000"], "block_size=1000000 is larger than the data"),
        (["model.n_layer=0"], "model.n_layer=0 must be >= 1"),
        (["model.n_head=3"], "model.n_embd=16 must be a multiple of model.n_head=3"),
        (["model=llama_nano", "model.n_embd=10"], "model.n_embd=10 / model.n_head=2 must be even"),
        (["model.vocab_size=100"], "model.vocab_size=100 is smaller than the data's vocabulary of 257"),
        (["schedule.warmup_steps=-1"], "schedule.warmup_steps=-1 must be >= 0"),
        (["data=files", "data.source.pattern=none/*.txt"], "run `python scripts/prepare_data.py data=files"),
        (["data=files", "data.source.pattern=none/*.txt"], "; and data.source.pattern='none/*.txt' matches no file"),
        (["resume=must"], "resume=must, but run_dir="),
        (["logging=wandb", "logging.wandb.mode=on"], "logging.wandb.mode='on' must be online, offline or off"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_the_directory_free(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    data_path(run.config("bad"))  # type: ignore[attr-defined]  # prepared, so that this says nothing later
    capsys.readouterr()
    assert run("bad", *overrides) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert run("bad") == 0


def test_a_trial_shorter_than_the_warm_up_runs_and_says_so(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("w", "max_steps=3", "schedule.warmup_steps=20", "log_every=1", "optim.lr=0.01") == 0
    assert "warning: max_steps=3 ends within the warm-up (schedule.warmup_steps=20)" in capsys.readouterr().err
    assert [row["lr"] for row in metrics(tmp_path / "w") if "lr" in row] == pytest.approx([0.0005, 0.001, 0.0015])


def test_another_configuration_is_refused_with_the_differing_keys(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run("a")
    before = (tmp_path / "a" / "config.yaml").read_bytes()
    assert run("a", "optim.lr=0.125", "seed=2") == 2
    printed = capsys.readouterr().err
    assert "optim.lr=0.125 (there: " in printed
    assert "seed=2 (there: 1337)" in printed
    assert (tmp_path / "a" / "config.yaml").read_bytes() == before
    assert run("a", "micro_batch=8", "save_every=4") == 0  # these may change


def test_a_directory_in_use_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from pathlib import Path; from trainer.run_directory import RunDirectory\n"
    code += (
        "held = RunDirectory(Path(sys.argv[1]), resume='auto', differences=lambda p: [])\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert run("a") == 2
        holder.kill()
    assert f"is in use by process {holder.pid}" in capsys.readouterr().err


def test_a_damaged_checkpoint_costs_one_interval_and_not_the_result(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("uninterrupted") == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 8)
        run("a")
    file = tmp_path / "a" / "checkpoints" / "step_000006" / "shard-00001-model-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert run("a") == 0
    assert "step_000006 is damaged" in caplog.text
    assert ends(tmp_path / "a") == ends(tmp_path / "uninterrupted")


def test_other_data_than_the_run_began_with_are_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run("a")
    state = next((tmp_path / "a" / "checkpoints").glob("step_*")) / "state.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assembly.branch.data_checksums", lambda run: {"train": "other", "val": "other"})
        assert run("a") == 2
    assert "was trained on other data" in capsys.readouterr().err
    assert state.is_file()


def test_evaluation_sees_the_same_tokens_every_time(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    batches = assembly.run.eval_batches

    def recorded(*arguments: Any, **settings: Any) -> Any:
        found = list(batches(*arguments, **settings))
        seen.append(torch.cat([batch.inputs for batch in found]))
        return iter(found)

    monkeypatch.setattr(assembly.run, "eval_batches", recorded)
    assert run("e") == 0
    assert len(seen) == 5
    assert all(torch.equal(tokens, seen[0]) for tokens in seen)


def test_the_run_directory_is_released_at_the_end(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("a") == 0
    RunDirectory(tmp_path / "a", resume="auto", differences=lambda path: []).close()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "result.json", "lock"])
def test_a_run_directory_whose_files_lie_elsewhere_is_refused_and_nothing_there_is_touched(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run("a")
    file, elsewhere = tmp_path / "a" / name, tmp_path / "elsewhere"
    if file.exists():
        file.rename(elsewhere)
    else:
        elsewhere.write_text("{}")
    file.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert run("a") == 2
    printed = capsys.readouterr().err.strip()
    assert "symbolic link" in printed and len(printed.splitlines()) == 1
    assert elsewhere.read_bytes() == before
