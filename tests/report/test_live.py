"""What a reader sees of the live page in a real browser, where there is one."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from configs import as_yaml, compose
from scripts import runs, serving
from tests.report.test_browser import ask, wait

SHOWN = "return [...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
LINES = "return plots[0].spec.data.map(trace => [trace.meta.arm, trace.x.length])"


def write_run(name: str, n_rows: int, status: str = "") -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(as_yaml(compose([f"run_dir=runs/{name}"])))
    add_rows(folder, 0, n_rows)
    if status:
        (folder / "result.json").write_text(json.dumps({"status": status, "step": n_rows * 10, "val/loss": 5.0}))
    return folder


def add_rows(folder: Path, first: int, last: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for n in range(first, last):
            row = {
                "step": 10 * n,
                "tokens": n,
                "seconds": n,
                "flops": n,
                "train/loss": 8 - n / 10,
                "val/loss": 8.1 - n / 10,
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where two runs are shown."""
    monkeypatch.chdir(tmp_path)
    write_run("nano-pysource-adamw-s1337-1a2b3c4d", 5)
    write_run("<b>odd</b>", 3, "finished")
    asked = runs.parse([])
    live = serving.LiveRuns(runs.chosen_by(asked), runs.columns_of({}, ""), runs.row_of)
    served = serving.server(live, "127.0.0.1", 0, "runs in runs")
    thread = Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}/"
    served.shutdown()
    thread.join()
    served.server_close()


def open_page(browser: Any, address: str, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    wait(browser, "return document.documentElement.dataset.drawn === '1'")


@pytest.mark.slow
class TestInBrowser:
    def test_the_page_shows_every_run_and_asks_only_its_server(self, page: Any, address: str) -> None:
        for name in ("browser", "performance"):
            page.get_log(name)  # reading empties it
        open_page(page, address, 1100)
        shown = {row[0]: row[1:5] for row in ask(page, SHOWN)}
        assert shown["nano-pysource-adamw-s1337-1a2b3c4d"] == ["unfinished", "40/250", "7.6000", "7.7000"]
        assert shown["<b>odd</b>"][:2] == ["finished", "30/250"]
        assert len(ask(page, LINES)) == 4  # train/loss and val/loss of each
        ask(page, "return follow()")
        assert page.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        of_the_page = {url for url in asked if not url.startswith(("data:", "chrome://"))}  # the browser's own pages
        assert of_the_page == {address, f"{address}runs.json"}

    def test_it_follows_the_runs_and_keeps_what_the_reader_chose(self, page: Any, address: str) -> None:
        open_page(page, address, 1100)
        ask(page, "[...document.querySelectorAll('.controls button')].find(b => b.textContent === 'tokens').click()")
        add_rows(Path("runs/nano-pysource-adamw-s1337-1a2b3c4d"), 5, 9)
        write_run("new", 2)
        ask(page, "return follow()")
        shown = {row[0]: row[2] for row in ask(page, SHOWN)}
        assert (shown["nano-pysource-adamw-s1337-1a2b3c4d"], shown["new"]) == ("80/250", "10/250")
        assert sorted(map(tuple, ask(page, LINES)))[-2:] == [("new", 2), ("new", 2)]
        assert ask(page, "return plots[0].canvas.querySelector('.xtitle').textContent") == "tokens"

    def test_a_server_that_has_gone_is_told(self, page: Any, address: str) -> None:
        open_page(page, address, 1100)
        ask(page, "window.fetch = () => Promise.reject(new Error('refused')); return follow()")
        assert ask(page, "return document.getElementById('said').textContent").startswith("no answer since ")

    def test_a_phone_shows_it_without_sideways_scrolling(self, page: Any, address: str) -> None:
        open_page(page, address, 360)
        assert ask(page, "return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        boxes = "[...document.querySelectorAll('td, h1, .canvas svg')].map(each => each.getBoundingClientRect())"
        assert ask(page, f"return {boxes}.filter(box => box.right > 360).length") == 0
        column = "return getComputedStyle(document.querySelector('td[data-column=state]'), '::before').content"
        assert ask(page, column) != "none"  # every cell says its column
