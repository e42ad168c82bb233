"""What a reader finds in a report, in a real browser where there is one."""

import csv
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from report import results as stored
from report.figures import PALETTE, FigureError, compact
from report.files import write_report
from report.ledger import BEGIN, END, ledger_table, write_ledger, write_short_table
from report.numbers import in_words
from report.results import Arm, Axis, Figure, Measure, ProtocolResult, Results, Run, Series, Source, Table

NASTY = "</script><script>document.title='owned'</script> | `pipe` <b>β₂ = .99</b> $x$ & “Ünï” 优化"
FLOPS, SECONDS = "FLOPs, curvature passes included", "seconds in training steps"
STEPS = [float(step) for step in range(0, 1001, 50)]


def curve(arm: str, seed: int) -> dict[str, list[float | None]]:
    """A made-up loss curve; the candidate is a little lower and a little slower."""
    gain, cost = {"adamw": (1.0, 1.0), "sophiag": (1.03, 1.06), "lion": (0.96, 0.97)}[arm]
    loss: list[float | None] = [
        4.2 + 4.1 * math.exp(-gain * s / 220) + 0.03 * math.sin(s / 70 + 2 * seed) for s in STEPS
    ]
    return {
        "step": list(STEPS),
        "tokens": [s * 2048 for s in STEPS],
        "flops": [s * 5.3e10 * cost for s in STEPS],
        "seconds": [s * 0.13 * cost for s in STEPS],
        "val/loss": loss,
    }


def lines() -> Figure:
    figure = Figure(
        "loss-curves",
        "Validation loss of every full run",
        "lines",
        Axis("steps"),
        Axis("val/loss (nats per token)"),
        series=[],
        alternatives={"tokens": [], FLOPS: [], SECONDS: []},
        caption="Final comparison, three seeds per arm; the same data in the same order.",
        hline=4.21,
        hline_label="AdamW, end",
    )
    labels = {"adamw": "AdamW", "sophiag": "SophiaG", "lion": "Lion"}
    for arm, seed in itertools.product(labels, (0, 1, 2)):
        points = curve(arm, seed)
        ys = list(points["val/loss"])
        if (arm, seed) == ("lion", 2):
            ys[9:] = [None] * (len(ys) - 9)  # diverged
        figure.series.append(Series(labels[arm], list(STEPS), ys, arm=arm))
        for label, key in (("tokens", "tokens"), (FLOPS, "flops"), (SECONDS, "seconds")):
            figure.alternatives[label].append([x for x in points[key] if x is not None])
    return figure


def fitted() -> Figure:
    xs, names = [250.0, 500.0, 750.0, 1000.0], {"adamw": "AdamW", "sophiag": "SophiaG"}
    series = []
    for arm, shift in (("adamw", 0.0), ("sophiag", -0.05)):
        ys: list[float | None] = [4.2 + 30 * x**-0.6 + shift for x in xs]
        low, high = ([None if y is None else y + side * 0.04 for y in ys] for side in (-1, 1))
        series.append(Series(names[arm], list(xs), ys, low, high, arm=arm, dashed=arm == "adamw"))
    return Figure(
        "fitted-curve",
        "Final loss of shortened runs",
        "lines",
        Axis("steps of the run", log=True),
        Axis("val/loss (nats per token)", log=True),
        series,
    )


def bars() -> Figure:
    names = {"adamw": ("AdamW", 8.0), "sophiag": ("SophiaG", 8.0), "lion": ("Lion <i>", 4.0)}
    series = [Series(label, [label], [size], arm=arm) for arm, (label, size) in names.items()]
    return Figure("state-bytes", "Optimizer state", "bars", Axis("arm"), Axis("bytes per parameter"), series)


def points() -> Figure:
    rates = [5e-4, 1e-3, 2e-3, 4e-3]
    series = []
    for arm, label, best in (("adamw", "AdamW", 2e-3), ("sophiag", "SophiaG", 1e-3), ("lion", "Lion", 5e-4)):
        ys: list[float | None] = [4.2 + 0.1 * abs(math.log2(rate / best)) for rate in rates]
        low, high = ([None if y is None else y + side * 0.05 for y in ys] for side in (-1, 1))
        series.append(Series(label, list(rates), ys, low, high, arm=arm))
    series[-1].y[-1] = series[-1].low[-1] = series[-1].high[-1] = None  # type: ignore[index]  # it diverged there
    x, y = Axis("peak lr", log=True), Axis("val/loss (nats per token)")
    return Figure("loss-over-lr", f"Loss over learning rate {NASTY}", "points", x, y, series, caption=NASTY)


