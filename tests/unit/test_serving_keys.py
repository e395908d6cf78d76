"""Keys: who gets in, how much they may ask, and that neither the file nor the log holds one."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memr1.cli import app
from memr1.errors import MemR1Error
from memr1.serving import keys as keys_module
from memr1.serving.commands import check_host
from memr1.serving.errors import ApiError
from memr1.serving.keys import KeyFile, Principal, RateLimiter
from tests.unit.serving_cases import bearer, error_of, serving


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    monkeypatch.setattr(keys_module, "_CHECK_S", 0.0)
    return KeyFile(tmp_path / "keys.json", create=True)


def test_a_key_says_who_asks_and_its_file_does_not_hold_it(keys: KeyFile) -> None:
    key, record = keys.create("shop", tenant="acme", right="read", user_id="mara", requests_per_minute=7)
    principal = keys.authenticate(key)
    assert (principal.scope.tenant, principal.scope.user_id, principal.right) == ("acme", "mara", "read")
    assert (principal.key_id, principal.requests_per_minute) == (record.id, 7)
    assert principal.may("read") and not principal.may("write")
    text = keys.path.read_text()
    assert key not in text and key.rsplit("_", 1)[1] not in text
    assert keys.path.stat().st_mode & 0o077 == 0


def test_keys_that_do_not_work_are_refused_in_the_same_words(keys: KeyFile) -> None:
    good, _ = keys.create("a")
    revoked, record = keys.create("b")
    keys.revoke(record.id)
    expired, _ = keys.create("c", expires="2020-01-01")
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    words = set()
    for key in (None, "", "memr1_", "x" * 5000, wrong, revoked, expired, f"{good} ", "memr1_\ud800"):
        with pytest.raises(ApiError) as refusal:
            keys.authenticate(key)
        assert refusal.value.status == 401
        words.add(str(refusal.value))
    assert len(words) == 1
    assert keys.authenticate(good).name == "a"


def test_another_process_sees_new_and_revoked_keys_and_nobody_enters_without_a_file(keys: KeyFile) -> None:
    served = KeyFile(keys.path, create=True)
    key, record = keys.create("late")
    assert served.authenticate(key).name == "late"
    keys.revoke(record.id)
    with pytest.raises(ApiError):
        served.authenticate(key)
    other, _ = keys.create("other")
    assert served.authenticate(other)
    keys.path.unlink()
    with pytest.raises(ApiError):
        served.authenticate(other)


def test_damaged_and_open_files_are_refused_with_a_remedy(keys: KeyFile) -> None:
    keys.create("a")
    keys.path.chmod(0o666)
    with pytest.raises(MemR1Error, match="chmod 600"):
        KeyFile(keys.path)
    keys.path.chmod(0o600)
    keys.path.write_text("{}")
    with pytest.raises(MemR1Error, match="not a key file"):
        KeyFile(keys.path)
    with pytest.raises(MemR1Error, match="memr1 keys create"):
        KeyFile(keys.path.with_name("none.json"))


def test_while_the_file_is_damaged_nobody_gets_in_and_nothing_of_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyFile(tmp_path / "keys.json", create=True)  # looked at every half second
    key, _ = keys.create("a")
    whole = keys.path.read_text()
    with serving(tmp_path, None, keys) as client:
        assert client.get("/v1/banks", headers=bearer(key)).status_code == 200
        keys.path.write_text(whole[: len(whole) // 2])
        keys._next_look = 0.0
        for _ in range(3):
            refused = client.get("/v1/banks", headers=bearer(key))
            assert error_of(refused, 503)["code"] == "keys_unreadable" and refused.headers["retry-after"] == "5"
            assert "keys.json" not in refused.text
        assert "keys.json: not a key file" in caplog.text and key not in caplog.text
        keys.path.write_text(whole)
        assert client.get("/v1/banks", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("wrong", [{"tenant": "a/b"}, {"right": "root"}, {"expires": "soon"}, {"user_id": "a\0"}])
def test_settings_of_a_key_are_checked(keys: KeyFile, wrong: dict[str, str]) -> None:
    with pytest.raises(MemR1Error, match=next(iter(wrong))):
        keys.create("x", **wrong)  # type: ignore[arg-type]
    assert not keys.path.exists()


def test_a_bucket_holds_a_minute_and_refills_evenly() -> None:
    limiter, principal = RateLimiter(), Principal(scope=None, key_id="k", requests_per_minute=6)  # type: ignore[arg-type]
    left = [int(limiter.check(principal, now=100.0)["X-RateLimit-Remaining"]) for _ in range(6)]
    assert left == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ApiError) as refusal:
        limiter.check(principal, now=100.0)
    assert refusal.value.status == 429 and refusal.value.headers["Retry-After"] == "10"
    assert limiter.check(principal, now=110.0)
    with pytest.raises(ApiError):
        limiter.check(principal, now=110.0)


def test_the_service_wants_a_key_and_lets_each_have_its_rate(tmp_path: Path, keys: KeyFile) -> None:
    key, _ = keys.create("shop", right="read", requests_per_minute=3)
    with serving(tmp_path, None, keys) as client:
        refused = client.get("/v1/banks")
        assert error_of(refused, 401)["code"] == "unauthorized"
        assert refused.headers["www-authenticate"] == "Bearer"
        for header in (bearer(key), {"Authorization": f"Token {key}"}, {"X-API-Key": key}):
            assert client.get("/v1/banks", headers=header).status_code == 200
        limited = client.get("/v1/banks", headers=bearer(key))
        assert error_of(limited, 429)["code"] == "rate_limited" and int(limited.headers["retry-after"]) > 0
        for public in ("/healthz", "/readyz", "/openapi.json"):
            assert client.get(public).status_code == 200
        assert client.get("/metrics").status_code == 401


def test_a_right_includes_those_before_it_and_no_others(tmp_path: Path, keys: KeyFile) -> None:
    held = {right: keys.create(right, right=right)[0] for right in ("read", "write", "admin")}
    calls = [
        ("read", "GET", "/v1/banks", None),
        ("write", "POST", "/v1/banks/b/memories", {"text": "x", "infer": False, "dry_run": True}),
        ("admin", "POST", "/v1/banks/b/erase", {"ids": ["m1"]}),
        ("admin", "GET", "/metrics", None),
    ]
    order = ("read", "write", "admin")
    with serving(tmp_path, None, keys) as client:
        for needed, method, path, body in calls:
            for right, key in held.items():
                response = client.request(method, path, json=body, headers=bearer(key))
                assert (response.status_code == 403) == (order.index(right) < order.index(needed)), (right, path)


def test_neither_keys_nor_what_people_said_are_logged(
    tmp_path: Path, keys: KeyFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, record = keys.create("shop", tenant="acme")
    caplog.set_level(logging.DEBUG)
    for own in ("httpx", "httpx2"):  # the test's client
        monkeypatch.setattr(logging.getLogger(own), "disabled", True)
    with serving(tmp_path, keys=keys) as client:
        for path, body in (
            ("/v1/banks/notes/memories", {"text": "The secret is Zanzibar."}),
            ("/v1/banks/notes/memories", {"text": ["Zanzibar"]}),
            ("/v1/banks/notes/search", {"query": "Zanzibar"}),
            ("/v1/answer", {"question": "What is Zanzibar?", "user_id": "Zanzibar"}),
        ):
            client.post(path, params={"user_id": "Zanzibar"}, json=body, headers={**bearer(key), "X-Request-Id": "r-1"})
        client.get("/v1/banks", headers=bearer("memr1_Zanzibar"))
        shown = client.get("/metrics", headers=bearer(keys.create("ops", right="admin")[0])).text
    lines = [r.getMessage() for r in caplog.records if r.name == "memr1.serving.access"]
    assert len(lines) == 6 and '"route": "/v1/banks/{bank}/memories"' in lines[0]
    assert f'"key": "{record.id}", "tenant": "acme"' in lines[0] and '"request_id": "r-1"' in lines[0]
    said = "\n".join([caplog.text, shown])
    assert "Zanzibar" not in said and key.split("_", 2)[2] not in said
    assert 'memr1_operations_total{event="ADD"} 1.0' in shown


def test_others_than_loopback_are_refused_without_keys() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(MemR1Error, match="memr1 keys create"):
            check_host(host, None)
        check_host(host, "keys.json")
    check_host("127.0.0.1", None)


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    run = CliRunner()
    made = run.invoke(app, ["keys", "create", "shop", "--file", file, "--tenant", "acme", "--right", "admin"])
    key = re.search(r"memr1_(\w{12})_\S{43}", made.output)
    assert key is not None and KeyFile(file).authenticate(key[0]).scope.tenant == "acme"
    listed = run.invoke(app, ["keys", "list", "--file", file], env={"COLUMNS": "200"}).output
    assert key[1] in listed and "acme" in listed and key[0] not in listed
    assert run.invoke(app, ["keys", "revoke", key[1], "--file", file]).exit_code == 0
    with pytest.raises(ApiError):
        KeyFile(file).authenticate(key[0])
