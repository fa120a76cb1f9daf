"""A vision-language model: plain as vLLM serves it, edited as the reference does, refused where it must be."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conformance import assert_close
from live_server import LiveServer, serving, together
from PIL import Image
from vision_cases import VISION_CASES, assert_vision_conforms, is_whole, moved
from vision_definition import salient
from vision_reference import VisionReference
from vision_server import (
    QUESTIONS,
    VISION,
    ask,
    ask_raw,
    data_uri,
    message,
    picture,
    trained_model,
)

from heed_interventions import METHODS


@contextmanager
def two_workers(log: Path, parallel: str, directory: str) -> Iterator[LiveServer]:
    """The same model with `parallel` set to 2, on a core each."""
    with pytest.MonkeyPatch.context() as patch:
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        with serving(log, [*VISION, parallel, "2"], directory) as started:
            yield started


@pytest.fixture(scope="module")
def two_vision_ranks(
    vision_directory: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("vision-tp2") / "server.log"
    with two_workers(log, "--tensor-parallel-size", vision_directory) as started:
        yield started


@pytest.fixture(scope="module")
def two_vision_engines(
    vision_directory: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("vision-dp2") / "server.log"
    with two_workers(log, "--data-parallel-size", vision_directory) as started:
        yield started


def test_a_picture_is_at_the_engine_whatever_became_of_the_request_that_had_it_first(
    vision_server: LiveServer,
) -> None:
    """vLLM sends a picture's data once, with the first prompt that was rendered with it."""
    absent = [{"method": "emphasis", "spans": [{"text": "nowhere"}]}]
    question, seen = QUESTIONS[0], [picture(901)]
    refused = ask_raw(vision_server, question, seen, interventions=absent)
    assert refused.status_code == 400
    assert ask_raw(vision_server, question, seen).status_code == 200
    body = {"messages": [message(question, [picture(902)])], "include": ["mass"], "rows": [9999]}
    assert vision_server.post("/v1/attention", body).status_code == 400
    assert ask_raw(vision_server, question, [picture(902)]).status_code == 200
    for number in range(903, 906):
        edits = ([{"method": "vhr"}], None, None)
        answers = together(
            [partial(ask_raw, vision_server, question, [picture(number)], interventions=each)
             for each in edits]
        )  # fmt: skip
        assert [answer.status_code for answer in answers] == [200] * 3


each_case = pytest.mark.parametrize("case", VISION_CASES)


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_plain_request_with_pictures_equals_the_reference(
    vision_server: LiveServer, pictures: int
) -> None:
    seen = [picture(n) for n in range(pictures)]
    asked = ask(vision_server, QUESTIONS[0], seen, prompt_logprobs=True)
    assert_vision_conforms(vision_server, asked, [])
    assert asked.completion.report is None


@each_case
def test_an_edited_request_with_pictures_equals_the_reference(
    vision_server: LiveServer, case: str
) -> None:
    edits, number = VISION_CASES[case], list(VISION_CASES).index(case)
    pictures = [picture(number + n) for n in range(1 + number % 2)]
    asked = ask(vision_server, QUESTIONS[number % 3], pictures, edits, prompt_logprobs=True)
    assert_vision_conforms(vision_server, asked, edits)
    reports = asked.completion.report or []
    assert [report["status"] for report in reports] == ["applied"] * len(edits)
    for edit, report in zip(edits, reports, strict=True):
        if METHODS[edit["method"]].needs_image:
            assert [end - start for start, end in report["image_keys"]] == [64] * len(pictures)


@each_case
def test_the_edits_are_strong_enough_to_be_seen(vision_server: LiveServer, case: str) -> None:
    if trained_model() is None:
        pytest.skip("a tower of random weights gives nothing to look at")
    asked = ask(vision_server, QUESTIONS[0], [picture(5)])
    assert moved(vision_server, asked, VISION_CASES[case]) > 1e-3


@each_case
def test_a_prefix_hit_of_an_image_changes_nothing(vision_server: LiveServer, case: str) -> None:
    pictures, edits = [picture(40), picture(41)], VISION_CASES[case]
    ask(vision_server, QUESTIONS[2], pictures, edits, fresh=False)
    again = ask(vision_server, QUESTIONS[2], pictures, edits, fresh=False)
    if is_whole(edits) or any(edit["method"] == "gift" for edit in edits):
        assert not again.completion.cached_tokens
    else:
        assert again.completion.cached_tokens, "the second request should have found blocks"
    assert_vision_conforms(vision_server, again, edits)
    other = ask(vision_server, QUESTIONS[2], [picture(42), picture(41)], edits, fresh=False)
    assert_vision_conforms(vision_server, other, edits)


