import subprocess
import sys
from pathlib import Path

import pytest

from configs import compose, plug_in
from data import (
    BPE,
    GPT2,
    Bytes,
    Files,
    HuggingFace,
    Mixture,
    OfParts,
    OpenWebText,
    PySource,
    Synthetic,
    TokenFiles,
)
from data.loader import ORDERS
from scripts import prepare_data

ROOT = Path(__file__).parents[2]
OPTIONS = [
    ("pysource", PySource, BPE),
    ("openwebtext", OpenWebText, GPT2),
    ("files", Files, BPE),
    ("synthetic", Synthetic, Bytes),
    ("hf", HuggingFace, GPT2),
    ("tokens", TokenFiles, GPT2),
    ("fineweb10b", TokenFiles, GPT2),
    ("fineweb_edu", TokenFiles, GPT2),
    ("mixture", Mixture, OfParts),
]
MISSING = {
    "files": ["data.source.pattern=*.txt"],
    "hf": ["data.source.path=a/b"],
    "tokens": ["data.source.train=t*.bin", "data.source.val=v.bin"],
    "mixture": ["data.source.parts={a: 1, b: 2}"],
}


@pytest.mark.parametrize(("option", "source", "tokenizer"), OPTIONS)
def test_every_data_config_builds_its_source_and_tokenizer(option: str, source: type, tokenizer: type) -> None:
    data = compose([f"data={option}", *MISSING.get(option, [])]).data
    assert type(plug_in(data.source)) is source
    assert type(plug_in(data.tokenizer)) is tokenizer
    assert data.order in ORDERS


def test_the_command_reports_what_it_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data=synthetic", "data.source.n_documents=20", "data/tokenizer=bpe", "data.tokenizer.vocab_size=300"]
    assert prepare_data.main([*arguments, f"data.root={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "300 token ids" in printed
    assert "bytes of text per token" in printed
    assert [folder.name for folder in tmp_path.glob("synthetic-bpe-*")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=synthetic", "data.source.n_documents=1"], "error: data.source.n_documents=1 must be >= 2"),
        (["data=synthetic", "data.val_fraction=2"], "error: data.val_fraction=2.0 must lie in (0, 1)"),
        (
            ["data=files", "data.source.pattern=/nowhere/*.txt"],
            "error: data.source.pattern='/nowhere/*.txt' matches no",
        ),
        (["data=openwbtext"], "error: data=openwbtext does not exist; the nearest valid one is 'openwebtext'"),
        (["dta=files"], "error: unknown key 'dta'; the nearest valid one is 'data'"),
        (
            ["data.val_fracton=0.1"],
            "error: unknown key 'data.val_fracton'; the nearest valid one is 'data.val_fraction'",
        ),
        (["data.val_fraction=5%"], "error: data.val_fraction=5% must be a number"),
        (["data=files"], "error: data.source.pattern is missing"),
        (["data.source.megabytes=lots"], "error: data.source.megabytes=lots must be a number or null"),
    ],
)
def test_the_command_fails_with_one_line_and_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert prepare_data.main([*arguments, f"data.root={tmp_path}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(message)
    assert len(printed.splitlines()) == 1


@pytest.mark.slow
def test_output_that_cannot_be_written_changes_neither_the_work_nor_its_status(tmp_path: Path) -> None:
    script = '"$0" scripts/prepare_data.py data=synthetic data.source.n_documents=20 "data.root=$1"'
    for n, end in enumerate((" > /dev/full", " | head -1; exit ${PIPESTATUS[0]}", " >&- 2>&-")):
        root = tmp_path / str(n)
        command = ["bash", "-c", script + end, sys.executable, str(root)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
        assert list(root.glob("*/dataset.json"))
