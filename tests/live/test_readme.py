"""The README's commands, run as they stand there, but for the server's port."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, assert_ends_cleanly, free_port, started
from pages import ADDRESS, blocks, page, run

README = page("README.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """What `make serve` starts. What `make test` was given, and hands on to its children, is left out."""
    port, environment = free_port(), dict(os.environ)
    for given in ("MAKEFLAGS", "MAKELEVEL", "ARGS", "MODEL", "HOST"):
        environment.pop(given, None)
    command = ["make", "serve", f"PORT={port}", f"VENV={sys.prefix}"]
    # An environment that make has not made is left as it is.
    if not (Path(sys.prefix) / "heed-setup.stamp").exists():
        command.append("--assume-old=install")
    log = tmp_path_factory.mktemp("made") / "server.log"
    with started(command, log, port, environment) as server:
        yield server


def test_the_first_command_serves_on_the_address_that_the_others_use() -> None:
    assert blocks(README, "sh")[0].strip() == "make serve"
    recipe = run(["make", "--dry-run", "--no-print-directory", "serve"])
    assert "heed serve" in recipe
    assert "--host 127.0.0.1 --port 8000" in recipe


def test_the_curl_command_gives_the_report_that_is_printed_below_it(made: LiveServer) -> None:
    command = shlex.split(blocks(README, "sh")[1].replace(ADDRESS, made.url))
    answer: dict[str, Any] = json.loads(run(command))
    printed = json.loads("{" + blocks(README, "json")[0] + "}")
    assert answer["interventions"] == printed["interventions"]
    assert answer["choices"][0]["message"]["content"] == "positive"


def test_the_openai_example_prints_an_answer_and_its_report(made: LiveServer) -> None:
    printed = run([sys.executable, "-c", blocks(README, "python")[0].replace(ADDRESS, made.url)])
    assert printed.startswith("- dog ")
    assert "'method': 'emphasis', 'status': 'applied'" in printed and "[[16, 22]]" in printed


def test_every_served_method_has_a_row_and_a_page(made: LiveServer) -> None:
    for entry in made.client.get("/v1/interventions").json()["data"]:
        assert f"[`{entry['method']}`](docs/methods/{entry['method']}.md)" in README


def test_a_signal_to_make_serve_ends_all_that_it_has_started(made: LiveServer) -> None:
    """The last test of this server. Make dies of the signal that it has handed on."""
    assert made.process is not None and made.log is not None
    assert_ends_cleanly(made.process, status=-signal.SIGTERM)
    assert "Application shutdown complete" in made.log.read_text()