def test_texts_images_and_edited_images_share_a_batch(vision_server: LiveServer) -> None:
    cases = list(VISION_CASES.values())
    calls = [
        lambda edits=edits, n=n: (
            edits,
            ask(vision_server, QUESTIONS[n % 3], [picture(n)] * (n % 3), edits, max_tokens=24),
        )
        for n, edits in enumerate([case if n % 3 else [] for n, case in enumerate(cases * 2)])
    ]
    for edits, asked in together(calls):
        assert_vision_conforms(vision_server, asked, edits)


def test_a_plain_image_request_has_the_same_bits_beside_edited_ones(
    vision_server: LiveServer,
) -> None:
    alone = ask(vision_server, QUESTIONS[0], [picture(3)])
    edits = VISION_CASES["everything together"]
    calls = [
        lambda n=n: ask(vision_server, QUESTIONS[n % 2], [picture(3)], edits if n % 2 else None)
        for n in range(6)
    ]
    for asked in together(calls)[::2]:
        assert asked.completion.logprobs == alone.completion.logprobs


def counted(server: LiveServer) -> dict[str, float]:
    """What vLLM counts of requests and their tokens."""
    names = (
        "vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
        "vllm:e2e_request_latency_seconds_count", "vllm:time_to_first_token_seconds_count",
    )  # fmt: skip
    return {name: server.metric(name) for name in names}


def test_a_companion_costs_what_the_report_says_and_is_counted_nowhere(
    vision_server: LiveServer,
) -> None:
    edits = VISION_CASES["vhr and its companion"]
    question = " ".join(QUESTIONS)  # longer than a block of the cache
    once = {"fresh": False, "cache_salt": "once"}
    before = counted(vision_server)
    first = ask(vision_server, question, [picture(90)], edits, **once)
    after = counted(vision_server)
    (report,) = first.completion.report or []
    length, tokens = len(first.prompt), len(first.completion.tokens)
    assert {name: after[name] - before[name] for name in after} == {
        "vllm:request_success_total": 1,
        "vllm:prompt_tokens_total": length,
        "vllm:generation_tokens_total": tokens,
        "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:time_to_first_token_seconds_count": 1,
    }
    assert report["companion"] == {"prompt_tokens": length - 64, "cached_tokens": 0}
    # Another picture, the same words: the run without the picture is the same.
    other = ask(vision_server, question, [picture(91)], edits, **once)
    (report,) = other.completion.report or []
    assert 0 < report["companion"]["cached_tokens"] < length - 64
    assert_vision_conforms(vision_server, other, edits)


def test_every_choice_and_every_stream_has_a_companion(vision_server: LiveServer) -> None:
    edits = [{"method": "vhr"}]
    answer = ask_raw(
        vision_server, QUESTIONS[0], [picture(92)], interventions=edits, n=3, temperature=0.9
    ).json()
    reports = [choice["interventions"][0] for choice in answer["choices"]]
    assert len(reports) == 3
    assert len({str(report["chosen_heads"]) for report in reports}) == 1
    assert all(report["chosen_heads"] for report in reports)
    streamed = ask_raw(vision_server, QUESTIONS[0], [picture(92)], interventions=edits, stream=True)
    assert str(reports[0]["chosen_heads"]["1"]).replace(" ", "") in streamed.text.replace(" ", "")


def test_a_span_of_an_image_is_what_its_positions_are(vision_server: LiveServer) -> None:
    pictures = [picture(7), picture(8)]
    edits = [{"method": "emphasis", "spans": [{"image": 2}], "alpha": 0.2}]
    asked = ask(vision_server, QUESTIONS[1], pictures, edits)
    (report,) = asked.completion.report or []
    ((start, end),) = report["spans"]
    assert end - start == 64
    written = [{**edits[0], "spans": [{"start": start, "end": end}]}]
    assert_vision_conforms(vision_server, asked, written)


def test_the_patches_of_a_report_are_those_of_the_encoder_s_class_token(
    vision_server: LiveServer,
) -> None:
    edits = VISION_CASES["paint"]
    pictures = [picture(30), picture(31)]
    # vLLM has the blocks of both pictures already, and would not send them to its workers again.
    ask(vision_server, QUESTIONS[2], pictures, fresh=False)
    for fresh in (False, True):
        asked = ask(vision_server, QUESTIONS[2], pictures, edits, fresh=fresh)
        assert bool(asked.completion.cached_tokens) is not fresh
        (report,) = asked.completion.report or []
        images = VisionReference(vision_server.model_dir, pictures).images(asked.prompt)
        local, summary = (each.nonzero()[:, 0].tolist() for each in salient(images, 0.25))
        assert report["patch_keys"] == {"local": local, "summary": summary}
        assert report["patches"] == {"local": len(local), "summary": len(summary)}
        assert len(local) > 16
        assert report["cache"] == "shared"


def test_a_vision_method_without_a_picture_is_refused(vision_server: LiveServer) -> None:
    for stream in (False, True):
        edits = [{"method": "pai"}]
        response = ask_raw(vision_server, "Hello", [], interventions=edits, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "interventions.0.method")
        assert "has none" in error["message"]


