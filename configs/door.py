"""The one way in for every command: help, a line for each mistake, exit statuses, output that nobody reads any more."""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from configs.commands import choose, is_of
from configs.composition import compose
from configs.errors import ConfigError, lines_of
from configs.help import FLAGS, run_help
from configs.overrides import expand
from configs.runs import as_yaml
from configs.schema import RunConfig
from configs.terminal import protect_output
from files.errors import shown

BAD_INPUT, STOPPED = 2, 75
MOST = 9999  # processes or ranks


class Sweep(Protocol):
    """Runs the script once for each combination of overrides; the exit status."""

    def __call__(
        self,
        script: str,
        combinations: Sequence[Sequence[str]],
        /,
        *,
        launch: Mapping[str, Any],
        search: Mapping[str, Any] | None,
    ) -> int:
        """launch: the class of the launcher and its arguments. search: of what varies the one combination, if any."""


Doc = str | Callable[[Sequence[str]], str]  # the text of --help, or what makes it of the arguments beside it
HELP = ("-h", "--help")
# Hydra's own flags that are none here, and what to do instead.
INSTEAD = {
    ("--config-dir", "-cd"): "put your options beside those of configs/<group>/, or set keys on the command line",
    ("--config-name", "-cn"): "there is one configuration: choose options by group=option",
    ("--config-path", "-cp"): "there is one configuration: choose options by group=option",
    ("--resolve",): "--cfg shows values resolved anyway; leave it out",
    ("--package", "-p"): "--cfg shows all; leave it out",
    ("--info", "-i", "--hydra-help"): "--cfg shows the configuration, --help the options",
    ("--run", "-r"): "leave it out: a run is what is done without -m",
}


def answer(arguments: Sequence[str], doc: Doc, work: Callable[[list[str]], int]) -> int:
    """What a script does with its arguments; the exit status: work's, or 2 with a line for each thing it cannot use.

    --help prints doc. A file that cannot be written or read is bad input too; an interrupted script ends with 75.
    Output that cannot be written (a full disk, a reader that has left) changes neither the work nor its status.
    """
    protect_output()
    try:
        if set(HELP) & set(arguments):
            beside = [each for each in arguments if each not in HELP]
            print(doc.strip() if isinstance(doc, str) else doc(beside))
            status = 0
        else:
            status = work(list(arguments))
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        return STOPPED
    except OSError as error:
        _say(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except ValueError as error:
        _say(*lines_of(error))
    return BAD_INPUT


def from_command_line(script: str, doc: str, sweep: Sweep | None = None) -> RunConfig:
    """The configuration that the command line asks for; --help, --cfg, -m and bad input end the process.

    sweep: what -m runs, on the script and the combinations of overrides; None: the script has no -m.
    """
    found: list[RunConfig] = []
    status = answer(
        sys.argv[1:], partial(run_help, doc, more=FLAGS), lambda arguments: _asked_for(arguments, script, sweep, found)
    )
    if not found:
        sys.exit(status)
    return found[0]


def _asked_for(arguments: list[str], script: str, sweep: Sweep | None, found: list[RunConfig]) -> int:
    """Does what ends the process, or leaves the configuration in found."""
    asked = _asked(arguments)
    searched = [each for each in asked.overrides if is_of("search", each)]
    launched = [each for each in asked.overrides if is_of("launch", each)]
    own = searched or launched
    if asked.multirun or (own and not asked.cfg):
        if sweep is None:
            raise ConfigError(
                f"{Path(script).name} starts no other processes; leave out {'-m' if asked.multirun else own[0]}"
            )
        flags = {"launch.at_once": asked.at_once, "launch.ranks": asked.ranks}
        chosen = choose("launch", [*asked.overrides, *(f"{key}={n}" for key, n in flags.items() if n)])
        if searched and asked.multirun:
            raise ConfigError(f"-m runs all combinations, {searched[0]} chooses among them; leave out one of the two")
        if searched:
            search = choose("search", chosen.rest)
            return sweep(script, [search.rest], launch=chosen.node, search=search.node)
        combinations = expand(chosen.rest) if asked.multirun else [chosen.rest]
        return sweep(script, combinations, launch=chosen.node, search=None)
    config = compose([each for each in asked.overrides if each not in (*searched, *launched)])
    if asked.cfg:
        print(as_yaml(config))
    else:
        found.append(config)
    return 0


class _Arguments(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _asked(arguments: Sequence[str]) -> Namespace:
    """The flags, and the overrides around them."""
    if dashed := [each for each in arguments if each.startswith("--") and "=" in each and not _is_flag(each)]:
        raise ConfigError(f"{shown(dashed[0])}: keys are written without dashes: {shown(dashed[0].lstrip('-'))}")
    parser = _Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", action="store_true")  # a value is taken off before
    parser.add_argument("--at-once", type=_count)
    parser.add_argument("--ranks", type=_count)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args(list(_without_hydras(arguments)))
    if asked.cfg and asked.multirun:
        parser.error("--cfg shows the configuration of one run; leave out -m and give every key one value")
    if (asked.at_once or asked.ranks) and not asked.multirun:
        parser.error("--at-once and --ranks are for sweeps; add -m")
    return asked


def _is_flag(argument: str) -> bool:
    name = argument.partition("=")[0]
    return name in ("--at-once", "--ranks", "--cfg") or any(name in flags for flags in INSTEAD)


def _without_hydras(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, less the value of --cfg. Raises: ConfigError: for a flag of Hydra's that is none here."""
    before = ""
    for each in arguments:
        for flags, instead in INSTEAD.items():
            if (flag := each.partition("=")[0]) in flags:
                raise ConfigError(f"{flag} is no option of this command: {instead}")
        if before == "--cfg" and each in ("job", "hydra", "all"):
            if each != "job":
                raise ConfigError(f"--cfg {each}: Hydra's own configuration is not used; --cfg job shows the run's")
        elif each.startswith("--cfg="):
            yield from _without_hydras(["--cfg", each.removeprefix("--cfg=")])
        else:
            yield each
        before = each


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _say(*errors: str) -> None:
    """Once on every machine: all ranks that torchrun starts there have the same to say."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(*(f"error: {error}" for error in errors), sep="\n", file=sys.stderr)
