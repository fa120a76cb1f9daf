"""A server for one calibration, where none is running."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import httpx

from heed_server.calibrate.errors import CalibrationError

_START_SECONDS = 900
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def local_server(model: str, flags: Sequence[str]) -> Iterator[str]:
    """`heed serve` on a free loopback port until the block ends; gives its address.

    A SIGTERM or SIGHUP ends the block as well: it is raised in it as `SystemExit`.

    Raises:
        CalibrationError: it did not start; the end of its log is in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "heed_server", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with _raised_signals(), tempfile.TemporaryDirectory(prefix="heed-calibrate-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            # A session of its own: Ctrl-C is for this process, which then ends the server.
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, log)
            yield url
        finally:
            _stop(process)


@contextmanager
def _raised_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit` here, unless they are ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # The way out takes as long as the server does to end; another signal must not cut it short.
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise CalibrationError(f"the server did not start:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
