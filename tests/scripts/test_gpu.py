"""scripts/gpu.sh and the page of its figures, without a GPU."""

import json
import os
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import compose
from scripts import bench, bench_optim, bench_page, bench_train

ROOT = Path(__file__).parents[2]
PARTS = {
    "1": ["doctor", "pytest", *["train"] * 4],
    "2": ["optim"] * 6,
    "3": ["train.py", "train.py", "checkpoint"],
}
SECONDS = 600  # of a part


def dry_run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "gpu.sh"), *arguments]
    return subprocess.run(
        command, env=os.environ | {"DRY": "1"} | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_commands_are_ones_that_the_programs_take(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Namespace] = []
    for name, benchmark in bench.BENCHMARKS.items():
        monkeypatch.setitem(bench.BENCHMARKS, name, benchmark._replace(run=taken.append))
    done, found = dry_run(part, str(tmp_path), PEER="/a peer"), []
    assert done.returncode == 0
    lines = list(map(shlex.split, done.stdout.splitlines()))
    assert sum(int(seconds) for seconds, *_ in lines) <= SECONDS
    for _, _, program, *arguments in lines:
        name = Path(program).name
        if name == "bench.py":
            assert bench.main(arguments) == 0
            name = arguments[0]
        elif name == "train.py":
            assert compose(arguments).profile
        found.append({"doctor.py": "doctor", "-m": "pytest"}.get(name, name))
    assert found == PARTS[part]
    if part == "1":
        assert {each.peer for each in taken} == {"/a peer"}
    else:
        for option in (option for each in taken if "optim" in each for option in each.optim):
            bench_optim.optimizer_node(option)


def test_an_unknown_part_is_refused() -> None:
    done = dry_run("4")
    assert (done.returncode, done.stderr) == (2, "error: the part is 1, 2, 3 or all, not 4\n")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = dry_run("all", str(tmp_path / "figures"), DRY="")
    assert (done.returncode, (tmp_path / "figures").exists()) == (2, False)
    assert done.stderr.startswith("error: torch finds no CUDA device here")


def test_on_a_gpu_nanogpt_is_measured_once_with_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is shipped with them: bf16, compiled, fused AdamW."""
    (tmp_path / "model.py").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = Namespace(peer=str(tmp_path), precision="bf16", compile=True, steps=5, warmup=1)
    found = bench_train.variants_of(arguments, {})
    assert list(found) == ["ours", bench_train.NARROW, bench_train.ON_GPU]
    theirs, ours = found[bench_train.ON_GPU], found["ours"]
    assert {name for name in ours if ours[name] != theirs[name]} == {"peer", "tuned_allocator"}
    assert ours["fused"] and ours["compile"]


def training(model: str, variant: str, seconds: list[float]) -> dict[str, Any]:
    of_step = {"tokens": 12_288, "flops": 12_288 * 855e6, "peak_flops": 989e12, "peak_bytes": 20e9}
    return {
        "model": model,
        "variant": variant,
        "settings": {"batch": 12, "block_size": 1024},
        "seconds": seconds,
    } | of_step


def figures(machine: str) -> str:
    results = [{**training("gpt2_small", "ours", [0.03]), "optimizer": "lion"}]
    return json.dumps({"machine": machine, "results": results})


def optimizer(name: str, seconds: float) -> dict[str, Any]:
    return {"model": "gpt2_small", "optimizer": name, "seconds": [seconds] * 6, "state_bytes": 995_800_000}


def test_the_page_has_what_was_measured_between_its_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, ours = tmp_path / "page.md", training("gpt2_small", "ours", [0.026] * 6)
    page.write_text(f"before\n{bench_page.BEGIN}old\n{bench_page.END}after\n")
    command = ["page", str(tmp_path), "--page", str(page)]
    assert bench.main(command) == 2
    assert "has no train-*.json; bash scripts/gpu.sh writes it" in capsys.readouterr().err
    files = {
        "train-gpt2_small-12": [ours, training("gpt2_small", bench_train.ON_GPU, [0.0286] * 6)],
        "optim-lion": [optimizer(bench_page.BASELINE, 0.001), optimizer("lion:lr=1", 0.001)],
        "optim-muon": [optimizer(bench_page.BASELINE, 0.001), optimizer("muon", 0.00535)],
    }
    for name, results in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": "an H100, torch 2", "results": results}))
    assert bench.main(command) == 0
    before, *lines, after = page.read_text().splitlines()
    assert (before, after) == ("before", "after")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    # 12,288 tokens in 26 ms; of 989 TFLOP/s 10.5 TFLOP in 26 ms.
    assert rows[1] == ["gpt2_small, 12 x 1024", "ours", "472,615 ± 0%", "40.9%", "20.0", ""]
    assert rows[2][1:] == ["nanoGPT's model", "429,650 ± 0%", "37.1%", "20.0", "1.10 (1.10 to 1.10)"]
    # 524,288 tokens take 42.7 times 25 ms, 65,536 5.33 times, and 1 ms of AdamW.
    added = [(0.00535 - 0.001) / (0.025 * tokens / 12_288 + 0.001) for tokens in (524_288, 65_536)]
    lion, muon = rows[4:]
    assert lion == ["lion:lr=1", "1.00 ± 0%", "1.00 (1.00 to 1.00)", "+0.0%", "+0.0%", "", "996"]
    assert muon == ["muon", "5.35 ± 0%", "5.35 (5.35 to 5.35)", *(f"{each:+.1%}" for each in added), "+3%", "996"]
    page.write_text("no marks")
    assert bench.main(command) == 2
    assert "has not both marks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train-a": "{bad"}, "train-a.json is no JSON"),
        ({"train-a": "[]"}, "train-a.json must hold a JSON object, not a list"),
        ({"train-a": "{}"}, "train-a.json has no machine and results"),
        ({"train-a": figures("a")}, "has no optim-*.json; bash scripts/gpu.sh writes it"),
        ({"train-a": figures("a"), "optim-a": figures("b")}, "has figures of several machines: a; b"),
        ({"train-a": figures("a"), "optim-a": figures("a")}, "optim-*.json has no 'torch AdamW, fused' for gpt2_small"),
    ],
)
def test_figures_of_something_else_are_refused(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    (page := tmp_path / "page.md").write_text(f"{bench_page.BEGIN}{bench_page.END}")
    assert bench.main(["page", str(tmp_path), "--page", str(page)]) == 2
    assert message in capsys.readouterr().err


def test_the_page_in_the_docs_has_the_marks() -> None:
    text = bench_page.PAGE.read_text("utf-8")
    assert text.index(bench_page.BEGIN) < text.index(bench_page.END)
