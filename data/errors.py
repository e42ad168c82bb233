"""Errors of the data package that the user can resolve."""

from pathlib import Path

from files.errors import printable


class DataError(ValueError):
    """One clear line for the user: which file or setting, what was expected, what was found, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingSource(DataError):  # noqa: N818  # a DataError by its base
    """Raised if none of a source's files are on this machine."""


def missing_dataset(path: Path) -> DataError:
    """Returns the error for a data set that is not prepared; it names the command that prepares it."""
    names = path.name.rsplit("-", 2)  # <source>-<tokenizer>-<settings>, see preparation.dataset_dir
    choice = f"data={names[0]} data/tokenizer={names[1]}" if len(names) == 3 else "data=<name>"
    state = "is only half prepared" if path.is_dir() else "does not exist"
    return DataError(
        f"data set {path} {state}: run `python scripts/prepare_data.py {choice}` "
        "with the same data.* overrides as the training run"
    )
