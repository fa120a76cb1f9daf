"""Commands that stand in pages of the repository, to be run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys

from live_server import ROOT, LiveServer

ADDRESS = "http://127.0.0.1:8000"
HEED = ".venv/bin/heed"


def page(path: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def addressed(text: str, server: LiveServer) -> str:
    """A command or a script for a server at another address, of a model that may be another."""
    return text.replace(ADDRESS, server.url).replace('"heed-tiny"', f'"{server.model}"')


def run(command: list[str], timeout: float = 120) -> str:
    """What a command prints; it has to end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_script(script: str, server: LiveServer, python: str = sys.executable) -> str:
    """What a page's Python prints; the client of the repository can be imported."""
    start = "import sys; sys.path.insert(0, 'clients/python')\n"
    return run([python, "-c", start + addressed(script, server)])
