"""What a kind of claim answers. Each is one file in kinds/, a class found by the file's name and named nowhere else."""

from abc import ABC
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from report.results import Measure
from reproduce.claim import Claim, F, Fields
from reproduce.evidence import Evidence
from reproduce.fields import nearest
from reproduce.mistakes import ClaimError
from reproduce.records import Ratios

if TYPE_CHECKING:
    from reproduce.protocols import Comparison, Protocol

FOLDER = Path(__file__).parent / "kinds"


class Kind(ABC, Generic[F]):
    """A kind of claim. One that trains has protocols and concludes; one that trains nothing measures."""

    Fields: ClassVar[type[Fields]]  # of its claim files
    description: ClassVar[str] = ""  # of what is measured, where nothing is trained
    needs_baseline: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name of its file, which is `kind` in claim files."""
        return type(self).__module__.rpartition(".")[2]

    def check(self, claim: Claim[F]) -> None:
        """Raises: ClaimError: if the fields do not fit each other, with a line for each mistake, see mistakes.py.

        Types and limits have been checked; to read a field in which they were wrong ends the check.
        """

    def protocols(self, claim: Claim[F]) -> "list[Protocol[F]]":
        """The ways to test it by training, the one that the verdict follows last; none: nothing is trained."""
        return []

    def time_arms(self, claim: Claim[F]) -> Ratios:
        """Seconds per step of the arms beside each other's, where the claim is about time."""
        return {}

    def conclude(self, found: "Comparison[F]") -> Evidence:
        """What a protocol's runs say."""
        raise NotImplementedError(f"{self.name} has protocols and must conclude")

    def across(self, found: "Sequence[Comparison[F]]", evidences: Sequence[Evidence]) -> Evidence | None:
        """What all protocols say together, on which the verdict then rests; None: the last one decides."""
        return None

    def power(self, found: "Comparison[F]", evidence: Evidence) -> float | None:
        """P(reproduced if every part is true), by simulation of what the runs scatter; None: it is not known."""
        return None

    def arms_of_parts(self, claim: Claim[F]) -> set[str]:
        """The arms that a part of the claim is about; those that are only shown beside them fail no check."""
        return {arm.name for arm in claim.arms}

    def state_measures(self, claim: Claim[F]) -> list[Measure]:
        """The parts of the claim about bytes of optimizer state, which are known at once; none in most kinds."""
        return []

    def measure(self, claim: Claim[F]) -> Evidence:
        """What is found without training."""
        raise NotImplementedError(f"{self.name} has no protocols and must measure")


def names() -> list[str]:
    """Returns the names of all kinds."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


@cache
def named(name: str) -> Kind[Any]:
    """The kind of that name. Raises: ClaimError: if there is none."""
    if name not in names():
        raise ClaimError(f"kind={name!r} does not exist; {nearest(name, names())}")
    module = import_module(f"{__package__}.kinds.{name}")
    found = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    (kind,) = (each for each in found if issubclass(each, Kind))
    return kind()
