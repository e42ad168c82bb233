"""Evaluates a trained model: python scripts/evaluate.py run=runs/<name> [data=...] [hellaswag=FILE] [key=value ...].

Without data, hellaswag and tasks: on all of the validation split that the run was trained with; of a mixture all tokens
count alike, but with sequences= each part has its share. data is a pattern of text files ('books/*.txt'; .jsonl and
.parquet too), all of them, encoded by the run's tokenizer; or the folder of a prepared data set, or an option of the
group data with its keys (data=openwebtext data.root=...): its validation split.
Prints what it finds, and adds it to evaluation.json in the run directory, which scripts/compare.py shows. Nothing else
of the run is changed, nothing is executed. Exit status: 0, or 2 for bad input.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

import torch

from assembly.data import data_path, data_path_of
from assembly.trained import RUN, Trained, find_run, read_trained
from configs import FOLDER, ConfigError, answer, compose
from configs.arguments import described, setting
from configs.arguments import parse as parsed
from data import Files, TokenDataset, load_tokenizer
from data.encoded import EncodedText
from data.errors import MissingSource
from data.hashing import sha256_of
from data.metadata import META_FILE
from evaluation import EvaluationError, record
from evaluation.harness import harness
from evaluation.hellaswag import STYLES, hellaswag
from evaluation.text import Autocast, text_loss
from files.errors import shown
from files.paths import expanded
from launch.run_files import Evaluation, read_environment, read_evaluations
from report import numbers
from trainer.environment import pick_device, pick_precision
from trainer.parallel import Single


@dataclass
class Settings:
    """The settings on the command line; those of the data set's option are apart."""

    run: str = setting(RUN)
    data: str | None = setting("what to evaluate on, see above; without it, the run's own validation split", None)
    text: str = setting("column of the text in .jsonl and .parquet files", "text")
    sequences: int | None = setting("of the model's block_size, spread evenly; null: all", None, least=1)
    hellaswag: str | None = setting("hellaswag_val.jsonl of github.com/rowanz/hellaswag", None)
    style: str = setting("how HellaSwag asks: lm-eval or llm.c; the numbers differ", "lm-eval", choices=tuple(STYLES))
    tasks: str | None = setting("of lm-evaluation-harness, separated by commas; needs export", None)
    export: str | None = setting("the run's model as a folder in Hugging Face's format, for tasks", None)
    limit: int | None = setting("takes the first so many questions of hellaswag and tasks alone", None, least=1)
    micro_batch: int = setting("sequences that are computed at once", 8, least=1)
    device: str = setting("auto: a GPU if there is one", "auto", choices=("auto", "cpu", "cuda"))
    precision: str | None = setting("without it, as the run trained", None, choices=("auto", "bf16", "fp32"))
    model: str | None = setting("import path of the run's model if that is a class of yours; it is run", None)


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Returns the settings, and the overrides of the data set's option.

    Raises: ConfigError: if a key is unknown, a value does not fit, or keys do not fit together.
    """
    overrides = [each for each in arguments if each.startswith(("data.", "data/"))]
    found = parsed(Settings, [each for each in arguments if each not in overrides])
    if overrides and not is_option(found.data):
        raise ConfigError(f"{overrides[0]} is for data=<an option of the group data>; leave it out")
    if (found.tasks is None) != (found.export is None):
        raise ConfigError("tasks= and export= go together: the tasks, and the exported model that they are tried on")
    return found, overrides


def is_option(name: str | None) -> bool:
    """Whether it is an option of the group data."""
    return name in {path.stem for path in (FOLDER / "data").glob("*.yaml")}


def main(arguments: list[str]) -> int:
    """Evaluates the run; returns the exit status."""
    return answer(arguments, f"{__doc__}\n{described(Settings)}", _main)


def _main(arguments: list[str]) -> int:
    logging.basicConfig(format="%(message)s")
    settings, overrides = parse(arguments)
    place = find_run(settings.run)
    read_evaluations(place.folder)  # so that a damaged file is refused before the work is done
    trained = read_trained(place, allowed=settings.model)
    for evaluation in evaluations(trained, settings, overrides):
        show(evaluation)
        record.add(place.folder, evaluation)
    return 0


def evaluations(trained: Trained, settings: Settings, overrides: Sequence[str]) -> Iterator[Evaluation]:
    """Yields what the settings ask for, as soon as it is known.

    Raises: ValueError: if the data, a file or a task cannot be used.
    """
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision or str(trained.config.get("precision", "auto")), device)
    autocast = Single(device=device, precision=precision, compiled=False).autocast
    trained.model.to(device)
    if settings.data is not None or (settings.hellaswag, settings.tasks) == (None, None):
        yield of_text(trained, settings, overrides, precision, autocast)
    if settings.hellaswag is not None:
        yield of_hellaswag(trained, settings, precision, autocast)
    if settings.tasks is not None:
        yield of_tasks(trained, settings, device)


def of_text(
    trained: Trained, settings: Settings, overrides: Sequence[str], precision: str, autocast: Autocast
) -> Evaluation:
    """Returns the loss on text."""
    tokens = tokens_of(trained, settings, overrides)
    found = text_loss(
        trained.model,
        tokens,
        trained.tokenizer.byte_lengths(),
        n_sequences=settings.sequences,
        micro_batch=settings.micro_batch,
        autocast=autocast,
    )
    on = settings.data if isinstance(tokens, EncodedText) else f"{tokens.split} of {tokens.path.name}"
    how = {"sequences": settings.sequences, "precision": precision, "checksum": tokens.checksum}
    return Evaluation("text", on or "", trained.step, how, found.numbers())


def of_hellaswag(trained: Trained, settings: Settings, precision: str, autocast: Autocast) -> Evaluation:
    """Returns the shares of questions that were answered correctly."""
    path, style, limit = expanded(settings.hellaswag or "", "hellaswag"), settings.style, settings.limit
    found = hellaswag(trained.model, trained.tokenizer, path, style=style, limit=limit, autocast=autocast)
    how = {"style": style, "limit": limit, "precision": precision, "checksum": sha256_of(path)}
    return Evaluation("hellaswag", path.name, trained.step, how, found)


def of_tasks(trained: Trained, settings: Settings, device: torch.device) -> Evaluation:
    """Returns the metrics of lm-evaluation-harness's tasks."""
    folder, limit = expanded(settings.export or "", "export"), settings.limit
    tasks = [each.strip() for each in (settings.tasks or "").split(",")]
    found = harness(folder, tasks, limit=limit, micro_batch=settings.micro_batch, device=str(device))
    return Evaluation("lm-eval", ",".join(tasks), trained.step, {"limit": limit, "export": str(folder)}, found)


