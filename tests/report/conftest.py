from pathlib import Path

import pytest

from report.files import write_report
from tests.report.samples import rich


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of results with a bit of everything."""
    path = tmp_path_factory.mktemp("sophia_2x-nano")
    assert all(written.stat().st_size for written in write_report(rich(), path))
    return path