def run(arm: str, seed: int, status: str = "finished") -> Run:
    final = curve(arm, seed)["val/loss"][-1]
    return Run(
        name=f"{arm}-{seed}-3f9a",
        arm=arm,
        protocol="tuned",
        purpose="full budget",
        seed=seed,
        steps=1000,
        status=status,
        overrides=[f"optim={arm}", f"seed={seed}", "schedule.warmup_steps=50"],
        config_hash="3f9ac01b22d84e55aa01",
        loss=final if status == "finished" else None,
        seconds=131.25,
        flops=5.3e13,
        peak_bytes=1.4e9,
        clipped_share=0.125,
        diagnostics={"optim/win_rate": 0.41} if arm == "sophiag" else {},
        commit="8f76b3fe77aa00112233",
    )


def measures() -> list[Measure]:
    return [
        Measure(
            "speed_up_steps", "speed-up in steps, fitted curve", "x", 1.0834, 1.0212, 1.1519, 3, 0.031, 0.0213,
            claimed=2.0, no_effect=1.0, log_scale=True, verdict="not reproduced",
        ),
        Measure(
            "half_budget", "loss at half budget minus baseline's at full", "nats per token", 0.0421, 0.0301, 0.0541, 3,
            0.0049, 0.0004, claimed=0.0, no_effect=0.21, verdict="not reproduced",
        ),
        Measure("overhead", "step time over AdamW's", "%", 6.1, 4.9, 7.3, 3, claimed=5.0, no_effect=0.0),
        Measure("seconds", f"speed-up in seconds {NASTY}", "x", None, note="never reached the baseline's loss"),
    ]  # fmt: skip


