"""The pages of the docs, and the shell commands that they show."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "laws").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHER_LANGUAGES = ("mermaid", "python")  # the examples in Python are lines of docs/recipes, which are run
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = (
    "bash",
    "make",
    "mkdocs",
    "pip",
    "pre-commit",
    "pytest",
    "python",
    "ruff",
    "sbatch",
    "tensorboard",
    "torchrun",
)


def commands_of(text: str) -> Iterator[str]:
    """The shell commands of a page, without comments: all lines of a fence, and inline code that begins with a program.

    Blanks and line ends within a command are one blank.
    """
    for language, block in FENCE.findall(text):
        if language not in OTHER_LANGUAGES:
            assert language == "", f"{language}: a fence in a language that the tests do not know"
            lines = block.replace("\\\n", " ").splitlines()
            yield from (plain for line in lines if (plain := _plain(line)))
    for code in INLINE.findall(FENCE.sub("", text)):
        plain = _plain(code.replace("\n", " "))
        words = [word for word in plain.split() if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if len(words) > 1 and words[0] in PROGRAMS:
            yield plain


def _plain(line: str) -> str:
    return " ".join(re.sub(r"(^|\s)#\s.*", "", line).split())