def test_contrastive_decoding_is_refused(vision_server: LiveServer) -> None:
    edits = [{"method": "pai", "gamma": 1.5}]
    response = ask_raw(vision_server, "Hello", [picture(1)], interventions=edits)
    assert (response.status_code, response.json()["error"]["param"]) == (
        400,
        "interventions.0.gamma",
    )


def test_the_catalogue_has_the_vision_methods(vision_server: LiveServer) -> None:
    entries = vision_server.client.get("/v1/interventions").json()["data"]
    assert {entry["method"] for entry in entries if not entry["available"]} == set()


def huge() -> bytes:
    file = io.BytesIO()
    Image.new("L", (7100, 7100)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "uris"),
    [
        ("corrupt", [data_uri(picture(1)[:90])]),
        ("no picture", ["data:image/png;base64," + base64.b64encode(b"hello").decode()]),
        ("nothing", ["data:image/png;base64,"]),
        ("40 pictures", [data_uri(picture(1))] * 40),
        ("an unknown scheme", ["nothing://here"]),
    ],
)
def test_pictures_that_cannot_be_used_are_refused_and_the_server_lives(
    vision_server: LiveServer, name: str, uris: list[str]
) -> None:
    content = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    body = {
        "model": vision_server.model,
        "max_tokens": 2,
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": "Hi"}]}],
        "interventions": [{"method": "pai"}],
    }
    response = vision_server.post("/v1/chat/completions", body)
    assert 400 <= response.status_code < 500, f"{name}: {response.status_code} {response.text}"
    ask(vision_server, "Hello", [picture(1)], [{"method": "pai"}])


def test_a_picture_of_fifty_megapixels_is_served_or_refused(vision_server: LiveServer) -> None:
    response = ask_raw(vision_server, "Hello", [huge()], interventions=[{"method": "pai"}])
    assert response.status_code < 500, response.text
    ask(vision_server, "Hello", [picture(1)])


@pytest.mark.slow
@each_case
def test_small_chunks_change_nothing(cramped_vision_server: LiveServer, case: str) -> None:
    edits = VISION_CASES[case]
    for number, question in enumerate(QUESTIONS):
        pictures = [picture(60 + number + n) for n in range(1 + number)]
        if is_whole(edits) and number:
            response = ask_raw(cramped_vision_server, question, pictures, interventions=edits)
            error = response.json()["error"]
            assert (response.status_code, error["param"].split(".")[-1]) == (400, "rows")
            assert "80 tokens" in error["message"]
            continue
        asked = ask(cramped_vision_server, question, pictures, edits, prompt_logprobs=True)
        assert_vision_conforms(cramped_vision_server, asked, edits)


@pytest.mark.slow
def test_preempted_requests_with_pictures_equal_the_reference(
    cramped_vision_server: LiveServer,
) -> None:
    server = cramped_vision_server
    before = server.metric("vllm:num_preemptions_total")
    cases = list(VISION_CASES.values())
    for start in range(0, len(cases), 4):
        calls = [
            lambda edits=edits, n=n: (
                edits,
                ask(
                    server,
                    QUESTIONS[n % (2 if is_whole(edits) else 3)],
                    [picture(80 + n)] * (1 if is_whole(edits) else 2),
                    edits,
                    max_tokens=90,
                ),
            )
            for n, edits in enumerate(cases[start : start + 4])
        ]
        for edits, asked in together(calls):
            assert_vision_conforms(server, asked, edits)
    assert server.metric("vllm:num_preemptions_total") > before, "nothing was preempted"


@pytest.mark.slow
def test_a_companion_meets_its_request_in_the_same_engine(
    two_vision_engines: LiveServer,
) -> None:
    edits = VISION_CASES["vhr and its companion"]
    calls = [
        lambda n=n: ask(two_vision_engines, QUESTIONS[n % 3], [picture(n)], edits)
        for n in range(12)
    ]
    for asked in together(calls):
        assert_vision_conforms(two_vision_engines, asked, edits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "vhr",
        "vhr and its companion",
        "vhr of every row",
        "paint",
        "spin",
        "var",
        "gift",
        "everything together",
    ],
)
def test_two_ranks_equal_one(
    vision_server: LiveServer, two_vision_ranks: LiveServer, case: str
) -> None:
    """Where heads are compared, those of both ranks are."""
    edits = VISION_CASES[case]
    one = ask(vision_server, QUESTIONS[2], [picture(4)], edits, max_tokens=24).completion
    two = ask(two_vision_ranks, QUESTIONS[2], [picture(4)], edits, max_tokens=24).completion
    assert one.tokens == two.tokens
    assert_close(two.logprobs, one.logprobs, 1e-5, case)
    for ours, theirs in zip(one.report or [], two.report or [], strict=True):
        # Measured, not decided: sums over heads that two ranks make in another order.
        for measured in {"image_mass", "vas"} & set(ours):
            assert ours.pop(measured) == pytest.approx(theirs.pop(measured), rel=1e-4)
        assert ours == theirs
