"""What a claim is: the fields of every claim file, and a checked claim at a scale."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from omegaconf import MISSING
from typing_extensions import TypeVar

from report.results import Source
from reproduce.fields import limited

if TYPE_CHECKING:
    from reproduce.kind import Kind

ROLES = ("baseline", "candidate", "other")
Point = tuple[str, ...]  # overrides of one set of hyperparameters


@dataclass
class Statement:
    """One thing that a source says, what was found of it, and why."""

    statement: str
    finding: str
    why: str


@dataclass
class ArmFields:
    """An arm as its file states it; see ArmSpec."""

    label: str
    role: str = limited(choices=ROLES)
    overrides: list[str] = limited(words="a list of overrides such as [optim.lr=1e-3]")
    paper: list[str] = field(default_factory=list)
    grid: list[list[str]] = field(
        default_factory=list, metadata=limited(words="a list of overrides such as [optim.lr=1e-3] per point").metadata
    )


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


F = TypeVar("F", bound=Fields, default=Any)


@dataclass(frozen=True)
class ArmSpec:
    """One of the things compared, and the points of its hyperparameters."""

    name: str
    label: str
    role: str  # one of ROLES
    overrides: Point  # of all its runs
    paper: Point = ()  # the paper's hyperparameters
    grid: tuple[Point, ...] = ()  # what tuning tries, or a sweep's points; the first override is the axis


@dataclass(frozen=True)
class Claim(Generic[F]):
    """A claim at a scale, checked."""

    id: str
    scale: str
    kind: "Kind[F]"
    arms: tuple[ArmSpec, ...]
    common: Point  # overrides of every run: the file's, then the user's
    fields: F

    def arm(self, name: str) -> ArmSpec:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> ArmSpec:
        """The first arm with that role."""
        return next(arm for arm in self.arms if arm.role == "baseline")
