"""What a report says of the machines that its runs come from."""

from typing import Any

from reproduce import environments


def of(device: str, torch: str) -> dict[str, Any]:
    return {
        "device": device,
        "packages": {"torch": torch},
        "git": {"commit": device, "dirty": False},
        "data": {"val": device},
    }


def test_facts_that_agree_are_said_once() -> None:
    assert environments.merged([of("A", "2.13.0"), of("A", "2.13.0")]) == {
        "device": "A",
        "packages.torch": "2.13.0",
        "git.dirty": False,
    }


def test_facts_that_differ_are_counted() -> None:
    found = environments.merged([of("A", "2.11.0"), of("B", "2.13.0"), of("B", "2.13.0")])
    assert found["device"] == "B (2 runs), A (1 run)"
    assert found["packages.torch"] == "2.13.0 (2 runs), 2.11.0 (1 run)"


def test_a_fact_that_some_lack_is_counted_too() -> None:
    assert (
        environments.merged([{"device": "A", "cuda": "13.0"}, {"device": "A"}])["cuda"] == "13.0 (1 run), None (1 run)"
    )


def test_several_devices_are_a_note_and_so_is_where_steps_were_timed() -> None:
    both = [of("A", "2"), of("B", "2"), of("B", "2")]
    (first, second) = environments.note(both, "A")
    assert "B and A" in first
    assert "measured on A" in second
    assert environments.note([of("A", "2")], "A") == []
    assert environments.note([of("A", "2")], None) == []
    assert environments.note([], "A") == []
    assert environments.note([of("A", "2")], "B") == ["Seconds per step were measured on B."]
