"""Runs that are published beside the reports, so that who compares an optimizer need not train AdamW again.

    docs/claims/published/nano-1a2b3c4d/adamw.jsonl.xz    all runs of an arm in the atlas nano-1a2b3c4d, a line each:
    {"name": "adamw-1200-s1-<configuration hash>", "ended": <seconds since 1970>, "files": {"env.json": "...", ...}}
The files are those of the run directory, as they were, but for paths. take() unpacks them where the atlas has no such
run; publish() packs an atlas, and keeps what was published before. An arm has a file of its own, so that new runs leave
those of the others alone.
"""

import json
import lzma
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from assembly.data import data_path
from configs import as_yaml
from data import TokenDataset
from files.errors import ReadingError, shown
from files.reading import opened, parse_object, read_text, read_yaml
from files.writing import write_bytes, write_text
from launch import run_files
from reproduce.atlas import Atlas
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.protocols import of

FILES = (run_files.CONFIG, run_files.ENVIRONMENT, run_files.METRICS, run_files.RESULT)
NAME = re.compile(r"[\w.]+(-[\w.]+)*")
ENDING = ".jsonl.xz"
LONGEST_LINE = 1 << 24  # bytes; that of 1,200 steps has 20,000


class PublishedError(ValueError):
    """Published runs that cannot be used; one clear line."""


class PublishedRun(NamedTuple):
    """A line of the archive. files: texts by name. ended: seconds since the epoch."""

    name: str
    ended: float
    files: dict[str, str]

    @property
    def config_hash(self) -> str:
        """By which an atlas finds it."""
        return self.name.rpartition("-")[2]

    @property
    def data(self) -> dict[str, str]:
        """Checksums by split."""
        return dict(json.loads(self.files[run_files.ENVIRONMENT]).get("data") or {})


def take(claim: Claim[Any], root: Path, published: Path) -> int:
    """Puts what is published of the claim's atlases below root, where no such run is; returns how many runs it put.

    Raises: PublishedError: if nothing is, or it was trained on other data than this machine has. ReadingError.
    """
    wanted = {Atlas(root, each.claim).folder: each.claim for each in of(claim)}
    runs = {folder: list(_all(published / folder.name)) for folder in wanted}
    if not any(runs.values()):
        known = ", ".join(sorted(path.name for path in published.glob("*/"))) or "none"
        names = ", ".join(folder.name for folder in wanted)
        raise PublishedError(f"no runs of {names} are published (there are: {known}); leave out runs=published")
    for folder, one in wanted.items():
        if runs[folder]:
            _check_data(runs[folder], checksums_here(one))
    return sum(_put(run, folder) for folder in wanted for run in runs[folder])


def publish(folder: Path, published: Path) -> int:
    """Adds all runs of an atlas that have ended to what is published of it; returns how many there are then.

    Raises: PublishedError: if those were trained on other data. ReadingError: if a run or an archive is damaged.
    """
    place = published / folder.name
    before = list(_all(place))
    runs = {run.config_hash: run for run in before}
    runs |= {run.config_hash: run for run in map(_packed, sorted(folder.glob("*/"))) if run is not None}
    if len({json.dumps(run.data, sort_keys=True) for run in runs.values()}) > 1:
        raise PublishedError(f"{place} would hold runs of different data; they do not compare")
    known = _by_arm(before)
    found = _by_arm(runs.values())
    for arm, own in found.items():
        if own == known.get(arm):
            continue  # compressing takes seconds
        lines = "".join(f"{json.dumps(run._asdict())}\n" for run in own)
        write_bytes(place / f"{arm}{ENDING}", lzma.compress(lines.encode(), preset=9))
    for arm in known.keys() - found.keys():  # all its runs have another arm's name by now
        (place / f"{arm}{ENDING}").unlink()
    return len(runs)


def _by_arm(runs: Iterable[PublishedRun]) -> dict[str, list[PublishedRun]]:
    found: dict[str, list[PublishedRun]] = {}
    for run in sorted(runs):
        found.setdefault(run.name.partition("-")[0], []).append(run)
    return found


def checksums_here(claim: Claim[Any]) -> dict[str, str]:
    """Returns the checksums of the claim's data on this machine, by split; prepares data that come with Python."""
    path = data_path(composed((*claim.common, *claim.baseline.overrides)))
    return {split: TokenDataset.open(path, split).checksum for split in ("train", "val")}


def _check_data(runs: list[PublishedRun], here: Mapping[str, str]) -> None:
    for run in runs:
        for split, checksum in run.data.items():
            if checksum != here.get(split):
                raise PublishedError(
                    f"the published runs were trained on other data: {split} has checksum {shown(checksum)[:12]} in "
                    f"{run.name}, here {here.get(split, 'none')[:12]}; sources that come with Python differ between "
                    "its versions; leave out runs=published, and all runs are trained here"
                )


def _packed(place: Path) -> PublishedRun | None:
    """What is published of a run directory; None if its run has not ended."""
    result = run_files.read_result(place)
    if result is None or result["status"] not in ("finished", "diverged") or not NAME.fullmatch(place.name):
        return None
    files = {name: read_text(place / name) or "" for name in FILES}
    config = read_yaml(place / run_files.CONFIG) or {}
    paths = {"run_dir": place.name, "data": {**(config.get("data") or {}), "root": "prepared"}}  # not the machine's
    files[run_files.CONFIG] = as_yaml({**config, **paths})
    return PublishedRun(place.name, (place / run_files.RESULT).stat().st_mtime, files)


def _put(run: PublishedRun, folder: Path) -> bool:
    """Whether it was written: an atlas that has the run, whatever its state, keeps its own."""
    if any(folder.glob(f"*-{run.config_hash}")):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".taken-") as temporary:  # no reader of atlases looks there
        place = Path(temporary) / run.name
        for name in FILES:
            write_text(place / name, run.files[name])
        os.utime(place / run_files.RESULT, (run.ended, run.ended))
        place.rename(folder / run.name)
    return True


def _all(place: Path) -> Iterator[PublishedRun]:
    """The runs of an atlas in all archives there. Raises: ReadingError."""
    return chain.from_iterable(map(_read, sorted(place.glob(f"*{ENDING}"))))


def _read(archive: Path) -> Iterator[PublishedRun]:
    """Nothing if there is no archive. Raises: ReadingError: if it is damaged."""
    file = opened(archive)
    if file is None:
        return
    try:
        with file, lzma.open(file) as lines:
            number = 0
            while line := lines.readline(LONGEST_LINE):
                number += 1
                yield _parsed(parse_object(line, f"{archive}, line {number}"), f"{archive}, line {number}")
    except (lzma.LZMAError, EOFError) as error:
        raise ReadingError(f"{archive} is damaged: {error}") from None


def _parsed(content: dict[str, Any], where: str) -> PublishedRun:
    name, ended, files = (content.get(key) for key in PublishedRun._fields)
    is_run = isinstance(name, str) and NAME.fullmatch(name) and isinstance(ended, int | float)
    if not is_run or not isinstance(files, dict) or sorted(files) != sorted(FILES):
        raise ReadingError(f"{where}: a run must have {', '.join(PublishedRun._fields)}, and {', '.join(FILES)} of it")
    if not all(isinstance(text, str) for text in files.values()):
        raise ReadingError(f"{where}: the files of {name} must be texts")
    return PublishedRun(str(name), float(ended or 0), files)
