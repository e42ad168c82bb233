"""The site of the docs: what is generated is complete, and it builds without warnings or network."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import generated
import pytest

from configs import GROUPS
from configs.composition import known_keys
from tests.commands_in_docs import DOCS, ROOT

LAWS = sorted((DOCS / "laws").glob("*.md"))
PROGRAM = ("train.py", "assembly", "configs", "data", "files", "interchange", "launch", "model", "optim", "trainer")


@pytest.mark.slow  # seconds: every option is composed
def test_the_page_of_keys_has_every_key_and_every_option() -> None:
    page = generated.keys()
    for key in known_keys():
        of_group = "/" in key or any(key == group.replace("/", ".") for group in GROUPS)
        assert of_group or re.search(rf"`{re.escape(key)}[=`]", page), key
    for group in GROUPS:
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert f"### {group}={path.stem}\n" in page


def test_the_page_of_commands_has_every_script_that_can_be_called() -> None:
    page = generated.commands()
    named = re.findall(r"python (?:<checkout>/)?(scripts/\w+\.py|train\.py)", (ROOT / "README.md").read_text("utf-8"))
    assert named and all(f"## {name}\n" in page for name in named)


def test_what_is_added_step_by_step_names_classes_that_exist() -> None:
    pages = dict(generated.adding((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert {"optimizer", "claim", "model", "data_source", "sink"} <= {Path(name).stem for name in pages}
    for page in pages.values():
        for name in re.findall(r"^::: (.+)$", page, re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), name


@pytest.mark.parametrize("page", [page for page in LAWS if page.stem != "README"], ids=lambda page: page.stem)
def test_a_law_names_tests_that_exist(page: Path) -> None:
    tests = re.findall(r"^\* `([^`:]+)(?:::(\w+))?`", page.read_text("utf-8"), re.MULTILINE)
    assert tests
    for path, name in tests:
        assert f"def {name}(" in (ROOT / path).read_text("utf-8") if name else (ROOT / path).is_file()


def texts_of_the_program() -> Iterator[str]:
    """The texts in the sources; \\0 stands for what is put into them."""
    for name in PROGRAM:
        for path in [ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_that_are_explained_are_messages_of_the_program() -> None:
    messages = re.findall(r"^\*\*`(.+)`\*\*$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    texts = list(texts_of_the_program())
    assert len(messages) > 20
    for message in messages:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def _folder_of(package: str) -> str:
    """Where it is installed."""
    return str(Path(import_module(package).__file__ or "").parents[1])


@pytest.mark.slow  # eight seconds
def test_it_builds_strictly_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the extra [docs] is not installed")
    # -P: as the command mkdocs, which does not put the working directory on the path, as python -m does.
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    bare["PYTHONPATH"] = _folder_of("mkdocs")  # and not the checkout
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "optim.base.RuleOptimizer" in (tmp_path / "add" / "optimizer.html").read_text("utf-8")
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", page.read_text("utf-8"))
        assert not [each for each in loaded if each.startswith(("http:", "https:", "//"))], page
