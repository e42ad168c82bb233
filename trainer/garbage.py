"""When Python looks for garbage that reference counts do not free: at the same steps on all ranks."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def collected_on_request() -> Iterator[None]:
    """Leaves collecting to collect_garbage(), and what there is by now out of it; then as it was.

    Python itself collects when it has made so many objects, on each rank at another time; the others then wait for it.
    Where the caller has frozen objects, all stay frozen at the end, as Python cannot tell its from ours.
    """
    was_enabled, had_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not had_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_garbage(row: Mapping[str, Any]) -> None:
    """Collects what has become garbage since the row of metrics before this one; with an evaluation, all garbage."""
    gc.collect(2 if "val/loss" in row else 1)  # the oldest generation has millions of objects of torch.compile
