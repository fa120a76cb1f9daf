"""Servers under measurement: stock vLLM and Heed on one model, each a process of its own on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import httpx

STOCK = "from vllm.entrypoints.launchers.api_server.entry import main; main()"


START_SECONDS = 900
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class ServerError(RuntimeError):
    """A server did not start."""


@dataclass
class Server:
    """A running server; a context manager that stops it.

    start_seconds: from the command to the first healthy answer. Entering raises `ServerError` where it
    does not start, with the end of its log.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    port: int
    start_seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api_seconds(self) -> float:
        """Processor time that the API process has taken so far; the engine's processes are not in it."""
        assert self.process is not None
        return _processor_seconds(self.process.pid)[1]

    def processor_seconds(self) -> float:
        """Processor time that all of the server's processes have taken so far."""
        assert self.process is not None
        total = 0.0
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # one that has just ended
                session, seconds = _processor_seconds(int(path.name))
                total += seconds if session == self.process.pid else 0.0
        return total

    def __enter__(self) -> "Server":
        started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(started + START_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and everything that it has started."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _wait(self, deadline: float) -> None:
        assert self.process is not None
        while self.process.poll() is None and time.perf_counter() < deadline:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        raise ServerError(f"{self.name} did not start:\n{tail}")


def stock(model: Path | str, flags: Sequence[str], log: Path, split_kv: bool) -> Server:
    """vLLM's own server with no plug-in at all."""
    port = free_port()
    command = [
        sys.executable,
        "-c",
        STOCK,
        "--model",
        str(model),
        "--port",
        str(port),
        *_common(flags),
    ]
    environment = {"VLLM_PLUGINS": "", "VLLM_CPU_ATTN_SPLIT_KV": "1" if split_kv else "0"}
    return Server("stock", command, environment, log, port)


def heed(model: Path | str, flags: Sequence[str], log: Path) -> Server:
    """`heed serve` on the same model with the same flags."""
    port = free_port()
    command = [
        sys.executable, "-m", "heed_server", "serve", str(model),
        "--port", str(port), *_common(flags),
    ]  # fmt: skip
    return Server("heed", command, {}, log, port)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _common(flags: Sequence[str]) -> list[str]:
    return ["--host", "127.0.0.1", *flags]


def _processor_seconds(process: int) -> tuple[int, float]:
    """A process's session, and the processor time that it has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return int(fields[3]), (user + system) / os.sysconf("SC_CLK_TCK")


@contextmanager
def raised_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit` here, so that servers are ended with this process; unless they
    are ignored, as under nohup."""
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
