"""docs/nanogpt.md: no option or command of nanoGPT or of Sophia's code is missing, and what they become exists."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import train
from configs import compose
from configs.composition import known_keys
from scripts import bench, export, prepare_data, sample
from tests.commands_in_docs import DOCS, commands_of

TEXT = (DOCS / "nanogpt.md").read_text("utf-8")
SCRIPT = re.compile(r" (?:train|scripts/prepare_data)\.py ")  # what takes the overrides of a run
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
OF_TRAIN = [title for title in SECTIONS if "sample.py" not in title and "bench.py" not in title]

# The globals of nanoGPT's scripts that its configurator sets, at commit 3adf61e of karpathy/nanoGPT.
NANOGPT_TRAIN = """out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log
wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout
bias learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
device dtype compile"""
NANOGPT_SAMPLE = "init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype compile"
NANOGPT_BENCH = "batch_size block_size bias real_data seed device dtype compile profile"
# Those of train_sophiag.py and train_adam.py that nanoGPT's train.py does not have, at a7e1572 of Liuhong99/Sophia.
SOPHIA = "total_bs optimizer_name rho interval hess_interval variant scale_attn_by_inverse_layer_idx"
COMMANDS = """train_shakespeare_char.py train_gpt2.py finetune_shakespeare.py eval_gpt2.py eval_gpt2_medium.py
eval_gpt2_large.py eval_gpt2_xl.py configurator.py prepare.py train_gpt2_small_sophiag.py train_gpt2_small_adam.py
update_hessian maximize capturable"""


def rows(section: str) -> Iterator[list[str]]:
    """The cells of the rows of a section's tables, headings left out."""
    for line in SECTIONS[section].splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("nanoGPT's train.py", NANOGPT_TRAIN),
        ("nanoGPT's sample.py", NANOGPT_SAMPLE),
        ("nanoGPT's bench.py", NANOGPT_BENCH),
        ("Sophia's train_sophiag.py and train_adam.py", SOPHIA),
    ],
)
def test_every_option_of_theirs_has_a_row(section: str, names: str) -> None:
    told = {name for cells in rows(section) for name in code(cells[0])}
    assert not set(names.split()) - told


def test_every_command_and_configuration_of_theirs_is_told() -> None:
    assert not [name for name in COMMANDS.split() if name not in TEXT]


@pytest.mark.parametrize("section", OF_TRAIN)
def test_what_train_pys_options_become_are_settings_of_ours(section: str) -> None:
    around = ["logging=[jsonl,wandb]", *(["optim=sophiag"] if "Sophia" in section else [])]
    for _, ours, *_ in rows(section):
        overrides = [word for text in code(ours) for word in shlex.split(text)]
        if any("=" in override for override in overrides):
            compose([*around, *overrides])
        assert all("=" in each or each in known_keys() for each in overrides), ours


def test_what_sample_pys_options_become_are_settings_of_ours() -> None:
    known = {field.name for field in fields(sample.Settings)}
    for _, ours, _ in rows("nanoGPT's sample.py"):
        given = [word for text in code(ours) if text != "scripts/sample.py" for word in shlex.split(text)]
        assert {word.partition("=")[0] for word in given} <= known
        sample.parse(["run=runs/mine", *(word for word in given if not word.startswith("run="))])


def test_what_bench_pys_options_become_are_flags_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["train", "--help"]) == 0
    listed = capsys.readouterr().out
    for _, ours, _ in rows("nanoGPT's bench.py"):
        assert all(re.search(rf"{flag}\b", listed) for flag in re.findall("--[a-z-]+", ours)), ours


@pytest.mark.parametrize("command", [each for each in commands_of(TEXT) if SCRIPT.search(each)])
def test_its_runs_are_configurations_of_ours(command: str) -> None:
    compose(shlex.split(SCRIPT.split(command)[1]))


def test_the_settings_of_adamw_beside_sophias_are_theirs() -> None:
    """The rows of the last table, against min_lr / learning_rate of the three files."""
    theirs = {"gpt2_small": (6e-4, 3e-5), "gpt2_medium": (3e-4, 6e-5), "gpt2_large": (2e-4, 1e-5)}
    found = {
        code(cells[0])[0]: cells[1:] for cells in rows("Sophia's train_sophiag.py and train_adam.py") if code(cells[0])
    }
    for model, (lr, min_lr) in theirs.items():
        assert float(found[model][0]) == lr
        assert float(found[model][1]) == pytest.approx(min_lr / lr)


SIX = commands_of(SECTIONS["Six steps with a text of your own"])
SMALL = ["max_steps=2", "global_batch=4", "micro_batch=4", "sample_tokens=4", "model=pico"]


def test_the_six_steps_work_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("".join(f"ROMEO: line {i} of the play, and so on.\n" for i in range(3000)))
    mains: dict[str, Callable[[list[str]], int]] = {
        "train.py": lambda words: train.main(compose(with_small(words))),
        "scripts/prepare_data.py": prepare_data.main,
        "scripts/sample.py": lambda words: sample.main([*words, "tokens=4"]),
        "scripts/export.py": export.main,
    }
    for command in SIX:
        _, script, *words = shlex.split(command)
        assert mains[script](words) == 0, f"{command}\n{capsys.readouterr().err}"
    assert Path("mine-hf", "model.safetensors").is_file()


def with_small(words: list[str]) -> list[str]:
    """The overrides of a command with a small model; where it asks for more steps, 4 instead of 2."""
    longer = ["max_steps=4"] if any(word.startswith("max_steps=") for word in words) else []
    return [*(word for word in words if not word.startswith("max_steps=")), *SMALL, *longer]
