"""Shows on the console how far work on bytes has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(console: bool, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of bytes that are done; what: names the work; total: all its bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)
