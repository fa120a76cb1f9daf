import json

import pytest

from heed_server.api.other_doors import forbidden_field


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"interventions": []}, "interventions"),
        ({"interventions": [{"method": "zerotuning"}]}, "interventions"),
        ({"vllm_xargs": {"heed": "x"}}, "vllm_xargs.heed"),
        ({"extra_args": {"heed": 1}}, "extra_args.heed"),
        ({"sampling_params": {"extra_args": {"heed": 1}}}, "sampling_params.extra_args.heed"),
    ],
)
def test_what_only_heeds_routes_take_is_found_on_others(body: object, param: str) -> None:
    assert forbidden_field(json.dumps(body).encode()) == param


def test_an_escaped_field_name_does_not_slip_by() -> None:
    assert forbidden_field(rb'{"\u0069nterventions": []}') == "interventions"
    assert forbidden_field(rb'{"vllm_xargs": {"h\u0065ed": 1}}') == "vllm_xargs.heed"


FORM = "multipart/form-data; boundary=x"
FIELDS = "Application/X-WWW-Form-Urlencoded; charset=utf-8"


@pytest.mark.parametrize(
    "header",
    [
        b'Content-Disposition: form-data; name="interventions"',
        b"Content-Disposition: form-data; name=interventions",
        b'content-disposition: form-data; filename="a"; NAME = "interventions"; x=1',
    ],
)
def test_a_part_of_a_form_is_found_too(header: bytes) -> None:
    body = b"--x\r\n" + header + b"\r\n\r\n[]\r\n--x--"
    assert forbidden_field(body, FORM) == "interventions"


@pytest.mark.parametrize(
    "body", [b"interventions=[]", b"model=a&interventions", b"a=1;%69nterventions=x"]
)
def test_a_field_of_a_form_is_found_too(body: bytes) -> None:
    assert forbidden_field(body, FIELDS) == "interventions"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"model=tiny&text=interventions", FIELDS),
        (b"--x\r\nContent-Disposition: form-data; name=text\r\n\r\nname=interventions\r\n", FORM),
        (b'--x\r\nContent-Disposition: form-data; name="my interventions"\r\n\r\n', FORM),
    ],
)
def test_other_forms_are_left_to_their_routes(body: bytes, content_type: str) -> None:
    assert forbidden_field(body, content_type) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"input": "heed the interventions"}',
        b'["interventions"]',
        b'{"interventions": null}',
        b'{"messages": [{"interventions": 1}]}',
        b'{"vllm_xargs": ["heed"]}',
        b'{"input": "name=interventions"}',
        b'{"input": "Content-Disposition: form-data; name=\\"interventions\\""}',
        b"interventions=[]",
        b"[" * 100_000,
    ],
)
def test_other_bodies_are_left_to_their_routes(body: bytes) -> None:
    assert forbidden_field(body) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_another_encoding_does_not_slip_by(encoding: str) -> None:
    assert forbidden_field('{"interventions": []}'.encode(encoding)) == "interventions"
