"""What the regime checks need beside a comparison: the atlas, the data set, a second batch size, simulation."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import configs
from assembly.data import data_path
from configs.plug_ins import TARGET
from data import DataError, TokenDataset, is_prepared
from report.results import read
from reproduce.atlas import OTHER_BATCH, Atlas
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.evidence import Evidence
from reproduce.plans import WSD
from reproduce.protocols import Comparison
from reproduce.regime import Surroundings
from reproduce.sizes import sizes
from reproduce.tables import tables

TUNABLE = ("optim.", "schedule.", "grad_clip")  # how the keys of hyperparameters begin
USUAL = "the usual settings"
OF_EACH_RUN = ("seed", "max_steps", "eval_every")


def surroundings(found: Comparison[Any], evidence: Evidence, atlas: Atlas, folder: Path) -> Surroundings:
    """Everything beside the comparison; folder: that of the claims' results."""
    claim = found.claim
    return Surroundings(
        best_known=best_known(found, atlas),
        bigram=bigram(claim),
        second_batch=second_batch(claim, folder),
        power=claim.kind.power(found, evidence),
        training_tokens=training_tokens(claim),
    )


def best_known(found: Comparison[Any], atlas: Atlas) -> dict[str, dict[int, float]]:
    """Losses over T of all runs of the baseline's optimizer and schedule in the atlas, by settings, and seed.

    Of those alone that saw the same data with the same model from step 0, or as an exact branch of such a run.
    """
    claim, losses = found.claim, dict[str, dict[int, float]]()
    ours = configs.identity(composed((*WSD, *claim.common, *claim.baseline.overrides)))
    for known in atlas.finished():
        settings, origin = known.settings, known.record.environment.get("start_from")
        is_alike = _classes(settings) == _classes(ours) and _others(settings) == _others(ours)
        is_whole = settings.get("max_steps") == claim.fields.budget and (origin is None or origin.get("exact") is True)
        if is_alike and is_whole and known.record.loss is not None:
            losses.setdefault(_named(settings, ours), {})[int(settings["seed"])] = known.record.loss
    return losses


def bigram(claim: Claim[Any]) -> tuple[float, int] | None:
    """Loss and tokens of the bigram table of what a run over T sees; None if the data set is not here."""
    if (path := _data(claim)) is None:
        return None
    found = tables(path, sizes(claim)[1] * claim.fields.budget)
    return found.bigram, found.tokens


def training_tokens(claim: Claim[Any]) -> int | None:
    """Tokens of the training data; None if the data set is not here."""
    path = _data(claim)
    return None if path is None else TokenDataset.open(path, "train").n_tokens


def second_batch(claim: Claim[Any], folder: Path) -> tuple[str, float] | None:
    """The verdict of the same claim with another batch, and how many times ours that is; None if it was not run.

    The results of scale <scale>_x<factor>, beside those of the scale.
    """
    for path in sorted(folder.glob(f"{claim.id}-{claim.scale}{OTHER_BATCH}*/results.json")):
        with suppress(ValueError):  # of another version, or no factor
            results = read(path)
            return results.verdict, float(results.scale.rpartition(OTHER_BATCH)[2])
    return None


def _data(claim: Claim[Any]) -> Path | None:
    """The prepared data set of the baseline's runs, if it is here."""
    try:
        path = data_path(composed((*claim.common, *claim.baseline.overrides)), prepared=False)
    except DataError:  # a part of a mixture is missing
        return None
    return path if is_prepared(path) else None


def _classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of its optimizers and its schedule, by key."""
    places = ("optim.", "schedule.")
    return {key: value for key, value in settings.items() if key.startswith(places) and key.endswith(TARGET)}


def _others(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs of an optimizer have in common, whatever its hyperparameters: data, model, batch and precision."""
    return {key: value for key, value in settings.items() if not key.startswith(TUNABLE) and key not in OF_EACH_RUN}


def _named(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """In words, what of a run's optimizer and schedule is not as usual; other settings have another name."""
    other = [f"{key}={settings[key]}" for key in sorted(settings) if key not in usual or settings[key] != usual[key]]
    missing = [f"~{key}" for key in sorted(usual.keys() - settings)]
    return " ".join(each for each in (*other, *missing) if each.removeprefix("~").startswith(TUNABLE)) or USUAL