def rich() -> Results:
    """A claim's results with a bit of everything."""
    runs = [run(arm, seed) for arm in ("adamw", "sophiag", "lion") for seed in (0, 1, 2)]
    runs[-1] = run("lion", 2, "diverged")
    tuned = {"tuned": ["optim.lr=2e-3", "optim.weight_decay=0.1"]}
    return Results(
        claim="sophia_2x",
        title="Sophia needs half of AdamW's steps",
        scale="nano",
        date="2025-11-21",
        command="python scripts/reproduce.py claim=sophia_2x scale=nano",
        source=Source(
            "Liu et al. 2023, arXiv 2305.14342",
            "https://arxiv.org/abs/2305.14342",
            "Sophia achieves the same loss as AdamW in 50 % of the steps.",
            "GPT-2 125M to 770M on OpenWebText, 480 x 1024 tokens a step",
            ["the seed of the paper's curves"],
        ),
        contrary=["Issue #46 of the authors' repository: SophiaG at 100k steps 2.897, AdamW at 200k 2.863.", NASTY],
        rule="Reproduced if the interval lies above the middle of no effect and claim, not reproduced if below it.",
        verdict="not reproduced",
        sentence="Against an AdamW tuned with the same budget, SophiaG needed 1.08 times fewer steps, not 2 times.",
        protocols=[
            ProtocolResult(
                "paper", "The paper's settings.", "undecided", "Too few seeds.", 4, [replace(measures()[0], n=2)]
            ),
            ProtocolResult(
                "tuned", f"Equal tuning. {NASTY}", "not reproduced", "1.08 times fewer steps.", None, measures()
            ),
        ],
        difference="With the paper's settings both arms were worse by 0.3 nats.",
        arms=[
            Arm("adamw", "AdamW", "baseline", {"paper": ["optim.lr=6e-4"], **tuned}, "8 trials, lr 2e-3 was best"),
            Arm("sophiag", "SophiaG", "candidate", tuned, NASTY),
            Arm("lion", "Lion", "other", tuned),
        ],
        runs=runs,
        curves={each.name: curve(each.arm, each.seed) for each in runs},
        figures=[lines(), fitted(), bars(), points()],
        tables=[Table("Memory, measured", ["arm", "peak", NASTY], [["AdamW", "1.30 GiB", "a|b"]], "One device.")],
        environment={"device": "Intel Xeon, 2 threads", "packages": {"torch": "2.13.0"}, "threads": 2},
        data={"train": "sha256:0f3c", "val": "sha256:77aa"},
        notes=["Shared with other work, so seconds are rough.", NASTY],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sophia_2x-nano")
    assert all(written.stat().st_size for written in write_report(rich(), path))
    return path


def test_results_survive_their_file(tmp_path: Path) -> None:
    stored.write(rich(), tmp_path / "results.json")
    assert stored.read(tmp_path / "results.json") == rich()


def test_a_report_is_every_file_a_reader_needs(folder: Path) -> None:
    figures = {f"{each.name}.{kind}" for each in rich().figures for kind in ("png", "pdf")}
    expected = {"report.html", "report.md", "curves.csv", "table-1-memory-measured.csv", *figures}
    assert {path.name for path in folder.iterdir()} == expected


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for path in write_report(rich(), tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


class Words(HTMLParser):
    """The page's visible text, its scripts and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.inside = "", list[str](), ""
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside not in ("script", "style") else ""


def test_text_of_results_stays_text(folder: Path) -> None:
    words = Words((folder / "report.html").read_text("utf-8"))
    assert words.tags.count("script") == 3
    assert "b" not in words.tags
    assert words.text.count(NASTY) == 8  # a measure, a protocol, tuning, a figure twice, a column, contrary, notes
    assert "sha256:77aa" in words.text


def test_the_page_loads_nothing(folder: Path) -> None:
    words = Words((folder / "report.html").read_text("utf-8"))
    assert {each for each in words.addresses if not each.startswith(("#", "data:"))} == {rich().source.url}
    assert "default-src 'none'" in (folder / "report.html").read_text("utf-8")


def test_a_script_is_no_link(tmp_path: Path) -> None:
    write_report(replace(rich(), source=replace(rich().source, url="javascript:alert(1)"), figures=[]), tmp_path)
    assert "javascript:alert" not in (tmp_path / "report.html").read_text("utf-8")
    assert "javascript:alert" not in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_verdict_comes_first_with_its_number_and_interval(folder: Path, name: str) -> None:
    text = (folder / name).read_text("utf-8")
    text = Words(text).text if name.endswith("html") else text
    order = ["ot reproduced", rich().sentence, "1.08×", "1.02 to 1.15", "Scale: nano", "What was found"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    for told in ("not measured", "diverged", "3f9ac01b22d8", "2.897", "the seed of the paper's curves", "sha256:77aa"):
        assert told in text
    assert rich().command in text


def test_a_diverged_run_is_red_and_counted(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('<strong class="alarm">diverged</strong>') == 1
    tally = re.search(r"Lion</span></td>(.*?)</tr>", page[page.index(">finished</th>") :])
    assert tally is not None
    assert re.findall(r">(\d+)<", tally[1]) == ["2", "1", "0"]


def test_markdown_tables_keep_their_columns(folder: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", (folder / "report.md").read_text("utf-8"), re.MULTILINE)
    assert len(blocks) == 7  # measures of two protocols, a table, arms, runs twice, what was run
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_markdown_shows_every_figure(folder: Path) -> None:
    pictures = re.findall(r"!\[.*?\]\((\S+?)\)", (folder / "report.md").read_text("utf-8"))
    assert pictures == [f"{each.name}.png" for each in rich().figures]


def test_curves_csv_reads_back_exactly(folder: Path) -> None:
    with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "arm", "seed", "step", "tokens", "flops", "seconds", "val/loss"]
    for name, recorded in rich().curves.items():
        own = [row for row in rows if row["run"] == name]
        assert {row["arm"] for row in own} == {name.split("-")[0]}
        for key, values in recorded.items():
            assert [float(row[key]) for row in own] == values


def test_results_without_training_make_a_report(tmp_path: Path) -> None:
    bare = replace(rich(), runs=[], arms=[], curves={}, figures=[], tables=[], protocols=[], environment={}, data={})
    assert {path.name for path in write_report(bare, tmp_path)} == {"report.html", "report.md"}
    assert "No training runs are behind this" in (tmp_path / "report.md").read_text("utf-8")
    write_report(replace(bare, scale_note="State of the full-size model."), tmp_path)
    assert "State of the full-size model." in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(bars(), name="../up"), "names its files"),
        (replace(bars(), kind="pie"), "expected one of lines, bars, points"),
        (replace(bars(), series=[Series("AdamW", [1.0, 2.0], [1.0])]), "series 'AdamW': 2 x but 1 y"),
        (replace(lines(), alternatives={"tokens": [[1.0]]}), "x axis 'tokens' needs one value per point"),
    ],
)
def test_a_figure_that_cannot_be_drawn_says_so_before_anything_is_written(
    broken: Figure, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FigureError, match=message):
        write_report(replace(rich(), figures=[bars(), broken]), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (5e3, "5000"), (2e4, "20k"), (-1.5e6, "-1.5M"), (1e9, "1G"), (2e20, "2e+20")]
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.0212, 1.1519, "1.02 to 1.15"), (1.0712, 1.0919, "1.071 to 1.092"), (1.02, None, "at least 1.02"),
     (None, 1.1519, "at most 1.15"), (None, None, "1.083×"), (1.0834, 1.0834, "1.083")],
)  # fmt: skip
def test_an_interval_is_written_to_the_place_it_leaves_certain(
    low: float | None, high: float | None, words: str, tmp_path: Path
) -> None:
    measure = replace(measures()[0], low=low, high=high)
    protocol = ProtocolResult("tuned", "", "not reproduced", "", None, [measure])
    text = ledger_table([replace(rich(), protocols=[protocol])])
    assert words in text
    assert ("interval" in text) == (low != high)  # none is known, or the number is exact
    write_report(replace(rich(), protocols=[protocol], figures=[]), tmp_path)
    assert words in (tmp_path / "report.html").read_text("utf-8")


def test_a_number_reads_the_same_in_a_sentence_a_table_and_the_headline(tmp_path: Path) -> None:
    measure = replace(measures()[0], estimate=0.17649, low=0.0, high=0.35298)
    words = in_words(measure)
    assert words == "speed-up in steps, fitted curve is 0.18×, 95 % interval 0.00 to 0.35, claimed 2×"
    protocol = ProtocolResult("tuned", "", "not reproduced", words, None, [measure])
    write_report(replace(rich(), protocols=[protocol], sentence=words, figures=[]), tmp_path)
    for text in (
        (tmp_path / "report.md").read_text("utf-8"),
        Words((tmp_path / "report.html").read_text("utf-8")).text,
    ):
        assert text.count("0.18×") >= 4  # two sentences, the headline, the table
        assert "0.176" not in text


@pytest.mark.parametrize(("theme", "page"), [("light", "#ffffff"), ("dark", "#14171c")])
def test_every_arm_stands_out_from_the_page(theme: str, page: str) -> None:
    for colour in PALETTE[theme]:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3, colour  # WCAG 1.4.11, graphics


def test_the_ledger_links_every_claim_to_its_report(tmp_path: Path) -> None:
    other = replace(rich(), claim="soap_40_35", verdict="undecided", protocols=[])
    path = write_ledger([rich(), other], tmp_path)
    text = path.read_text("utf-8")
    assert path.name == "README.md"
    assert "2 claims: 0 reproduced, 1 not reproduced, 1 undecided" in text
    assert "[sophia_2x](<sophia_2x-nano/report.md>)" in text
    for told in (rich().source.sentence, "1.08× (95 % interval 1.02 to 1.15)", "2025-11-21", "Intel Xeon, 2 threads"):
        assert told in text


def test_the_short_table_has_a_line_for_every_claim_and_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    other = replace(rich(), claim="soap_40_35", title="SOAP | [twice]", verdict="undecided", protocols=[])
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for _ in range(2):
        write_short_table([rich(), other], path, beside="docs/claims/")
    text = path.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}") and text.endswith(f"{END}after\n") and "old" not in text
    assert "Scale nano: 2 claims: 0 reproduced, 1 not reproduced, 1 undecided." in text
    assert f"| [{rich().title}] | not reproduced | 1.08×, claimed 2× |" in text
    assert r"| [SOAP \| \[twice\]] | undecided | – |" in text
    assert r"[SOAP \| \[twice\]]: <docs/claims/soap_40_35-nano/report.md>" in text
    path.write_text("no table is wanted here\n")
    write_short_table([other], path, beside="")
    assert path.read_text("utf-8") == "no table is wanted here\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that logs what pages say and ask for."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1100,900",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def open_report(browser: Any, folder: Path) -> None:
    """Loads the report anew and returns when every figure is drawn."""
    browser.get((folder / "report.html").as_uri())
    wait(
        browser, "return document.documentElement.dataset.drawn === String(document.querySelectorAll('figure').length)"
    )


def wait(browser: Any, condition: str, *arguments: Any) -> None:
    """Returns when the JavaScript returns true; fails after seconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10, poll_frequency=0.02).until(lambda _: ask(browser, condition, *arguments))


def ask(browser: Any, body: str, *arguments: Any) -> Any:
    """What the JavaScript returns; plot(name) is a figure's canvas."""
    return browser.execute_script(
        "const plot = name => document.querySelector(`[data-figure='${name}'] .canvas`);" + body, *arguments
    )


def press(browser: Any, figure: str, text: str) -> None:
    """Clicks a button above a figure."""
    find = "const all = document.querySelectorAll(`[data-figure='${arguments[0]}'] button`);"
    browser.execute_script(find + "[...all].find(each => each.textContent === arguments[1]).click()", figure, text)


# Lines, bars and points that are in the figure's SVG, by arm.
SHOWN = """
const counts = {};
for (const drawn of plot(arguments[0]).querySelectorAll('.trace')) {
  const { meta } = drawn.__data__[0].trace;
  if (meta.part !== 'band') counts[meta.arm] = (counts[meta.arm] || 0) + 1;
}
"""
EACH = {"adamw": 1, "sophiag": 1, "lion": 1}
DRAWN = {
    "loss-curves": {"adamw": 3, "sophiag": 3, "lion": 3},
    "fitted-curve": {"adamw": 1, "sophiag": 1},
    "state-bytes": EACH,
    "loss-over-lr": EACH,
}


@pytest.mark.slow
class TestInBrowser:
    @pytest.fixture(autouse=True)
    def fresh(self, page: Any, folder: Path) -> None:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.prefer(page, "light")
        for name in ("browser", "performance"):
            page.get_log(name)  # reading empties it
        open_report(page, folder)

    @staticmethod
    def prefer(page: Any, scheme: str) -> None:
        """Sets what the system asks of pages; that they jump instead of gliding, too, so a click hits its aim."""
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def test_nothing_complains_and_nothing_is_asked_of_the_network(self, page: Any, folder: Path) -> None:
        assert page.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith("data:")} == {(folder / "report.html").as_uri()}
        assert page.title == rich().title

    @pytest.mark.parametrize("name", DRAWN)
    def test_every_series_of_every_figure_is_drawn(self, page: Any, name: str) -> None:
        assert ask(page, SHOWN + "return counts", name) == DRAWN[name]
        heights = "return [...plot(arguments[0]).querySelectorAll('.trace path')].map(path => path.getBBox().height)"
        assert max(ask(page, heights, name)) > 1

    def test_an_arms_button_hides_it_everywhere_and_brings_it_back(self, page: Any) -> None:
        chip = page.find_element("css selector", "[data-arm=sophiag]")
        for pressed, more in (("false", 0), ("true", 1)):
            chip.click()
            assert chip.get_attribute("aria-pressed") == pressed
            for name, counts in DRAWN.items():
                expected = counts["sophiag"] * more
                wait(page, SHOWN + "return (counts.sophiag || 0) === arguments[1]", name, expected)
                assert ask(page, SHOWN + "return counts.adamw", name) == counts["adamw"]

    def test_the_legend_hides_an_arm_in_its_figure(self, page: Any) -> None:
        from selenium.webdriver import ActionChains

        entry = page.find_elements("css selector", "[data-figure=loss-curves] .legendtoggle")[0]
        ActionChains(page).move_to_element(entry).click().perform()
        wait(page, SHOWN + "return counts.adamw === undefined && counts.lion === 3", "loss-curves")
        press(page, "loss-curves", "tokens")
        assert ask(page, SHOWN + "return [counts.adamw, counts.lion]", "loss-curves") == [None, 3]
        assert ask(page, SHOWN + "return counts", "fitted-curve") == DRAWN["fitted-curve"]

    @pytest.mark.parametrize(("label", "key"), [("tokens", "tokens"), (FLOPS, "flops"), (SECONDS, "seconds")])
    def test_the_x_axis_turns_to_other_quantities_and_back(self, page: Any, label: str, key: str) -> None:
        look = "const p = plot('loss-curves');"
        look += "return [p.querySelector('.xtitle').textContent, p.data.map(trace => trace.x.at(-1))]"
        press(page, "loss-curves", label)
        ends = [curve(arm, seed)[key][-1] for arm in EACH for seed in (0, 1, 2)]
        assert ask(page, look) == [label, ends]
        press(page, "loss-curves", "steps")
        assert ask(page, look) == ["steps", [1000] * 9]

    @pytest.mark.parametrize("side", ["x", "y"])
    def test_an_axis_turns_logarithmic_and_back(self, page: Any, side: str) -> None:
        look = f"return plot('loss-curves')._fullLayout.{side}axis.type"
        for expected in ("log", "linear"):
            press(page, "loss-curves", f"log {side}")
            assert ask(page, look) == expected
            assert 3 <= ask(page, f"return plot('loss-curves').querySelectorAll('.{side}tick').length") <= 12
        assert ask(page, look.replace("loss-curves", "fitted-curve")) == "log"  # as its axis says

    def test_a_drag_zooms_and_reset_returns(self, page: Any) -> None:
        from selenium.webdriver import ActionChains

        look = "return plot('loss-curves').layout.xaxis.range"
        low, high = full_range = ask(page, look)
        area = page.find_element("css selector", "[data-figure=loss-curves] .nsewdrag")
        ActionChains(page, 50).move_to_element(area).click_and_hold().move_by_offset(150, 60).release().perform()
        range_is = "const [low, high] = plot('loss-curves').layout.xaxis.range; return "
        wait(page, range_is + f"high - low < {(high - low) / 2}")
        press(page, "loss-curves", "reset")
        wait(page, range_is + f"low === {full_range[0]} && high === {full_range[1]}")

    def test_pointing_at_a_bar_says_its_numbers(self, page: Any) -> None:
        from selenium.webdriver import ActionChains

        bar = page.find_elements("css selector", "[data-figure=state-bytes] .point path")[2]
        ActionChains(page, 50).move_to_element(bar).move_by_offset(3, 3).perform()
        said = "plot('state-bytes').querySelector('.hoverlayer').textContent"
        wait(page, f"return {said}.includes('bytes per parameter: 4')")
        assert "Lion <i>" in ask(page, f"return {said}")

    def test_dark_and_light_follow_the_system_and_the_button(self, page: Any) -> None:
        look = (
            "const stroke = plot('loss-curves').querySelector('.trace .js-line').style.stroke;"
            "return [getComputedStyle(document.body).backgroundColor, stroke].join(' ')"
        )
        first = {name: tuple(int(PALETTE[name][0][i : i + 2], 16) for i in (1, 3, 5)) for name in PALETTE}
        seen = {"light": f"rgb(255, 255, 255) rgb{first['light']}", "dark": f"rgb(20, 23, 28) rgb{first['dark']}"}
        assert ask(page, look) == seen["light"]
        self.prefer(page, "dark")
        wait(page, f"return (() => {{{look}}})() === arguments[0]", seen["dark"])
        for scheme in ("light", "dark"):
            page.find_element("id", "theme").click()
            assert ask(page, look) == seen[scheme]

    def test_a_phone_shows_it_without_sideways_scrolling(self, page: Any, folder: Path) -> None:
        metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        open_report(page, folder)
        assert ask(page, "return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        pieces = "[...document.querySelectorAll('.canvas svg, h1, h3, p')]"
        assert ask(page, f"return {pieces}.filter(each => each.getBoundingClientRect().right > 360).length") == 0
