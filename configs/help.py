"""What --help lists: the options of every group, the keys of a run, and those of the options that were chosen."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from omegaconf import MISSING

from configs import commands
from configs.annotations import in_words
from configs.composition import default_options, of_options
from configs.groups import FOLDER, GROUPS, options_of
from configs.overrides import given
from configs.plug_ins import nodes, settings
from configs.runs import flat
from configs.schema import Rule, default_of, rules
from files.errors import shown

WIDTH, WIDEST = 110, 44  # of all, of the keys before their meanings
COMMENT = re.compile(r"^\s*(?P<key>\w+):[^#]*#\s*(?P<text>.+)$")
FLAGS = """\
Hydra's grammar of overrides: group=option chooses a file of configs/<group>/, key=value sets a key of it; of two for
one key the last counts. Lists are [a,b], null is off; quote what the shell would take. +key=value and ++key=value work
like key=value, since only keys that exist can be set; ~key leaves out an argument of a class. A text with blanks or
signs of the grammar is taken as typed where a key holds one.
  --cfg [job]     prints the configuration, resolved
  -m, --multirun  runs every combination of several values, each as a process of its own: optim=adamw,soap seed=0,1, as
                  in Hydra also choice(a,b), range(1,4), sort(...), shuffle(...) and, of a group, glob(*,exclude=soap)
  launch=local    runs are started on this machine (the default); launch=slurm: by SLURM, with -m or without it
  search=optuna   Optuna chooses the values of the keys in search.space.*, run by run, in place of -m
                  (--help launch=slurm and --help search=optuna list the keys of these)
  --at-once N     with -m: launch.at_once=N, runs at a time
  --ranks N       with -m: launch.ranks=N, processes of each run
  -h, --help      this; with group=option also the keys of that option"""
Row = tuple[str, str]  # a key with its value, and what it means


def run_help(doc: str, arguments: Sequence[str], groups: Sequence[str] = GROUPS, more: str = "") -> str:
    """What --help prints, beside other arguments, for a script that takes the overrides of a run.

    groups: those that mean something to it. more: what comes after the keys.

    Raises: ConfigError: if an option does not exist.
    """
    chosen = [each for each in arguments if "=" in each and given(each).key in GROUPS]
    if chosen:
        of_options(chosen)  # all of them exist
    sections = [doc.strip(), "\n".join(_groups(groups))]
    if tuple(groups) == GROUPS:
        sections.append("Keys, key=value, with their defaults:\n" + "\n".join(_table(list(_keys()))))
    for choice in chosen:
        sections.append(f"Keys of {choice}:\n" + "\n".join(_table(list(keys_of_option(choice, chosen)))))
    for group in commands.SEAMS:
        if own := [each for each in arguments if commands.is_of(group, each)]:
            option = commands.choose(group, own).option
            said = dict(_comments(FOLDER / group / f"{option}.yaml"))
            found = commands.arguments(group, option)
            rows = [(f"{group}.{name}={as_typed(value)}", said.get(name, "")) for name, value in found.items()]
            sections.append(f"Keys of {group}={option}:\n" + "\n".join(_table(rows)))
    return "\n\n".join([*sections, *([more] if more else [])])


def keys_of_option(choice: str, chosen: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the keys of a chosen option, group=option, with what its file or the schema says of them, else their type.

    chosen: the options beside it, among which it may be.
    """
    group, option = given(choice).key, choice.partition("=")[2]
    config = of_options(chosen or [choice])
    place, comments = group.replace("/", "."), dict(_comments(FOLDER / group / f"{option}.yaml"))
    meanings = {name: f"{rule.meaning}{limits(rule)}" for name, _, rule in rules()}
    types = {
        f"{node.key}.{name}": in_words(argument.annotation)
        for node in nodes(config)
        for name, argument in (settings(node, may_import=True) or {}).items()
        if argument.annotation is not None
    }
    for key, value in flat(config).items():
        if key.startswith(f"{place}."):
            meaning = comments.get(key.rpartition(".")[2]) or meanings.get(key) or types.get(key, "")
            yield f"{key}={'<to be given>' if value == MISSING else as_typed(value)}", meaning


def as_typed(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    return shown(value)


def limits(rule: Rule) -> str:
    """Returns, in brackets, what the key's values must be; empty if anything of its type is right."""
    found = [" | ".join(rule.choices)] if rule.choices else []
    found += [f">= {rule.least:g}"] if rule.least is not None else []
    found += [f"> {rule.above:g}"] if rule.above is not None else []
    return f" ({', '.join(found)})" if found else ""


def _groups(groups: Sequence[str]) -> Iterator[str]:
    yield "Options, group=option, the default first; with --help beside it, the keys of that option:"
    usual = default_options()
    for group in groups:
        names = sorted(options_of(group), key=lambda name: (name != usual[group], name))
        text = " ".join(names)
        yield fill(text, WIDTH, initial_indent=f"  {group:16}", subsequent_indent=" " * 18, break_on_hyphens=False)


def _keys() -> Iterator[Row]:
    for name, field, rule in rules():
        default = default_of(field)
        if default != MISSING and "." not in name:
            yield f"{name}={as_typed(default)}", f"{rule.meaning}{limits(rule)}"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    column = min(max((len(text) for text, _ in rows), default=0), WIDEST) + 2
    for text, meaning in rows:
        yield f"  {text:{column}}{'' if len(text) < column else '  '}{meaning}".rstrip()


def _comments(path: Path) -> Iterator[tuple[str, str]]:
    """Keys of an option's file and what stands behind them."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        if match := COMMENT.match(line):
            yield match["key"], match["text"]
