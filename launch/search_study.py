"""The study of a search in Optuna's storage: opened, and said what its samplers, pruners and distributions are."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy.exc import SQLAlchemyError

from configs import ConfigError
from configs.overrides import written
from files.errors import one_line, shown
from launch.search_space import Choices, Range

SQLITE_SECONDS = 60  # in which other processes have written
FACTOR = 3  # of the steps between hyperband's decisions
EARLIEST = 1 / FACTOR**2  # no run is pruned before this fraction of its steps
DESCRIPTION = "search"  # the attribute of a study that says what it is about


class Study(NamedTuple):
    """Where a study is: its name in a storage. folder: of its locks. description: what it must be about."""

    name: str
    storage: str
    folder: Path
    description: Mapping[str, Any]


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Raises ConfigError in place of what the storage raises."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as error:
        raise ConfigError(
            f"search.storage={shown(without_password(storage))} cannot be used: {one_line(error.__cause__ or error)}"
        ) from error


def without_password(storage: str) -> str:
    """Returns the URL as it may be shown."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", storage)


def opened(wanted: Study) -> optuna.Study:
    """Returns the study, made if it is not there; the caller has its lock.

    Raises: ConfigError: if it is about something else, or the storage is in memory or of another version of Optuna.
    """
    name, storage, _, description = wanted
    if re.fullmatch(r"sqlite(\+\w+)?:/*(:memory:)?", storage):
        raise ConfigError(f"search.storage={storage} would be lost with this command: give sqlite:///FILE")
    arguments = {"timeout": SQLITE_SECONDS} if storage.startswith("sqlite:") else {}
    try:
        kept = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": arguments})
    except RuntimeError as error:  # what Optuna raises for a storage of another of its versions
        raise ConfigError(
            f"search.storage={shown(without_password(storage))} was made by another version of Optuna than "
            f"{optuna.__version__}: {one_line(error)}"
        ) from error
    study = optuna.create_study(storage=kept, study_name=name, direction="minimize", load_if_exists=True)
    ours, theirs = json.loads(json.dumps(description)), study.user_attrs.get(DESCRIPTION)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(DESCRIPTION, ours)
    elif theirs != ours:
        found = ", ".join(_differences(ours, theirs)) if isinstance(theirs, dict) else "this command has not made it"
        where = f"{shown(name)} in {without_password(storage)}"
        raise ConfigError(f"the study {where} is of another search: {found}; give search.study another name")
    return study


def sampler(name: str, seed: int, trial: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler for a trial, seeded by its number, too: so workers draw different parameters."""
    own = int(hashlib.sha256(f"{seed} {trial}".encode()).hexdigest()[:8], 16)
    return optuna.samplers.RandomSampler(seed=own) if name == "random" else optuna.samplers.TPESampler(seed=own)


def pruner(name: str | None, max_steps: int) -> optuna.pruners.BasePruner:
    """Returns the pruner for runs of so many steps."""
    earliest = max(1, round(max_steps * EARLIEST))
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=earliest)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(earliest, max_steps, reduction_factor=FACTOR)
    return optuna.pruners.NopPruner()


def distribution(each: Range | Choices) -> BaseDistribution:
    """Returns it as Optuna has it."""
    if isinstance(each, Choices):
        return CategoricalDistribution(each.values)
    if each.is_whole:
        return IntDistribution(int(each.low), int(each.high), each.log, int(each.step or 1))
    return FloatDistribution(each.low, each.high, each.log, each.step)


def drawn(trial: optuna.Trial, key: str, each: BaseDistribution) -> Any:
    """Returns the trial's value, drawn if it has none yet."""
    if isinstance(each, CategoricalDistribution):
        return trial.suggest_categorical(key, each.choices)
    if isinstance(each, IntDistribution):
        return trial.suggest_int(key, each.low, each.high, step=each.step, log=each.log)
    assert isinstance(each, FloatDistribution)
    return trial.suggest_float(key, each.low, each.high, step=each.step, log=each.log)


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """What the descriptions of two searches say of the same key."""
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            each = [written(found[key]) if key in found else "<absent>" for found in (ours, theirs)]
            yield f"{key}={shown(each[0])} (there: {shown(each[1])})"
