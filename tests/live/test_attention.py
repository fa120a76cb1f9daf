"""`POST /v1/attention` on running servers, against transformers' dense eager attention in float32."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from live_server import Body, LiveServer, together
from test_refusals import assert_refused
from tests.reference.transformers_reference import load
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

TOLERANCE = 1e-4
EDITS: dict[str, list[Body]] = {
    "logits": [
        {"method": "zerotuning", "gamma": 3, "layers": [0, -1], "heads": [0, 3, 5]},
        {"method": "emphasis", "spans": [{"start": 3, "end": 9}], "alpha": 0.1},
    ],
    "a transfer": [{"method": "act", "beta": 0.1, "layers": "all", "stats": "causal"}],
    "rolling positions": [{"method": "streaming_llm", "sinks": 4, "window": 64}],
    "an eviction, which leaves the prompt as it is": [{"method": "snapkv", "keep": 0.5}],
}


@pytest.fixture(params=["server", "cramped_server"], ids=["one step", "chunks"])
def any_server(request: pytest.FixtureRequest) -> LiveServer:
    found: LiveServer = request.getfixturevalue(request.param)
    return found


def ask(server: LiveServer, prompt: object, **fields: Any) -> Body:
    response = server.post("/v1/attention", {"model": server.model, "prompt": prompt, **fields})
    assert response.status_code == 200, response.text[:500]
    answer: Body = response.json()
    return answer


@cache
def eager(model_dir: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )


def plain_weights(server: LiveServer, tokens: list[int]) -> np.ndarray:
    """[layers, heads, rows, keys], by transformers itself."""
    with torch.inference_mode():
        layers = eager(server.model_dir)(torch.tensor([tokens]), output_attentions=True).attentions
    return torch.cat(layers).numpy()


def decoded(part: Body) -> np.ndarray:
    return np.frombuffer(base64.b64decode(part["data"]), "<f4").reshape(part["shape"])


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(actual, np.float64), expected, rtol=0, atol=TOLERANCE)


def test_the_default_answer_is_that_of_dense_attention(any_server: LiveServer) -> None:
    prompt = any_server.prompt(300, start=11)
    # The same prompt is in the prefix cache by now, and must not be read from it.
    any_server.complete(prompt)
    answer = ask(any_server, prompt)
    weights = plain_weights(any_server, prompt)
    layers, heads, length, _ = weights.shape
    assert answer["object"] == "attention" and answer["interventions"] == []
    assert (answer["prompt_tokens"], answer["continuation_tokens"]) == (length, 0)
    assert answer["token_ids"] == prompt and len(answer["tokens"]) == length
    assert answer["layers"] == list(range(layers)) and answer["heads"] == list(range(heads))
    assert answer["rows"] == [length - 1]
    close(answer["attention"], weights[:, :, -1:])
    mean = weights.sum(axis=2) / (length - np.arange(length))
    close(answer["column_mean"], mean)
    close(answer["sink"]["share"], (mean > 0.3).mean(axis=-1))
    close(answer["mass"]["position_0"], weights[:, :, -1:, 0])
    found = {tuple(place) for place in answer["sink"]["secondary"]}
    assert found == {tuple(at) for at in np.argwhere(mean > 0.3) if 0 < at[2] <= length - 16}


def rotated_queries(server: LiveServer, tokens: list[int], layer: int) -> np.ndarray:
    """[heads, rows, head_dim] as dense attention takes them, by transformers itself."""
    model, seen = eager(server.model_dir), []
    projection = model.model.layers[layer].self_attn.q_proj
    hook = projection.register_forward_hook(lambda *of: seen.append(of[-1]))
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        model(ids)
        hook.remove()
        query = seen[0].view(1, len(tokens), -1, model.config.head_dim).transpose(1, 2)
        places = torch.arange(len(tokens))[None]
        turned, _ = apply_rotary_pos_emb(query, query, *model.model.rotary_emb(query, places))
    found: np.ndarray = turned[0].numpy()
    return found


def test_everything_else_that_can_be_included(any_server: LiveServer) -> None:
    tokens = any_server.prompt(180, start=5)
    prompt, continuation = tokens[:140], tokens[140:]
    rows, spans = [0, 70, -1], [{"start": 10, "end": 20}]
    include = ["mass", "entropy", "dormancy", "waad", "fai", "q_similarity"]
    answer = ask(
        any_server, prompt, continuation=continuation, rows=rows, spans=spans, include=include,
        layers=[2, 3], heads=[1, 4],
    )  # fmt: skip
    weights = plain_weights(any_server, tokens)[2:4][:, [1, 4]]
    asked = weights[:, :, [0, 70, 179]]
    assert answer["rows"] == [0, 70, 179] and answer["spans"] == [[10, 20]]
    assert "attention" not in answer and answer["continuation_tokens"] == 40
    close(np.array(answer["mass"]["spans"])[..., 0], asked[..., 10:20].sum(axis=-1))
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=-1)
    # Logarithms of small weights: an entropy is some units, and its error some times a weight's.
    nats = answer["entropy"]["nats"]
    np.testing.assert_allclose(nats, entropy[:, :, [0, 70, 179]], atol=1e-3)
    assert answer["entropy"]["normalised"][0][0][0] is None
    normalised = entropy[..., 1:] / np.log(np.arange(2, 181))
    close(answer["dormancy"]["row_entropy"], normalised.mean(axis=-1))
    columns = [shares(weights[:, :, key:, key]) for key in range(179)]
    np.testing.assert_allclose(answer["dormancy"]["column_entropy"], np.max(columns, 0), atol=1e-3)
    queries = [rotated_queries(any_server, tokens, layer)[[1, 4]] for layer in (2, 3)]
    unit = np.array(queries)[:, :, [0, 70, 179]]
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    cosines = np.einsum("lhid,lhjd->lhij", unit, unit)
    close(answer["q_similarity"], (cosines.sum(axis=(2, 3)) - 3) / 6)


def shares(column: np.ndarray) -> np.ndarray:
    """Of weights [layers, heads, rows] of one key: their entropy as a distribution, at most 1."""
    share = column / column.sum(axis=-1, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)
    return np.asarray(entropy / np.log(column.shape[-1]))


def test_waad_and_fai_are_of_the_heads_that_look_nearest_and_farthest(
    any_server: LiveServer,
) -> None:
    tokens = any_server.prompt(180, start=5)
    answer = ask(
        any_server, tokens[:140], continuation=tokens[140:], include=["waad", "fai"], layers=[2, 3]
    )
    weights = plain_weights(any_server, tokens)[2:4]
    gap = np.arange(180)[:, None] - np.arange(180)
    spans = (weights * gap).sum(axis=-1)[:, :, 140:].mean(axis=-1)
    order = [(2 + at // spans.shape[1], at % spans.shape[1]) for at in np.argsort(spans, axis=None)]
    few = int(0.3 * spans.size)
    assert few > 1
    local, distant = sorted(order[:few]), sorted(order[-few:])
    assert answer["waad"]["local_heads"] == [list(pair) for pair in local]
    assert answer["fai"]["global_heads"] == [list(pair) for pair in distant]
    near = np.mean([weights[layer - 2, head] for layer, head in local], axis=0)
    close(answer["waad"]["values"], (near * np.minimum(gap, 10)).sum(axis=-1)[140:])
    far = np.mean([weights[layer - 2, head] for layer, head in distant], axis=0)
    close(answer["fai"]["values"][:30], [far[at + 10 :, at].mean() for at in range(140, 170)])
    assert answer["fai"]["values"][30:] == [None] * 10


@pytest.mark.parametrize("name", EDITS)
def test_weights_are_those_of_the_edited_attention(any_server: LiveServer, name: str) -> None:
    prompt = any_server.prompt(230, start=7)
    answer = ask(
        any_server, prompt, interventions=EDITS[name], rows=[40, 130, -1], encoding="base64"
    )
    ran = load(any_server.model_dir).run(prompt, len(prompt), EDITS[name])
    weights = torch.stack([layer.squeeze(0) for layer in ran.weights]).detach().numpy()
    close(decoded(answer["attention"]), weights[:, :, [40, 130, 229]])
    close(decoded(answer["column_mean"]), weights.sum(axis=2) / (230 - np.arange(230)))
    assert [report["status"] for report in answer["interventions"]] == ["applied"] * len(
        EDITS[name]
    )


def test_a_chat_is_looked_at_with_its_template(server: LiveServer) -> None:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "The red door is open."}],
        "spans": [{"text": "red door"}],
        "include": ["mass"],
    }
    response = server.post("/v1/attention", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    ((start, end),) = answer["spans"]
    assert "red door" in server.tokenizer.decode(answer["token_ids"][start:end])


def test_an_archive_holds_what_lists_hold(server: LiveServer) -> None:
    prompt = server.prompt(90, start=3)
    lists = ask(server, prompt, rows=[5, -1])
    body = {"model": server.model, "prompt": prompt, "rows": [5, -1], "encoding": "npz"}
    response = server.post("/v1/attention", body)
    assert response.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        close(archive["attention"], np.array(lists["attention"]))
        close(archive["sink.share"], np.array(lists["sink"]["share"]))
        assert json.loads(str(archive["document"]))["tokens"] == lists["tokens"]


def test_plain_neighbours_keep_their_bits(server: LiveServer) -> None:
    prompts = [server.prompt(120, start=at) for at in (1, 2, 3)]
    alone = [server.fresh(prompt, max_tokens=16) for prompt in prompts]
    calls: list[Any] = [
        lambda prompt=prompt: server.fresh(prompt, max_tokens=16) for prompt in prompts
    ]
    calls += [lambda at=at: ask(server, server.prompt(200, start=at)) for at in range(3)]
    beside = together(calls)[:3]
    assert [(each.tokens, each.logprobs) for each in beside] == [
        (each.tokens, each.logprobs) for each in alone
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rows": [40]}, "rows.0"),
        ({"rows": "last"}, "rows"),
        ({"layers": [99]}, "layers.0"),
        ({"include": ["vas"]}, "include.0"),
        ({"include": ["everything"]}, "include.0"),
        ({"include": ["fai"]}, "include.0"),
        ({"prompt": None}, None),
        ({"temperature": 1}, "temperature"),
        ({"spans": [{"text": "nowhere"}]}, "spans.0.text"),
        ({"interventions": [{"method": "zerotuning"}]}, "interventions.0.gamma"),
        (
            {"continuation": [1], "interventions": [{"method": "zerotuning", "gamma": 2}]},
            "continuation",
        ),
    ],
)
def test_refusals_name_the_field(server: LiveServer, fields: Body, param: str | None) -> None:
    body = {"model": server.model, "prompt": server.prompt(40), **fields}
    assert_refused(server.post("/v1/attention", body), param)


def test_answers_are_bounded(server: LiveServer) -> None:
    body = {"model": server.model, "prompt": server.prompt(1000), "rows": "all"}
    message = assert_refused(server.post("/v1/attention", body), "include")
    assert "262144" in message


def test_an_unknown_model_is_a_404(server: LiveServer) -> None:
    response = server.post("/v1/attention", {"model": "nobody", "prompt": "a"})
    assert response.status_code == 404


def test_the_route_stands_in_the_openapi_document(server: LiveServer) -> None:
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/attention"]["post"]
    assert "AttentionBody" in str(operation["requestBody"])
    assert "AttentionAnswer" in str(operation["responses"]["200"])
