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

import httpx

from heed_server.calibrate.errors import CalibrationError

_START_SECONDS = 900


@contextmanager
def local_server(model: str, flags: Sequence[str]) -> Iterator[str]:
    """`heed serve` on a free loopback port until the block ends; gives its address.

    Raises:
        CalibrationError: it did not start; the end of its log is in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "heed_server", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with tempfile.TemporaryDirectory(prefix="heed-calibrate-") as folder:
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
