"""The ledger of all claims and README's short table."""

from dataclasses import replace
from pathlib import Path

from report.ledger import BEGIN, END, trends, write_ledger, write_short_table
from report.results import Results, Table
from tests.report.samples import checks, measures, rich


def other(scale: str = "nano", **changes: object) -> Results:
    """Results of another claim, without parts."""
    made = replace(rich(), claim="soap_40_35", title="SOAP | [twice]", scale=scale, verdict="undecided", protocols=[])
    return replace(made, **changes)  # type: ignore[arg-type]  # fields of several types


def out_of_regime() -> Results:
    failing = [replace(each, passed=False) if each.id == "R7" else each for each in checks()]
    return replace(rich(), claim="lion", title="Lion", verdict="out of regime", checks=failing)


def test_the_ledger_links_every_claim_to_its_report_and_tells_every_part(tmp_path: Path) -> None:
    path = write_ledger([rich(), other()], tmp_path)
    text = path.read_text("utf-8")
    assert path.name == "README.md"
    assert "2 claims at nano: 1 weaker than claimed, 1 undecided." in text
    assert "[sophia_2x](<sophia_2x-nano/report.md>)" in text
    parts = [
        "speed-up in steps, fitted curve: 1.08× (95 % interval 1.02 to 1.15), claimed 2× (≥ 1.75×): "
        "weaker than claimed",
        "speed-up in FLOPs: 1.96× (95 % interval 1.78 to 2.16), claimed 2× (≥ 1.75×): reproduced",
    ]
    assert "<br>".join(parts) in text
    for told in (rich().source.statement, "**weaker than claimed at nano**", "2025-11-21", "Intel Xeon, 2 threads"):
        assert told in text


def test_the_ledger_says_which_checks_put_a_claim_out_of_regime(tmp_path: Path) -> None:
    text = write_ledger([out_of_regime()], tmp_path).read_text("utf-8")
    failing = "fails: R1 (target within what the candidate ran), R7 (baseline under a bigram table)"
    assert f"{failing}; not known: R10 (another batch size, same verdict)" in text
    assert "**out of regime at nano**" in text
    assert "fails" not in write_ledger([rich()], tmp_path).read_text("utf-8")  # its verdict stands in spite of R1


def test_the_ledger_shows_the_tables_it_is_given(tmp_path: Path) -> None:
    signs = Table(
        "Signs beside those of others", ["arm", "ours", "Wen et al."], [["SOAP", "better", "better"]], "All agree."
    )
    text = write_ledger([rich()], tmp_path, [signs]).read_text("utf-8")
    assert text.endswith(
        "## Signs beside those of others\n\n| arm | ours | Wen et al. |\n| --- | --- | --- |\n"
        "| SOAP | better | better |\n\nAll agree.\n"
    )


def test_a_claim_at_several_scales_has_its_trend_from_small_to_large(tmp_path: Path) -> None:
    at_micro = replace(measures()[0], estimate=1.3, low=1.2, high=1.4)
    protocol = replace(rich().protocols[-1], measures=[at_micro])
    larger = replace(rich(), scale="micro", verdict="undecided", protocols=[protocol])
    rows = [larger, other(), replace(rich(), protocols=[replace(protocol, measures=measures()[:1])])]
    assert trends(rows) == [
        "Sophia needs half of AdamW's steps: weaker than claimed at nano, undecided at micro; speed-up in steps, "
        "fitted curve 1.08× (95 % interval 1.02 to 1.15) at nano, 1.30× (95 % interval 1.20 to 1.40) at micro."
    ]
    text = write_ledger(rows, tmp_path).read_text("utf-8")
    assert "2 claims at nano: " in text and "1 claim at micro: " in text
    assert f"## The same claim at several scales\n\n* {trends(rows)[0]}\n" in text
    assert "several scales" not in write_ledger(rows[1:], tmp_path).read_text("utf-8")


def test_the_short_table_has_a_line_for_every_claim_and_takes_the_place_of_the_one_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for _ in range(2):
        write_short_table([rich(), other(), out_of_regime(), other("micro")], path, beside="docs/claims/")
    text = path.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}3 claims at nano: 1 weaker than claimed, ")
    assert text.endswith(f"{END}after\n") and "old" not in text
    assert f"| [{rich().title}][1] | weaker than claimed | 1 of 4 |\n" in text
    assert r"| [SOAP \| \[twice\]][2] | undecided | – |" in text
    assert "| out of regime (R1, R7) | " in text
    assert text.index("1 claim at micro: ") < text.index("| verdict at micro |") < text.index("[4] | undecided |")
    links = "[1]: <docs/claims/sophia_2x-nano/report.md>\n[2]: <docs/claims/soap_40_35-nano/report.md>\n"
    assert links + "[3]: <docs/claims/lion-nano/report.md>\n[4]: <docs/claims/soap_40_35-micro/report.md>\n" in text


def test_a_file_without_a_place_for_the_short_table_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("no table is wanted here\n")
    write_short_table([other()], path, beside="")
    assert path.read_text("utf-8") == "no table is wanted here\n"
