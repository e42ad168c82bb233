"""The pages of the site that are written from the sources: keys, commands, and what is added and how."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import MISSING

from configs import GROUPS
from configs.help import as_typed, keys_of_option, limits
from configs.schema import Rule, default_of, rules

ROOT = Path(__file__).parents[2]
ADDING = re.compile(r"^## To add (?:a|an) (.+)$", re.MULTILINE)
CLASS = re.compile(r"`((?:[a-z_]+\.)+[A-Z]\w+)`")
CHANGES = {"is_place": "when a run continues, keeping its name", "is_conduct": "when a run continues"}
BRANCHES = {"may_differ_in_branch": "in a branch", "may_change_in_branch": "in a branch, then not exact"}


def pages() -> Mapping[str, str]:
    """Returns the Markdown of every generated page, by its path in the site."""
    steps = dict(adding((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    return {"keys.md": keys(), "commands.md": commands(), **steps}


def keys() -> str:
    """Returns the page of all keys: those of the schema, then those of every option of every group."""
    lines = ["# Every key", "", "`python train.py --help` lists the same. What may change says when a key may differ."]
    lines += ["", "| key | default | meaning | may change |", "| --- | --- | --- | --- |"]
    for name, field, rule in rules():
        default = default_of(field)
        usual = "as the option has it" if default == MISSING else f"`{as_typed(default)}`"
        lines.append(f"| `{name}` | {usual} | {_cell(rule.meaning + limits(rule))} | {', '.join(_changes(rule))} |")
    for group in GROUPS:
        lines += ["", f"## {group}"]
        for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
            lines += ["", f"### {group}={path.stem}", "", "| key | meaning |", "| --- | --- |"]
            lines += [
                f"| `{_cell(key)}` | {_cell(meaning)} |" for key, meaning in keys_of_option(f"{group}={path.stem}")
            ]
    return "\n".join(lines) + "\n"


def _changes(rule: Rule) -> Iterator[str]:
    for attribute, when in (CHANGES | BRANCHES).items():
        if getattr(rule, attribute):
            yield when


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def commands() -> str:
    """Returns the page of all commands: train.py and the scripts, each by its docstring."""
    lines = ["# Every command", "", "What `--help` begins with."]
    for path in [ROOT / "train.py", *sorted((ROOT / "scripts").glob("*.py"))]:
        source = path.read_text("utf-8")
        if '__name__ == "__main__"' in source or path.name == "train.py":
            doc = ast.get_docstring(ast.parse(source)) or ""
            lines += ["", f"## {path.relative_to(ROOT)}", "", "```text", doc, "```"]
    return "\n".join(lines) + "\n"


def adding(contributing: str) -> Iterator[tuple[str, str]]:
    """Yields a page for each "To add ..." of CONTRIBUTING: its steps, and the classes that they name, documented."""
    parts = ADDING.split(contributing)
    for what, text in zip(parts[1::2], parts[2::2], strict=True):
        steps = text.partition("\n## ")[0]
        classes = dict.fromkeys(CLASS.findall(steps))
        page = [f"# To add {'an' if what[0] in 'aeiou' else 'a'} {what}", steps.strip()]
        yield f"add/{what.replace(' ', '_')}.md", "\n\n".join([*page, *(f"::: {name}" for name in classes)]) + "\n"
