"""The rest of the client, without a server."""

from types import SimpleNamespace
from typing import Any

import pytest

from heed_client import Attention, reports, with_interventions
from heed_client.methods import ZeroTuning

REPORT = {"method": "zerotuning", "status": "applied", "source": "request", "spans": [[1, 2]]}
OTHER = {**REPORT, "status": "neutral"}


class Calls:
    """A resource of an openai client that answers with what it was called with."""

    def create(self, **given: Any) -> dict[str, Any]:
        return given

    def list(self, **given: Any) -> dict[str, Any]:
        return given


def stub() -> Any:
    calls = Calls()
    chat = SimpleNamespace(completions=calls)
    return SimpleNamespace(chat=chat, completions=calls, responses=calls, models=calls, api_key="k")


@pytest.mark.parametrize("resource", ["chat.completions", "completions", "responses"])
def test_every_generation_carries_the_interventions(resource: str) -> None:
    found = with_interventions(stub(), [ZeroTuning(gamma=2)])
    for name in resource.split("."):
        found = getattr(found, name)
    sent = found.create(model="m", extra_body={"top_k": 3})
    edits = [{"method": "zerotuning", "gamma": 2}]
    assert sent == {"model": "m", "extra_body": {"interventions": edits, "top_k": 3}}
    assert found.create(extra_body={"interventions": []})["extra_body"] == {"interventions": []}


def test_everything_else_is_the_clients_own() -> None:
    plain = stub()
    edited = with_interventions(plain, [ZeroTuning(gamma=2)])
    assert edited.models.list(a=1) == {"a": 1} and edited.api_key == "k"
    assert plain.completions.create(a=1) == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [
        {"interventions": [REPORT], "choices": []},
        SimpleNamespace(interventions=[REPORT]),
        {"type": "response.completed", "response": {"interventions": [REPORT]}},
    ],
    ids=["a body", "an object", "an event"],
)
def test_reports_are_read_wherever_they_stand(answer: Any) -> None:
    (report,) = reports(answer)
    assert (report.status, report.measured()) == ("applied", {"spans": [[1, 2]]})


def test_each_choice_has_its_own_reports() -> None:
    choices = [{"index": 0, "interventions": [REPORT]}, {"index": 1, "interventions": [OTHER]}]
    answer = {"choices": choices, "interventions": [REPORT]}
    assert reports(answer)[0].status == "applied"
    assert reports(answer, choice=1)[0].status == "neutral"
    assert reports({"choices": []}) == []


def attention(**fields: Any) -> Attention:
    weights = [[[[1.0, 0.0], [0.25, 0.75]]] * 3] * 2  # [2 layers][3 heads][2 rows][2 keys]
    return Attention.model_validate(
        {
            "model": "m", "prompt_tokens": 2, "continuation_tokens": 0, "tokens": ["a", "b"],
            "token_ids": [1, 2], "layers": [0, 1], "heads": [0, 1, 2], "rows": [0, 1], "spans": [],
            "attention": weights, "interventions": [], **fields,
        }
    )  # fmt: skip


def test_bertviz_gets_a_tensor_of_each_layer() -> None:
    view = attention().to_bertviz()
    assert [tuple(layer.shape) for layer in view["attention"]] == [(1, 3, 2, 2)] * 2
    assert view["attention"][1][0, 2].tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert view["tokens"] == ["a", "b"]


@pytest.mark.parametrize(
    "fields", [{"rows": [1]}, {"attention": None}, {"tokens": None}], ids=lambda f: next(iter(f))
)
def test_bertviz_is_refused_what_it_cannot_show(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="BertViz"):
        attention(**fields).to_bertviz()
