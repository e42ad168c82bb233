"""Gives a new run the weights that start_from names, in place of the model's initial ones: start=weights.

The run begins at step 0 with an optimizer, a schedule and data of its own. The weights must be of its model and of its
data's token ids; nothing of the files that hold them is executed.
"""

from pathlib import Path

from configs import RunConfig
from configs.runs import plain
from configs.start import WEIGHTS, Origin, layout_of
from data import DataError, TokenDataset, load_tokenizer, read_tokenizer
from files.errors import shown
from files.paths import expanded
from interchange import layout_named
from interchange.fitting import load
from model import LanguageModel
from trainer.checkpoint import CheckpointError, CheckpointStore, Saved
from trainer.manifest import name_at
from trainer.run_directory import CHECKPOINTS, TOKENIZER


def load_weights(
    config: RunConfig, origin: Origin | None, model: LanguageModel, data: TokenDataset, store: CheckpointStore
) -> None:
    """Overwrites the parameters, full tensors, with those that a new run begins with; every rank must call this.

    origin: where the run begins. store: of the run; if it has a checkpoint, that has the parameters.

    Raises: ValueError: if there are no such weights, or they are of another model or other token ids.
    """
    if origin is None or origin.start != WEIGHTS or store.has_any():
        return
    what = f"start_from={shown(config.start_from)}"
    if (layout := layout_of(origin.run)) is not None:
        weights = layout_named(layout[0], "start_from").read(expanded(layout[1], "start_from"))
        load(weights, model, plain(config)["model"], load_tokenizer(data.path), what)
        return
    check_tokenizer(Path(origin.run), data, what)
    saved = checkpoint_of(store, origin, what)
    saved.read_into({f"model.{name}": p.detach() for name, p in model.named_parameters()})
    if odd := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise CheckpointError(f"{saved.path}: {odd[0]} has numbers that are not finite; choose another step")


def checkpoint_of(store: CheckpointStore, origin: Origin, what: str) -> Saved:
    """Returns the checkpoint of another run that origin names, verified; every rank must call this.

    what: the key that names it, for messages. Raises: CheckpointError: if it is damaged, or has been deleted meanwhile.
    """
    try:
        return store.read(Path(origin.run) / CHECKPOINTS / name_at(origin.step))
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}; choose another step") from None


def check_tokenizer(folder: Path, data: TokenDataset, what: str) -> None:
    """Checks that the data have the token ids that the run in a folder was trained on. Raises: DataError."""
    theirs, ours = read_tokenizer(folder / TOKENIZER), load_tokenizer(data.path)
    if theirs.to_json() != ours.to_json():
        raise DataError(
            f"{what} was trained with another tokenizer ({theirs.vocab_size} ids) than the data have "
            f"({ours.vocab_size} ids): prepare them with that one, data/tokenizer=file "
            f"data.tokenizer.path={folder / TOKENIZER}"
        )
