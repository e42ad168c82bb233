"""What the engine promises on several ranks, beyond the laws of tests/distributed."""

import pytest
import ranks
import torch
import world

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("option", ["soap", "adafactor"])
@pytest.mark.parametrize("placement", ["ddp", "fsdp2"])
def test_copies_and_groups_that_come_later_are_shared_among_ranks_too(placement: str, option: str) -> None:
    """Owners keep the matrices whose state they have. FSDP2 does not copy its models."""
    expected = ranks.a_copy_and_a_later_group("single", option)
    for found in world.run(2, ranks.a_copy_and_a_later_group, placement, option):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_maxima_over_rows_are_those_of_all_ranks_also_of_one_without_rows() -> None:
    found = world.run(3, ranks.maxima_over_rows)
    rows = torch.cat([each["own"] for each in found])
    assert [len(each["own"]) for each in found] == [1, 3, 0]
    assert all(torch.equal(each["maxima"], rows.amax(0)) for each in found)
