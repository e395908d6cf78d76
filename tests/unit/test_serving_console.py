"""The console's files: served without a key, complete, from this service alone, and with no way for text to run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import memr1.serving
from memr1.serving.keys import KeyFile
from tests.unit.serving_cases import serving

WEB = Path(memr1.serving.__file__).parent / "web"
FILES = sorted(str(p.relative_to(WEB)) for p in WEB.rglob("*") if p.is_file())
OURS = [name for name in FILES if name.endswith((".js", ".html", ".css")) and not name.startswith("vendor/")]
KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".txt": "text/plain",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("console")
    with serving(folder, None, KeyFile(folder / "keys.json", create=True)) as client:
        yield client


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_there_for_everybody_and_is_asked_for_again(client: TestClient, name: str) -> None:
    response = client.get(f"/console/{name}")
    assert response.content == (WEB / name).read_bytes()
    assert response.headers["content-type"].startswith(KINDS[Path(name).suffix])
    assert response.headers["cache-control"] == "no-cache"
    again = client.get(f"/console/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


def test_the_page_is_at_console_with_and_without_a_slash(client: TestClient) -> None:
    for path in ("/console", "/console/"):
        response = client.get(path)
        assert response.status_code == 200 and response.content == (WEB / "index.html").read_bytes()
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
        assert response.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "path",
    ["/console/gone.js", "/console/../app.py", "/console/%2e%2e/app.py", "/console/..%2fapp.py", "/console/vendor"],
)
def test_no_other_file_can_be_had(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (401, 404)  # 401: the client made another path of it
    assert set(response.json()) == {"error"}


def test_only_the_page_is_public(client: TestClient) -> None:
    for path in ("/consoles", "/console.txt", "/v1/console", "/v1/me", "/v1/runs", "/metrics"):
        assert client.get(path).status_code == 401, path


def test_every_part_that_is_named_is_shipped_and_every_part_is_named() -> None:
    named = {"index.html"} | {name for name in FILES if name.endswith("LICENSE.txt")}
    for name in OURS:
        text = (WEB / name).read_text()
        named |= {found for found in re.findall(r'"/console/([^"]+)"', text)}
        named |= {found for found in re.findall(r'from "\./([^"]+)"', text)}
    named.add("vendor/preact.js")  # of vendor/hooks.js
    assert named == set(FILES)


def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup() -> None:
    for name in OURS:
        text = (WEB / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn", text), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|localStorage", text
        ), name
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|style=| on\w+=", page), "inline code would need a weaker policy"


def test_what_others_wrote_comes_with_its_licence() -> None:
    assert "MIT License" in (WEB / "vendor" / "preact.LICENSE.txt").read_text()
    assert "Apache License" in (WEB / "vendor" / "htm.LICENSE.txt").read_text()
    assert {p.name for p in (WEB / "vendor").glob("*.js")} == {"preact.js", "hooks.js", "htm.js"}
