"""All that is wrong with a claim file, said at once.

A check raises a ClaimError with a line for each mistake, and who does several checks collects their lines. Checks go on
after a mistake: they are given objects that are incomplete, without the fields that are wrong. A check that needs one
of these ends without a line of its own, for what is wrong has been said where the field was read.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from configs import ConfigError

T = TypeVar("T")


class ClaimError(ConfigError):
    """A claim that cannot be run; each line names the file and the field."""


class Mistakes:
    """Lines of ClaimErrors and ConfigErrors, in the order in which they were found."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def collected(self, before: str = "") -> Iterator[None]:
        """Takes the lines of an error over, which ends the block; before: the beginning of each."""
        try:
            yield
        except ConfigError as error:
            self.lines += [before + line for line in error.args]

    def raise_all(self) -> None:
        """Raises: ClaimError: with all lines, each once, if there are any."""
        if self.lines:
            raise ClaimError(*dict.fromkeys(self.lines))


def incomplete(kind: type[T], known: Mapping[str, Any]) -> T:
    """An object of the dataclass with the known fields alone; who reads another gets a ClaimError without lines."""
    unknown = {each.name for each in fields(kind)} - known.keys()  # type: ignore[arg-type]  # T is a dataclass

    def read(self: T, name: str) -> Any:
        if name in unknown:
            raise ClaimError
        return object.__getattribute__(self, name)

    found: T = object.__new__(type(kind.__name__, (kind,), {"__getattribute__": read}))
    vars(found).update(known)
    return found
