"""What a claim is: the fields of every claim file, and a checked claim at a scale."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from omegaconf import MISSING
from typing_extensions import TypeVar

from report.results import Published, Source
from reproduce.arms import ArmSpec, Point

if TYPE_CHECKING:
    from reproduce.kind import Kind


@dataclass
class Statement:
    """One thing that a source says, what was found of it, and why."""

    statement: str
    finding: str
    why: str


@dataclass
class Fields:
    """What every claim file has. A kind's own fields are those of a subclass."""

    title: str = MISSING
    kind: str = MISSING
    source: Source = MISSING
    contrary: list[str] = MISSING  # published evidence against, or limits of the claim
    rule: str = MISSING  # how the verdict follows from the numbers
    arms: dict[str, Any] = MISSING  # name -> ArmFields
    overrides: list[str] = MISSING  # of every run
    statements: list[Statement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    evidence: list[Published] = field(default_factory=list)  # what others measured


F = TypeVar("F", bound=Fields, default=Any)


@dataclass(frozen=True)
class Claim(Generic[F]):
    """A claim at a scale, checked."""

    id: str
    scale: str
    kind: "Kind[F]"
    arms: tuple[ArmSpec, ...]
    common: Point  # overrides of every run: the scale's, the file's, then the user's
    fields: F

    def arm(self, name: str) -> ArmSpec:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> ArmSpec:
        """The first arm with that role."""
        return next(arm for arm in self.arms if arm.role == "baseline")
