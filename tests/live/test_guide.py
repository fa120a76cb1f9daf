"""The commands of the guide, run as they stand there, but for the server's address and its directory of profiles."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from pages import HEED, addressed, blocks, page, run
from served_profiles import profile_of, reload

GUIDE = page("docs/guide.md")
SERVE, PLAIN, EDITED, REFUSED, CALIBRATE, SERVE_PROFILES, PROFILED = blocks(GUIDE, "sh")


def asked(command: str, server: LiveServer) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(shlex.split(addressed(command, server))))
    return answer


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("command", [SERVE, SERVE_PROFILES])
def test_the_commands_that_serve_are_those_of_the_makefile(command: str) -> None:
    recipe = run([*shlex.split(command), "--dry-run", "--no-print-directory"])
    assert "heed serve" in recipe and "--host 127.0.0.1 --port 8000" in recipe
    assert ("--profiles profiles" in recipe) is (command is SERVE_PROFILES)


def test_the_question_gets_the_wrong_answer_and_the_right_one_with_the_edit(
    server: LiveServer,
) -> None:
    plain, edited = asked(PLAIN, server), asked(EDITED, server)
    assert (text(plain), text(edited)) == ("(spoon)", "*spoon*")
    assert "The answer is `(spoon)`" in GUIDE and "The answer is `*spoon*`" in GUIDE
    printed = json.loads("{" + blocks(GUIDE, "json")[0] + "}")["interventions"]
    of_prefix_cache = {"cached_rows": edited["interventions"][0]["cached_rows"]}
    assert edited["interventions"] == [printed[0] | of_prefix_cache]


def test_the_refused_request_is_refused_for_the_field_that_the_page_names(
    server: LiveServer,
) -> None:
    refused = asked(REFUSED, server)["error"]
    assert refused["code"] == 400 and f"names `{refused['param']}`" in GUIDE.replace("\n", " ")


@pytest.mark.slow
def test_the_calibration_finds_an_effect_and_its_profile_is_served(server: LiveServer) -> None:
    with profile_of(server, "important") as root:
        command = shlex.split(addressed(CALIBRATE, server))
        assert command[0] == HEED
        command[0:1] = [sys.executable, "-m", "heed_server"]
        command[command.index("--out") + 1] = str(root)
        said = run(command, timeout=900)
        (root / ".important.journal.jsonl").unlink()
        # Answers that are nearly as likely as others may turn on another processor: the table's numbers are
        # those of one machine, and what the page makes of them is checked.
        accuracy, likelihood = (measured(Path(root), name) for name in ("accuracy", "likelihood"))
        assert all(line in said for line in GUIDE.splitlines() if line.startswith("| setting |"))
        assert accuracy["mended"] > 3 * accuracy["spoiled"] and accuracy["p"] < 0.05
        assert likelihood["difference"][1] > 0
        reload(server, "important", there=True)
        answer = asked(PROFILED, server)
        assert text(answer) == "*spoon*"
        assert answer["interventions"][0]["profile"] == "important"


def measured(root: Path, name: str) -> dict[str, Any]:
    """What the chosen heads do on the held-out items."""
    profile = json.loads((root / "important" / "profile.json").read_text())
    found: dict[str, Any] = profile["evaluation"]["emphasis"]["settings"]["profile"][name]
    return found
