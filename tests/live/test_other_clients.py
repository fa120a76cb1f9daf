"""The examples of `docs/clients.md`, each with the library that it is about."""

from __future__ import annotations

import re

import pytest
from live_server import ROOT, LiveServer
from pages import blocks, page, run_script
from served_profiles import bundled_profile

LANGCHAIN, LITELLM, NAMED = blocks(page("docs/clients.md"), "python")
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
needs_libraries = pytest.mark.skipif(
    not PYTHON.exists(), reason="there is no .venv-clients: docs/clients.md says how to make it"
)


@pytest.fixture(autouse=True)
def without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM would look for prices in the network when it is imported."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@needs_libraries
@pytest.mark.parametrize("example", [LANGCHAIN, LITELLM], ids=["LangChain", "LiteLLM"])
def test_a_client_sends_interventions_and_reads_reports(server: LiveServer, example: str) -> None:
    assert run_script(example, server, str(PYTHON)).strip() == "- dog applied [[16, 22]]"


@needs_libraries
def test_langchain_takes_other_interventions_for_one_call(server: LiveServer) -> None:
    script = f"""{LANGCHAIN}
bound = chat.bind(extra_body={{"interventions": [{{"method": "zerotuning", "gamma": 1}}]}})
print(bound.invoke(question).response_metadata["interventions"][0]["status"])
"""
    assert run_script(script, server, str(PYTHON)).split()[-1] == "neutral"


@needs_libraries
def test_litellm_passes_on_why_a_request_was_refused(server: LiveServer) -> None:
    script = re.sub("^", "    ", LITELLM.replace('"alpha": 0.1', '"alpha": 7'), flags=re.MULTILINE)
    script = f"import litellm\ntry:\n{script}\nexcept litellm.BadRequestError as error:\n    print(error)"
    edit = {"method": "emphasis", "spans": [{"text": "dash"}], "alpha": 7}
    refused = server.chat("dash", interventions=[edit]).json()["error"]
    assert refused["message"] in run_script(script, server, str(PYTHON))


def test_a_profile_is_asked_for_as_a_model(server: LiveServer) -> None:
    name = "sentiment-zerotuning"
    with bundled_profile(server, name):
        script = NAMED.replace("heed-tiny@", f"{server.model}@")
        assert run_script(script, server).split() == [server.model, name]
