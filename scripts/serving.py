"""Serves the live page of runs to a browser: for scripts/runs.py --serve.

A page is served, instead of a file being rewritten, so that nothing is computed while nobody looks, nothing is written
to disk, and a phone or the other end of an ssh tunnel can look too.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from typing_extensions import override

from configs import ConfigError
from files.errors import one_line
from launch.listing import ListedRun
from launch.loss_curves import LossCurves
from launch.run_rows import Chosen
from report.live import live_page, losses_figure

MOST_DRAWN = 12  # runs in the figure
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
WORDS = ("run", "state")  # columns that hold no numbers

Answers = Mapping[str, Callable[[], tuple[str, str]]]  # by path: type and text


class LiveRuns:
    """What the page shows of the runs. columns: of its table, and what makes the cells of a run."""

    def __init__(
        self, chosen: Chosen, columns: Sequence[str], cells_of: Callable[[ListedRun, Sequence[str]], Mapping[str, str]]
    ) -> None:
        self._chosen, self._columns, self._cells_of = chosen, columns, cells_of
        self._curves: dict[Path, LossCurves] = {}
        self._places: dict[str, int] = {}  # in the palette: a run keeps its colour
        self._lock = Lock()  # several browsers may ask at once

    def data(self) -> dict[str, Any]:
        """How the runs stand now, for live.js."""
        with self._lock:
            runs = self._chosen.refresh()
            drawn = {run.progress.name: self._curves_of(run) for run in runs[:MOST_DRAWN]}
            for name in drawn:
                self._places.setdefault(name, len(self._places))
            left = len(runs) - len(drawn)
            return {
                "columns": list(self._columns),
                "numbers": [column for column in self._columns if column not in WORDS],
                "rows": [list(self._cells_of(run, self._columns).values()) for run in runs],
                "notes": self._chosen.notes,
                "drawn": f"The first {len(drawn)} of {len(runs)} runs are drawn." if left else "",
                "figure": losses_figure(drawn, self._places),
            }

    def _curves_of(self, run: ListedRun) -> Mapping[str, Sequence[Mapping[str, float]]]:
        curves = self._curves.setdefault(run.path, LossCurves(run.path))
        curves.update()
        return curves.points


def serve(runs: LiveRuns, host: str, port: int, title: str) -> int:
    """Serves the page until Ctrl-C; returns the exit status. Raises: ConfigError: if the address cannot be used."""
    with server(runs, host, port, title) as served:
        name, number = served.server_address[:2]
        print(f"http://{name!s}:{number} shows {title}; Ctrl-C ends this", flush=True)
        try:
            served.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def server(runs: LiveRuns, host: str, port: int, title: str) -> ThreadingHTTPServer:
    """Returns the server, which listens; port 0: any that is free. Raises: ConfigError: as serve."""
    runs.data()  # what is wrong is told before
    answers: Answers = {
        "/": lambda: ("text/html", live_page(title, runs.data())),
        "/runs.json": lambda: ("application/json", json.dumps(runs.data(), allow_nan=False)),
    }
    try:
        return _Server((host, port), _handler(answers, host))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"host={host} port={port} cannot be listened on: {reason}; choose another") from None


class _Server(ThreadingHTTPServer):
    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that closes its page is no error
            super().handle_error(request, client_address)


def _handler(answers: Answers, host: str) -> type[BaseHTTPRequestHandler]:
    """Answers GET; of a server on this machine alone only by its own names, so that no other site can read it."""

    class Handler(BaseHTTPRequestHandler):
        @override
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Host", "").rpartition(":")[0]
            make = answers.get(self.path.partition("?")[0])
            if host in LOOPBACK and asked not in (*LOOPBACK, ""):
                self._send(HTTPStatus.FORBIDDEN, "text/plain", f"this is not {asked}")
            elif make is None:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", "there are / and /runs.json")
            else:
                self._answer(make)

        def _answer(self, make: Callable[[], tuple[str, str]]) -> None:
            try:
                kind, text = make()
            except Exception as error:  # the server must go on, and the page shows why it has nothing new
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", one_line(error))
            else:
                self._send(HTTPStatus.OK, kind, text)

        def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

    return Handler
