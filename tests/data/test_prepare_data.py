import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from data import BPE, GPT2, Bytes, Files, OpenWebText, PySource, Synthetic
from data.loader import ORDERS

ROOT = Path(__file__).parents[2]
OPTIONS = [
    ("pysource", PySource, BPE),
    ("openwebtext", OpenWebText, GPT2),
    ("files", Files, BPE),
    ("synthetic", Synthetic, Bytes),
]


def composed(overrides: list[str]) -> Any:
    """What configs.compose makes of the data group alone."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(overrides=[f"+{overrides[0]}", *overrides[1:]])


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """scripts/prepare_data.py's main."""
    configs = ModuleType("configs")
    configs.compose = composed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "configs", configs)
    monkeypatch.setattr(sys, "path", sys.path[:])
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    main: Callable[[list[str]], int] = script.main
    return main


@pytest.mark.parametrize(("option", "source", "tokenizer"), OPTIONS)
def test_every_data_config_builds_its_source_and_tokenizer(option: str, source: type, tokenizer: type) -> None:
    data = composed([f"data={option}", *(["data.source.pattern=*.txt"] if option == "files" else [])]).data
    assert type(instantiate(data.source)) is source
    assert type(instantiate(data.tokenizer)) is tokenizer
    assert data.order in ORDERS
    assert set(data) == set(composed(["data=pysource"]).data)


def test_the_command_reports_what_it_prepared(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data=synthetic", "data.source.n_documents=20", "data/tokenizer=bpe", "data.tokenizer.vocab_size=300"]
    assert command([*arguments, f"data.root={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "300 token ids" in printed
    assert "bytes of text per token" in printed
    assert [folder.name for folder in tmp_path.glob("synthetic-bpe-*")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=synthetic", "data.source.n_documents=1"], "error: data.source.n_documents=1 must be >= 2"),
        (["data=synthetic", "data.val_fraction=2"], "error: data.val_fraction=2 must lie in (0, 1)"),
        (
            ["data=files", "data.source.pattern=/nowhere/*.txt"],
            "error: data.source.pattern='/nowhere/*.txt' matches no",
        ),
    ],
)
def test_the_command_fails_with_one_line_and_status_2(
    command: Callable[[list[str]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert command([*arguments, f"data.root={tmp_path}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(message)
    assert len(printed.splitlines()) == 1