def tokens_of(trained: Trained, settings: Settings, overrides: Sequence[str]) -> TokenDataset | EncodedText:
    """Returns the tokens that data names.

    Raises: ValueError: if there are none, or they are not of the run's tokenizer.
    """
    if settings.data is None:
        own = TokenDataset.open(data_path_of(trained.config, trained.folder / "config.yaml"), "val")
        known = (read_environment(trained.folder).get("data") or {}).get("val", own.checksum)
        if own.checksum != known:
            raise EvaluationError(
                f"{own.path} is not what the run was validated on (checksum {own.checksum[:12]}, the run's is "
                f"{known[:12]}): bring that data set back, or name another one by data="
            )
        return own
    if is_option(settings.data):
        folder = data_path(compose([f"data={settings.data}", *overrides]), prepared=False)
    else:
        folder = expanded(settings.data, "data")
        if not (folder / META_FILE).exists():
            return text_of(trained, settings.data, settings.text)
    found = TokenDataset.open(folder, "val")
    if load_tokenizer(folder).to_json() != trained.tokenizer.to_json():
        raise EvaluationError(
            f"{folder} was encoded by another tokenizer than the run's; give the text itself, data='<pattern of files>'"
        )
    return found


def text_of(trained: Trained, pattern: str, column: str) -> EncodedText:
    """Returns the text of the files that match the pattern. Raises: ValueError: if there is none."""
    try:
        return EncodedText(Files(pattern=pattern, text=column), trained.tokenizer, Path(pattern))
    except MissingSource:
        raise EvaluationError(
            f"data={shown(pattern)} matches no text file, and is neither the folder of a prepared data set nor an "
            "option of the group data"
        ) from None


def show(evaluation: Evaluation) -> None:
    """Prints an evaluation."""
    how = ", ".join(f"{name} {shown(value)[:12]}" for name, value in evaluation.settings.items() if value is not None)
    print(f"{evaluation.what}: {evaluation.on}, step {evaluation.step} ({how})")
    width = max(map(len, evaluation.numbers), default=0)
    for name, value in evaluation.numbers.items():
        print(f"  {name:<{width}}  {numbers.of_evaluation(value)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
