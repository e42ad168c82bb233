"""What the data package raises when the user has to act."""

from pathlib import Path

from files.errors import printable


class DataError(ValueError):
    """One clear line for the user: who, what was expected, what came, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingSource(DataError):  # noqa: N818  # a DataError by its base
    """The files of a source are not on this machine at all."""


def missing_dataset(path: Path) -> DataError:
    """The error for a data set that nobody has prepared yet; it names the command that does."""
    names = path.name.rsplit("-", 2)  # <source>-<tokenizer>-<settings>, see preparation.dataset_dir
    choice = f"data={names[0]} data/tokenizer={names[1]}" if len(names) == 3 else "data=<name>"
    state = "is only half prepared" if path.is_dir() else "does not exist"
    return DataError(
        f"data set {path} {state}: run `python scripts/prepare_data.py {choice}` "
        "with the same data.* overrides as the training run"
    )
