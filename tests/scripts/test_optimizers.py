"""The catalogue of optimizers, and the page that it writes."""

from pathlib import Path

import pytest

from configs import ConfigError
from scripts import optimizers
from scripts.optimizers import BEGIN, END, Entry


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.option: entry for entry in optimizers.catalogue()}


def test_every_option_is_in_it(entries: dict[str, Entry]) -> None:
    assert sorted(entries) == sorted(path.stem for path in Path("configs/optim").glob("*.yaml"))
    assert all(entry.paper != "none" and entry.lr > 0 and entry.lr_from for entry in entries.values())


def test_it_says_what_an_optimizer_costs(entries: dict[str, Entry]) -> None:
    assert entries["adamw"].bytes_per_parameter == pytest.approx(8)
    assert (entries["sophiag"].kind, entries["sophiag"].extra_passes) == ("elements", pytest.approx(240 / 480 / 10))
    assert entries["sophiah"].extra_passes == pytest.approx(3 * 32 / 480 / 10)
    assert entries["soap"].sharding == "matrices it owns" and entries["adafactor"].sharding == "its rows"
    assert entries["lion"].paper == "Chen et al., arXiv:2302.06675"


def test_the_page_is_up_to_date(entries: dict[str, Entry], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n", "utf-8")
    optimizers.write_page(list(entries.values()), page)
    table = optimizers.markdown(list(entries.values()))
    assert page.read_text("utf-8") == f"before\n{BEGIN}{table}{END}after\n"
    assert f"{BEGIN}{table}{END}" in optimizers.PAGE.read_text("utf-8")


def test_what_it_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'--list' is no argument of this script, which takes --write or nothing"):
        optimizers.main(["--list"])
    (tmp_path / "page.md").write_text("no place", "utf-8")
    with pytest.raises(ConfigError, match="has no place for the catalogue"):
        optimizers.write_page([], tmp_path / "page.md")
