"""The playground's routes: which files they serve, how, and that nothing else can be had through them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.application import application

from heed_server.api.playground_routes import DIRECTORY, playground_router
from heed_server.launcher import add_arguments, pass_settings_on
from heed_server.settings import PLAYGROUND_VARIABLE, Settings

FILES = sorted(path.name for path in DIRECTORY.iterdir())
PLACES = ["/", "/playground", *(f"/playground/{name}" for name in FILES if name != "index.html")]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(playground_router())
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("place", PLACES)
def test_every_file_is_served_with_its_type_and_nothing_may_come_from_elsewhere(
    client: TestClient, place: str
) -> None:
    response = client.get(place)
    assert response.status_code == 200
    name = "index.html" if place in ("/", "/playground") else place.rpartition("/")[2]
    assert response.content == (DIRECTORY / name).read_bytes()
    kinds = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    assert response.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy and "*" not in policy and "trusted-types 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("place", PLACES)
def test_head_says_what_get_would_send(client: TestClient, place: str) -> None:
    head, full = client.head(place), client.get(place)
    assert head.status_code == 200 and head.content == b""
    assert head.headers == full.headers


def test_what_a_client_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/playground/main.js")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/playground/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b""), known
        assert again.headers["etag"] == tag
    changed = client.get("/playground/main.js", headers={"If-None-Match": '"other"'})
    assert changed.content == first.content


@pytest.mark.parametrize(
    "path",
    [
        "/playground/../settings.py",
        "/playground/%2e%2e/settings.py",
        "/playground/..%2fsettings.py",
        "/playground//etc/passwd",
        "/playground/index.html",
        "/playground/main.js%00",
    ],
)
def test_there_is_no_way_to_another_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_files_name_nothing_outside_the_server() -> None:
    for name in FILES:
        text = (DIRECTORY / name).read_text()
        found = set(re.findall(r"https?://[\w.-]+", text)) - {"http://www.w3.org"}  # SVG's own name
        assert not found, name


def test_no_text_is_ever_made_into_markup_or_code() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|localStorage"
        r"|sessionStorage|\.cookie"
    )
    for name in FILES:
        assert forbidden.findall((DIRECTORY / name).read_text()) == [], name


def test_no_method_and_no_parameter_is_named_in_the_page() -> None:
    from heed_interventions import METHODS

    for name in FILES:
        text = (DIRECTORY / name).read_text()
        named = [method for method in METHODS if re.search(rf"[\"'`]{method}[\"'`]", text)]
        assert named == [], name


def test_every_file_that_a_file_asks_for_is_there() -> None:
    asked = set(
        re.findall(r'(?:src|href)="playground/([^"]+)"', (DIRECTORY / "index.html").read_text())
    )
    for path in DIRECTORY.glob("*.js"):
        asked |= set(re.findall(r'from "\./([^"]+)"', path.read_text()))
    assert asked == set(FILES) - {"index.html"}


def test_the_page_is_open_where_the_api_asks_for_a_key_and_holds_no_secret() -> None:
    key = "a-key-that-stands-nowhere"
    with application(flags=["--api-key", key]) as app:
        client = TestClient(app, raise_server_exceptions=False)
        for place in PLACES:
            response = client.get(place)
            assert response.status_code == 200 and key not in response.text, place
        assert client.get("/v1/interventions").status_code == 401


def test_an_operator_can_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAYGROUND_VARIABLE, "0")
    with application() as app:
        client = TestClient(app, raise_server_exceptions=False)
        assert {client.get(place).status_code for place in PLACES} == {404}


def test_a_server_that_generates_nothing_has_none() -> None:
    with application(("embed",)) as app:
        assert TestClient(app, raise_server_exceptions=False).get("/").status_code == 404


def test_the_flag_reaches_the_processes_that_serve() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for flags, served in (([], True), (["--no-playground"], False)):
        environment: dict[str, str] = {}
        pass_settings_on(environment, parser.parse_args(flags))
        assert Settings.from_environment(environment).playground is served


def test_everything_in_the_directory_is_told_to_git_and_to_the_wheel() -> None:
    root = Path(__file__).parents[2]
    listed = subprocess.run(
        ["git", "ls-files", str(DIRECTORY)], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert sorted(Path(line).name for line in listed.splitlines()) == FILES
    assert '"playground/*"' in (root / "pyproject.toml").read_text()
