"""What a reader sees of a report in a real browser, where there is one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.figures import PALETTE
from report.files import write_report
from report.results import Axis
from tests.report.samples import FLOPS, SECONDS, checks, curve, evidence, rich


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
    "evidence": {"sophiag": 3},  # ours, what others measured, an arrow
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

    @staticmethod
    def resize(page: Any, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

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
                assert ask(page, SHOWN + "return counts.adamw", name) == counts.get("adamw")

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
        self.resize(page, 360, 740)
        open_report(page, folder)
        assert ask(page, "return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        pieces = "[...document.querySelectorAll('.canvas svg, h1, h3, p')]"
        assert ask(page, f"return {pieces}.filter(each => each.getBoundingClientRect().right > 360).length") == 0

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
    def test_the_first_screen_shows_verdict_tuning_checks_and_figure(
        self, page: Any, folder: Path, width: int, height: int, theme: str
    ) -> None:
        self.prefer(page, theme)
        self.resize(page, width, height)
        open_report(page, folder)
        for piece in (".verdict", ".sentence", ".tuning", ".checks", "[data-figure=evidence] .canvas"):
            box = ask(page, "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", piece)
            assert 0 <= box["top"] < box["bottom"] <= height, piece
            assert 0 <= box["left"] < box["right"] <= width, piece

    def test_a_phone_folds_the_checks_that_pass_and_unfolds_all_of_them(self, page: Any, folder: Path) -> None:
        shown = "return [...document.querySelectorAll('.checks tbody tr')].filter(row => row.checkVisibility()"
        shown += " && row.getBoundingClientRect().height > 0).map(row => row.cells[0].textContent)"
        every = ["R1", "R10", *(each.id for each in checks() if each.passed)]
        assert ask(page, shown) == every
        self.resize(page, 390, 844)
        open_report(page, folder)
        assert ask(page, shown) == ["R1", "R10"]
        summary = page.find_element("css selector", ".checks summary")
        assert summary.text == "9 of 11 checks pass"
        summary.click()
        assert ask(page, shown) == every
        said = ask(page, "return document.querySelector('.checks details').innerText")
        for each in (each for each in checks() if each.passed):
            assert each.label in said and each.threshold in said and each.value in said

    def test_five_checks_that_do_not_pass_leave_room_for_the_figure_on_a_phone(self, page: Any, tmp_path: Path) -> None:
        failing = [replace(each, passed=each.passed and each.id not in ("R7", "R8", "R11")) for each in checks()]
        write_report(replace(rich(), verdict="out of regime", checks=failing), tmp_path)
        self.resize(page, 390, 844)
        open_report(page, tmp_path)
        assert ask(page, "return plot('evidence').getBoundingClientRect().bottom") <= 844

    def test_a_phone_stacks_tables_and_says_where_one_must_scroll(self, page: Any, folder: Path) -> None:
        overflowing = (
            "return [...document.querySelectorAll('.scroll:has(table)')].filter(each => each.checkVisibility()"
        )
        overflowing += " && each.scrollWidth > each.clientWidth + 1)"
        self.resize(page, 390, 844)
        open_report(page, folder)
        wait(page, overflowing + ".every(each => each.classList.contains('overflows'))")
        assert ask(page, overflowing + ".filter(each => each.classList.contains('stacks')).length") == 0
        page.execute_script("document.querySelector('details:has(.long)').open = true")
        wait(page, "return document.querySelector('.long').classList.contains('overflows')")
        hint = "return getComputedStyle(document.querySelector('.long'), '::before').content"
        assert "scroll sideways" in ask(page, hint)

    def test_titles_of_axes_and_legends_are_within_their_figure(self, page: Any, tmp_path: Path) -> None:
        words = "bytes of optimizer state per parameter of the model, padded vocabulary included"
        shown = replace(evidence(), x=Axis(words, log=True), y=Axis(words, log=True))
        shown.series = [replace(each, name=f"{each.name}, {words}") for each in shown.series]
        write_report(replace(rich(), figures=[shown]), tmp_path)
        for width in (1280, 390):
            self.resize(page, width, 844)
            open_report(page, tmp_path)
            outside = """return [...document.querySelectorAll('.xtitle, .ytitle, .legendtext')].filter(text => {
                const [own, all] = [text, text.closest('.canvas')].map(each => each.getBoundingClientRect());
                return own.left < all.left - 1 || own.right > all.right + 1
                    || own.top < all.top - 1 || own.bottom > all.bottom + 1;
            }).map(text => text.textContent)"""
            assert ask(page, "return document.querySelectorAll('.legendtext').length") == 2
            assert ask(page, outside) == []

    def test_no_text_is_shortened(self, page: Any) -> None:
        for width in (1280, 390):
            self.resize(page, width, 844)
            style = "getComputedStyle(each)"
            look = f"[...document.querySelectorAll('body *')].filter(each => {style}.textOverflow === 'ellipsis')"
            assert ask(page, f"return {look}.length") == 0
            assert "..." not in ask(page, "return document.body.innerText")
