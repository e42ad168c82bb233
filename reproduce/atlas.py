"""The atlas: all runs of all claims over the same data, model and batch, in one folder, each found by its hash.

    reproductions/atlas/nano-1a2b3c4d/adamw-1200-s1-<configuration hash>/    a run directory
A claim asks for runs; what any claim has run is there already. Who adds a run of an optimizer by hand (run_dir=<a
folder in here>) adds it to what the baselines of all claims are compared with (check R4).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import configs
from configs.runs import belongs
from launch import run_files
from launch.job import Job
from reproduce import records
from reproduce.claim import Claim
from reproduce.composed import settings_of
from reproduce.plans import Planned
from reproduce.records import Record, RecordsError

REGIME = ("data", "model", "global_batch", "precision")  # keys in which all runs of a folder agree
OTHER_BATCH = "_x"  # nano_x4 is nano with four times the batch
OTHERS = ("data.root",)  # keys below them that make no difference


class Known(NamedTuple):
    """A run in the atlas, whoever asked for it."""

    name: str
    settings: Mapping[str, Any]  # configs.identity
    record: Record


class Atlas:
    """The folder of a claim's runs. root: of all atlases."""

    def __init__(self, root: Path, claim: Claim[Any]) -> None:
        self.folder = root / f"{claim.scale.partition(OTHER_BATCH)[0]}-{_regime(claim)}"

    def place(self, planned: Planned) -> Path:
        """Where the run lies, or is to lie: whatever its arm was called before, its hash ends the name."""
        there = sorted(self.folder.glob(f"*-{planned.config_hash}"))
        return there[0] if there else self.folder / planned.name

    def job(self, planned: Planned) -> Job:
        """What the run is to the job runner; it branches if its trunk has a checkpoint at the step."""
        place = self.place(planned)
        extra = [f"run_dir={place}"]
        if planned.trunk is not None:
            trunk = self.place(planned.trunk)
            if (trunk / "checkpoints" / f"step_{planned.branches_at:06d}").is_dir():
                extra.append(f"start_from={trunk}@{planned.branches_at}")
        return Job(place.name, (*planned.overrides, *extra))

    def read(self, planned: Planned) -> Record:
        """The record of a run.

        Raises: RecordsError: if it says not on which data it ran, or two final losses. ReadingError: if it is damaged.
        """
        place = self.place(planned)
        record = records.read(place)
        records.check_final_loss(place, record)
        if record.status in ("finished", "diverged") and not {"train", "val"} <= record.data.keys():
            raise RecordsError(
                f"{place} has no {run_files.ENVIRONMENT} with the checksums of its data, so that nothing compares with "
                "it; delete the folder, and the same command runs it again"
            )
        return record

    def check_data(self) -> None:
        """Raises: RecordsError: if two runs have different data."""
        places = sorted(path.parent for path in self.folder.glob("*/env.json"))
        records.check_same_data({place.name: run_files.read_environment(place).get("data") or {} for place in places})

    def drop_checkpoints(self, runs: Sequence[Planned]) -> None:
        """Deletes the checkpoints of runs from which no other is to branch any more."""
        for planned in runs:
            shutil.rmtree(self.place(planned) / "checkpoints", ignore_errors=True)

    def finished(self) -> Iterator[Known]:
        """All runs that have finished."""
        for path in sorted(self.folder.glob("*/result.json")):
            place = path.parent
            record = records.read(place)
            if record.loss is not None:
                yield Known(place.name, configs.identity(configs.read_config(place / "config.yaml")), record)


def _regime(claim: Claim[Any]) -> str:
    settings = settings_of((*claim.common, *claim.baseline.overrides))  # the same when a class gets another argument
    own = {
        key: each for key, each in settings.items() if any(belongs(key, one) for one in REGIME) and key not in OTHERS
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
