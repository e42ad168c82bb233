import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import world

from scripts import bench, bench_checkpoint, bench_optim, benchmarking
from scripts.benchmarking import interleaved, median_and_spread

SCRIPT = """
import json, sys, time
sys.path.insert(0, {root!r})
from scripts.benchmarking import serve
def make(settings):
    print("noise that must not reach the answers")
    return lambda: open(settings["log"], "a").write(settings["name"])
serve(json.loads(sys.argv[2]), make)
"""


@pytest.fixture
def taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the other tests every round is disturbed."""
    monkeypatch.setattr(benchmarking, "MOST_RETAKES", 1)


@pytest.mark.usefixtures("taken_once")
def test_rounds_go_around_the_variants(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    variants = {name: {"name": name, "log": str(log), "warmup": 1} for name in "ab"}
    seconds = interleaved(script, variants, rounds=3)
    assert log.read_text() == "ab" + "ababab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    assert all(each > 0 for found in seconds.values() for each in found)


@pytest.mark.parametrize(
    ("seconds", "foreign", "expected"),
    [(1.0, 0.05, False), (1.0, 0.15, True), (0.01, 0.02, False), (0.01, 0.04, True), (3.0, 0.2, False)],
)
def test_a_round_is_disturbed_by_a_tenth_of_a_core(seconds: float, foreign: float, expected: bool) -> None:
    assert benchmarking.is_disturbed(seconds, foreign) is expected


def test_disturbed_rounds_are_taken_again_and_those_that_stay_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarking, "PAUSE_SECONDS", 0.0)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom itertools import count\nprint('ready', flush=True)\nn = count(1)\n"
        "for _ in sys.stdin:\n    i = next(n)\n"
        "    print(i, 9 if sys.argv[2] == '{\"busy\": true}' or i < 3 else 0, 1, flush=True)"
    )
    assert interleaved(script, {"a": {}}, rounds=2) == {"a": [3.0, 4.0]}
    assert capsys.readouterr().err == ""
    assert interleaved(script, {"a": {"busy": True}}, rounds=1) == {"a": [float(benchmarking.MOST_RETAKES)]}
    assert "beside 1 of 1 rounds other programs took over 10% of a core" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the kernel says what other processes take")
def test_what_other_processes_take_is_counted_and_what_this_one_takes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = benchmarking.foreign_seconds()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        deadline = time.monotonic() + 30
        while benchmarking.foreign_seconds() - before < 0.2 and time.monotonic() < deadline:
            time.sleep(0.05)
        taken = benchmarking.foreign_seconds() - before
        other.kill()  # from here on it counts as this process's own
    assert taken >= 0.2
    frozen = Path("/proc/stat").read_text()
    monkeypatch.setattr(Path, "read_text", lambda path: frozen)
    before, own = benchmarking.foreign_seconds(), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    assert before - benchmarking.foreign_seconds() >= 0.18


def test_ratios_are_paired_and_have_an_interval_from_six_rounds() -> None:
    ours = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert benchmarking.in_words([2 * each for each in ours], ours) == "2.00 (2.00 to 2.00)"
    assert benchmarking.in_words([3.0, 4.0], [1.0, 2.0]) == "2.50"


def test_a_variant_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ended early"):
        interleaved(script, {"a": {"warmup": 0}}, rounds=1)


def test_a_process_that_measures_ends_without_a_word_when_it_is_interrupted() -> None:
    optim = json.dumps({"_target_": "torch.optim.SGD"})
    settings = {"benchmark": "tensors", "optim": optim, "side": 2, "count": 1, "steps": 1, "warmup": 0}
    command = [sys.executable, "scripts/bench.py", "worker", json.dumps(settings)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=world.ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == 75


def test_the_figures_are_the_median_and_the_relative_half_width_of_the_middle_half() -> None:
    assert median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, pytest.approx((4.5 - 1.5) / 2 / 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "nowhere"], "--peer nowhere is no nanoGPT checkout: it has no model.py"),
        (["--model", "nanno"], "model=nanno does not exist; the nearest valid one is 'nano'"),
        (["--model", "nano", "llama_nano"], "--model llama_nano is no GPT; this benchmark measures GPT-2's"),
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["train", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.usefixtures("taken_once")
def test_the_training_benchmark_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(
        ["train", "--model", "nano", "--batch", "1", "--rounds", "2", "--warmup", "1", "--json", str(tmp_path / "f")]
    )
    (found,) = json.loads((tmp_path / "f").read_text())["results"]
    assert (found["model"], found["variant"], len(found["seconds"])) == ("nano", "ours", 2)
    assert found["tokens"] == 256 and found["flops"] > 256 * 6 * 4e6 and found["peak_bytes"] > 4 * 4 * 4e6
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("taken_once")
def test_the_optimizer_benchmark_knows_state_floor_and_foreign_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.py"
    foreign.write_text("import torch\nclass Slow(torch.optim.SGD):\n    pass\n")
    names = ["lion", "sophiag:rho=0.1", f"{foreign}:Slow"]
    file = tmp_path / "f.json"
    sizes = ["--model", "nano", "--rounds", "2", "--steps", "1"]
    assert bench.main(["optim", "--optim", *names, *sizes, "--json", str(file)]) == 0
    found = {result["optimizer"]: result for result in json.loads(file.read_text())["results"]}
    assert list(found) == ["torch AdamW, fused", *names]
    assert found["sophiag:rho=0.1"]["state_bytes"] == 2 * found["lion"]["state_bytes"] == 8 * 4273664
    assert found[names[2]]["state_bytes"] is None
    assert all(len(result["seconds"]) == 2 for result in found.values())
    assert "x fused AdamW" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lionn", "optim=lionn does not exist; the nearest valid one is 'lion'"),
        ("lion:betaz=1", "unknown key 'optim.betaz'; the nearest valid one is 'optim.betas'"),
        ("nowhere.py:X", "--optim nowhere.py:X: there is no Python file nowhere.py"),
    ],
)
def test_an_unknown_optimizer_gets_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["optim", "--optim", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.slow
def test_the_table_of_state_holds_every_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.json"
    assert bench.main(["memory", "--model", "gpt2_small", "--json", str(file)]) == 0
    found = {each["optimizer"]: each["state_bytes"] for each in json.loads(file.read_text())["results"]}
    assert found.keys() == {path.stem for path in (Path(__file__).parents[2] / "configs/optim").glob("*.yaml")}
    padded = 124_439_808 + (50304 - 50257) * 768
    assert found["adamw"] == found["adamw_ours"] == found["sophiag"] == 8 * padded
    assert found["lion"] == found["signum"] == 4 * padded


def test_an_override_may_be_a_list() -> None:
    node = bench_optim.optimizer_node("adamw_ours:betas=[0.8,0.9],lr=0.5")
    assert (list(node["betas"]), node["lr"]) == ([0.8, 0.9], 0.5)


def test_a_model_to_allocate_that_is_not_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["memory", "--model", "nano", "--allocate", "nanoo"]) == 2
    assert capsys.readouterr().err == "error: --allocate nanoo is none of the models of --model: nano\n"


OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs/optim").glob("*.yaml"))


def figures_of_ranks(folder: Path, placement: str, n: int) -> dict[str, list[dict[str, float]]]:
    """Of all options, by rank, on a small GPT."""
    model = {"_target_": "model.GPT", "vocab_size": 256, "n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 32}
    options = {option: bench_optim.optimizer_node(option) for option in OPTIONS}
    settings = {"warmup": 0, "steps": 1, "tuned_allocator": False, "model": model, "optim": options}
    file = folder / f"{placement}-{n}"
    world.run(n, bench_optim.measure_rank, {**settings, "placement": placement, "file": str(file)})
    return dict(json.loads(file.read_text()))


@pytest.mark.slow
def test_ranks_share_arithmetic_and_bytes(tmp_path: Path) -> None:
    single, ddp, fsdp2 = (figures_of_ranks(tmp_path, *world) for world in (("single", 1), ("ddp", 4), ("fsdp2", 4)))
    assert single.keys() == ddp.keys() == set(OPTIONS)
    assert fsdp2.keys() == set(OPTIONS) - {"sophiah"}  # needs second derivatives
    for option, ranks in fsdp2.items():
        (alone,) = single[option]
        assert max(rank["held_bytes"] for rank in ranks) <= 0.30 * alone["held_bytes"], option
        assert max(rank["arithmetic"] for rank in ranks) <= 0.30, option
        assert sum(rank["arithmetic"] for rank in ranks) == pytest.approx(1), option
    for option in ("soap", "shampoo"):
        assert max(rank["arithmetic"] for rank in ddp[option]) <= 0.30
        replicated = 2 * (single[option][0]["parameter_bytes"] - 4 * 4 * 12 * 64**2)  # AdamW's: all but the matrices
        owned = single[option][0]["state_bytes"] - replicated
        assert max(rank["state_bytes"] - replicated for rank in ddp[option]) <= 0.30 * owned
    assert all(rank["arithmetic"] == 1 for rank in ddp["adamw"])
    assert {rank["state_bytes"] for rank in ddp["adamw"]} == {single["adamw"][0]["state_bytes"]}


def test_memory_is_counted_with_its_padding_and_once() -> None:
    buffer = torch.zeros(10)
    assert bench_optim._storage_bytes([buffer[:3], buffer[3:7], torch.zeros(2)]) == 40 + 8


@pytest.mark.slow
@pytest.mark.usefixtures("taken_once")
def test_the_optimizer_benchmark_compares_ranks_with_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.json"
    sizes = ["--model", "nano", "--rounds", "1", "--steps", "1", "--warmup", "0"]
    assert bench.main(["optim", "--parallel", "2", "--optim", "lion", *sizes, "--json", str(file)]) == 0
    found = {(each["placement"], each["ranks"]): each for each in json.loads(file.read_text())["results"]}
    assert list(found) == [("single", 1), ("ddp", 2), ("fsdp2", 2)]
    assert found["single", 1]["fullest"]["state_bytes"] == 4 * 4273664
    assert found["fsdp2", 2]["fractions"]["state_bytes"] == pytest.approx(0.5, abs=1e-3)
    assert all(len(ranks) == n for (_, n), each in found.items() for ranks in each["rounds"])
    assert "8.5 (0.500)" in capsys.readouterr().out


def test_ranks_that_cannot_be_started_get_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["optim", "--optim", "lion", "--parallel", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --parallel 0: a number of processes is at least 1")


def test_the_checkpoint_benchmark_compares_saves_and_cleans_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"_target_": "model.GPT", "vocab_size": 256, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    monkeypatch.setattr(bench_checkpoint, "model_settings", lambda name: tiny)
    monkeypatch.setattr(bench_checkpoint, "tune_allocator", lambda: None)  # it is for good
    disk, file = tmp_path / "disk", tmp_path / "f.json"
    disk.mkdir()
    arguments = ["checkpoint", "--model", "nano", "--rounds", "2", "--folder", str(disk), "--json", str(file)]
    assert bench.main(arguments) == 0
    (found,) = json.loads(file.read_text())["results"]
    seconds = found["seconds"]
    assert {len(seconds[key]) for key in ("torch.save", "synchronous", "blocked", "lost")} == {2}
    assert found["blocked_fraction"] == pytest.approx(sum(seconds["blocked"]) / sum(seconds["synchronous"]))
    n_parameters = (256 + 8) * 16 + 12 * 16**2 + 9 * 16 + 3 * 2 * 16  # embeddings, matrices, biases, LayerNorms
    assert found["checkpoint_bytes"] == 12 * n_parameters + 16 * 4  # AdamW's, and a step for each of 16 tensors
    assert "beside a save" in capsys.readouterr().out
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "/nowhere"], "--folder /nowhere: there is no such folder"),
        (["--rounds", "0"], "argument --rounds: must be a whole number from 1 to 100000, got '0'"),
    ],
)
def test_the_checkpoint_benchmark_refuses_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["checkpoint", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_disk_that_takes_no_checkpoint_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.write_json", full)
    step, tensors = (lambda: None), {"model.weight": torch.ones(3)}
    with pytest.raises(ValueError, match="did not take a checkpoint"):
        bench_checkpoint._seconds(step, tensors, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("taken_once")
def test_small_tensors_are_measured_beside_torchs_foreach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--count", "20", "--side", "4", "--steps", "2", "--rounds", "2"]
    assert bench.main(["tensors", "--optim", "sophiag", "adafactor", *sizes, "--json", str(tmp_path / "f")]) == 0
    found = json.loads((tmp_path / "f").read_text())["results"]
    names = ["torch AdamW, foreach", "torch Adafactor, foreach", "sophiag", "adafactor"]
    assert [(each["optimizer"], each["count"], len(each["seconds"])) for each in found] == [(n, 20, 2) for n in names]
    assert "step of 20 matrices, 4 x 4" in capsys.readouterr().out
