"""Tasks of EleutherAI's lm-evaluation-harness, on an exported model: a folder in Hugging Face's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from files.errors import one_line
from files.reading import number

INSTALL = "pip install -e '.[eval]'"


def harness(
    folder: Path, tasks: Sequence[str], *, limit: int | None, micro_batch: int, device: str
) -> dict[str, float | None]:
    """Returns the metrics of the tasks, <task>/<metric>. limit: takes the first questions of each alone.

    The tasks' data are downloaded by the datasets library, or come from its cache.

    Raises: EvaluationError: if the harness is not installed, the folder holds no model, or a task cannot be run.
    """
    try:
        import lm_eval
    except ImportError:
        raise EvaluationError(f"tasks= needs lm-evaluation-harness: {INSTALL}") from None
    if not (folder / "config.json").is_file():
        raise EvaluationError(
            f"export={folder} is no model in Hugging Face's format: it has no config.json; "
            f"python scripts/export.py run=<run> to=hf out={folder} makes one"
        )
    arguments = {"pretrained": str(folder), "dtype": "float32", "trust_remote_code": False}
    try:
        found = lm_eval.simple_evaluate(
            model="hf", model_args=arguments, tasks=list(tasks), limit=limit, batch_size=micro_batch, device=device
        )
    except Exception as error:  # whatever a task of others raises: an unknown name, no network
        raise EvaluationError(f"lm-evaluation-harness: {type(error).__name__}: {one_line(error)}") from error
    return metrics_of(found["results"])


def metrics_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the harness's metrics by <task>/<metric>, of a filter other than "none" by <task>/<metric>,<filter>."""
    return {
        f"{task}/{name.removesuffix(',none')}": number(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if number(value) is not None and "," in name
    }
