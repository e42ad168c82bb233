"""Output that cannot end a run: to a closed pipe, a terminal that is gone, a full disk, in an encoding that lacks
characters.
"""

import errno
import io
import os
import sys
import time

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe nobody reads, a closed terminal, a closed descriptor


def protect_output() -> None:
    """Makes sys.stdout and sys.stderr of this process drop what cannot be written, instead of raising.

    Streams that somebody has put in their places, and those that drop already, stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the process
            setattr(sys, name, _text(os.open(os.devnull, os.O_WRONLY), "utf-8", is_live=False))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, _text(stream.fileno(), stream.encoding, is_live=name == "stderr" or stream.isatty()))


def _text(descriptor: int, encoding: str, *, is_live: bool) -> io.TextIOWrapper:
    """Characters that the encoding lacks become escapes; is_live: every line is written at once."""
    raw: io.FileIO = _Dropping(descriptor, "wb", closefd=False)
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding=encoding, errors="backslashreplace", line_buffering=is_live)


class _Dropping(io.FileIO):
    """A file that takes everything; what the system refuses is lost."""

    def write(self, content: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]  # any buffer
        """Returns the number of bytes, all of them."""
        left = memoryview(content).cast("B")
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                if error.errno in GONE:
                    self._write_to_nothing()
                break
            if written is None:  # a descriptor that does not block, and is not ready
                time.sleep(0.01)
            left = left[written or 0 :]
        return memoryview(content).nbytes

    def _write_to_nothing(self) -> None:
        """Also for processes that this one starts: they would be ended by the signal that comes with a closed pipe."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
