"""A tokenizer from a file: data=... data/tokenizer=file."""

import json
from pathlib import Path

import pytest

from data import BPE, DataError, TokenizerFile


def no_sample(n_bytes: int) -> None:
    raise AssertionError("nothing is to be learnt")


def test_it_is_the_files_and_its_name_is_that_of_the_content(tmp_path: Path) -> None:
    saved = BPE(300).fit(lambda n_bytes: iter(["a text that is a text"])).to_json()
    for name, content in (("a.json", json.dumps(saved)), ("b.json", json.dumps(saved, indent=2))):
        (tmp_path / name).write_text(content)
    (tmp_path / "c.json").write_text('{"kind": "bytes"}')
    a, b, c = (TokenizerFile(str(tmp_path / name)) for name in ("a.json", "b.json", "c.json"))
    assert a.fit(no_sample).to_json() == saved  # type: ignore[arg-type]  # never called
    assert a.settings == b.settings != c.settings


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.json is no tokenizer .*there is no such file"):
        TokenizerFile(str(tmp_path / "nowhere.json")).fit(no_sample)  # type: ignore[arg-type]  # never called
