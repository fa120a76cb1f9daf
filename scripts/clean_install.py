"""An environment with nothing in it, and whether the Heed that is put there serves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 900
STOP_SECONDS = 60
EDIT = {"method": "zerotuning", "gamma": 2}


class FailedError(Exception):
    """A check that did not pass; the message is for the person who started it."""


def say(message: str) -> None:
    print(f"heed: {message}", flush=True)


def run(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Output of a command. Raises `FailedError` with the end of it where the command fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise FailedError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{tail}")
    return done.stdout


def environment_of(venv: Path) -> dict[str, str]:
    """This process's environment as it is inside of `venv`, and without paths to other packages."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"VIRTUAL_ENV": str(venv), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}


def make_environment(venv: Path) -> dict[str, str]:
    """A new virtual environment, and the variables of a process in it."""
    run([sys.executable, "-m", "venv", venv], venv.parent)
    return environment_of(venv)


def serve_and_ask(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Start a server, have an edited answer of it, and stop it. Raises `FailedError`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=dict(environment),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        _ask(f"http://127.0.0.1:{port}/v1/completions")
        server.send_signal(signal.SIGTERM)
        status = server.wait(STOP_SECONDS)
        if status:
            raise FailedError(f"the server ended with {status} when it was stopped")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)  # a session of its own: see above
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise FailedError(f"the server did not start (exit {server.poll()}):\n{tail}")


def _ask(url: str) -> None:
    body = {"model": "heed-tiny", "prompt": "Once", "max_tokens": 4, "interventions": [EDIT]}
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    report = found["interventions"][0]
    if report["status"] != "applied" or not report["prompt_rows"]:
        raise FailedError(f"the answer's intervention was not applied: {report}")
