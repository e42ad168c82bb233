"""The summary of a sweep by arm; with a real sweep see test_jobs.py."""

from pathlib import Path

from launch.arms import arms_of
from launch.job import Job, Outcome


def ended(status: str, loss: float) -> Outcome:
    return Outcome(Job("a", ()), Path("a"), status, {"val/loss": loss}, None, 1.0)


def test_a_seed_that_was_run_in_two_directories_counts_once() -> None:
    (arm,) = arms_of(
        ["seed", "run_dir"],
        [
            (("1", "a"), ended("finished", 3.0)),
            (("1", "b"), ended("finished", 3.0)),
            (("2", "a"), ended("finished", 4.0)),
            (("2", "b"), ended("failed", 4.0)),
        ],
    ).each
    assert (arm.losses, arm.missing, arm.mean) == ([3.0, 4.0], [], 3.5)
