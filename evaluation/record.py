"""Adds results to a run's evaluation.json, from which scripts/compare.py reads them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from files.writing import write_json
from launch.run_files import EVALUATION, Evaluation, read_evaluations


def add(run_dir: Path, evaluation: Evaluation) -> None:
    """Adds the evaluation to those in the run directory, in place of an earlier one of the same model and settings.

    Raises: ReadingError: if there is a file that cannot be read. OSError: if it cannot be written.
    """
    kept = [each for each in read_evaluations(run_dir) if _same(each) != _same(evaluation)]
    write_json(run_dir / EVALUATION, {"evaluations": [asdict(each) for each in (*kept, evaluation)]})


def _same(evaluation: Evaluation) -> tuple[str, str, int, Mapping[str, object]]:
    return evaluation.what, evaluation.on, evaluation.step, evaluation.settings
