"""The server of one calibration ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """#!{python}
import http.server, os, pathlib, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

pathlib.Path("{pid}").write_text(str(os.getpid()))
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""
CALIBRATION = """
import asyncio, signal, sys
from heed_server.scoring.local_server import local_server

# Whoever runs these tests behind nohup, or in the background of a script, has them ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

async def work():
    print("serving", flush=True)
    await asyncio.sleep(60)

sys.executable = sys.argv[1]
with local_server("stand-in", []):
    asyncio.run(work())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_calibration_ends_its_server(
    tmp_path: Path, number: signal.Signals
) -> None:
    pid, stand_in = tmp_path / "pid", tmp_path / "server"
    stand_in.write_text(SERVER.format(python=sys.executable, pid=pid))
    stand_in.chmod(0o755)
    command = [sys.executable, "-c", CALIBRATION, str(stand_in)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "serving\n"
        process.send_signal(number)
        status = process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert status == (-number if number is signal.SIGINT else 128 + number)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return True
