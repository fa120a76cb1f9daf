"""The README's commands, run as they stand there, but for the server's address."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], timeout: float = 120) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_command_serves_on_the_address_that_the_others_use() -> None:
    assert blocks("sh")[0].strip() == "make serve"
    recipe = run(["make", "--dry-run", "--no-print-directory", "serve"])
    assert "heed serve" in recipe
    assert "--host 127.0.0.1 --port 8000" in recipe


def test_the_curl_command_gives_the_report_that_is_printed_below_it(server: LiveServer) -> None:
    command = shlex.split(blocks("sh")[1].replace(ADDRESS, server.url))
    answer: dict[str, Any] = json.loads(run(command))
    printed = json.loads("{" + blocks("json")[0] + "}")
    for report in (*answer["interventions"], *printed["interventions"]):
        report.pop("cached_rows")  # another test may have sent the same prompt before
    assert answer["interventions"] == printed["interventions"]
    assert answer["choices"][0]["message"]["content"] == "positive"


def test_the_openai_example_prints_an_answer_and_its_report(server: LiveServer) -> None:
    script = blocks("python")[0].replace(ADDRESS, server.url)
    script = script.replace('"heed-tiny"', json.dumps(server.model))
    printed = run([sys.executable, "-c", script])
    assert printed.startswith("- dog ")
    assert "'method': 'emphasis', 'status': 'applied'" in printed and "[[16, 22]]" in printed


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_served_method_has_a_row_and_a_page(server: LiveServer) -> None:
    for entry in server.client.get("/v1/interventions").json()["data"]:
        assert f"[`{entry['method']}`](docs/methods/{entry['method']}.md)" in README
