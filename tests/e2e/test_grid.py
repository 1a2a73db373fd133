"""What a grid does whatever the isolation level: calls of every kind, versions, access, bad input."""

from __future__ import annotations

import http.server
import io
import itertools
import json
import threading
import time
import zipfile
from collections.abc import Callable

import pytest
from grid import Grid

ECHO = {"main.py": "def handler(event, context):\n    return event\n"}
SLEEP = {"main.py": "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'slept'\n"}


def test_a_call_without_a_key_is_refused_and_health_is_not(one_grid: Grid) -> None:
    assert one_grid.call("GET", "/healthz", Authorization="").status == 200
    for method, path in (
        ("GET", "/v1/functions"),
        ("POST", "/v1/functions/x/invocations"),
        ("GET", "/metrics"),
        ("GET", "/f/x/"),
    ):
        answer = one_grid.call(method, path, Authorization="")
        assert answer.status == 401 and answer.json["code"] == "UNAUTHENTICATED", path
    assert one_grid.call("GET", "/v1/functions", key="ng_00000000_" + "a" * 43 + "_000000").status == 401


def test_keys_have_scopes_and_can_be_revoked(one_grid: Grid) -> None:
    one_grid.deploy("open", ECHO)
    one_grid.deploy("closed", ECHO)
    body = json.dumps({"name": "narrow", "scopes": ["invoke"], "functions": "open"}).encode()
    made = one_grid.call("POST", "/v1/keys", body).json
    assert one_grid.call("POST", "/v1/functions/open/invocations", b"1", key=made["key"]).status == 200
    assert one_grid.call("POST", "/v1/functions/closed/invocations", b"1", key=made["key"]).status == 403
    assert one_grid.call("GET", "/v1/functions", key=made["key"]).status == 403
    listed = one_grid.call("GET", "/v1/keys")
    assert made["key"] not in listed.body.decode() and "digest" not in listed.body.decode()
    assert one_grid.call("DELETE", f"/v1/keys/{made['id']}").status == 204
    until = time.monotonic() + 5
    while one_grid.call("POST", "/v1/functions/open/invocations", b"1", key=made["key"]).status != 401:
        assert time.monotonic() < until


def test_a_long_call_promotes_itself_and_runs_once(one_grid: Grid) -> None:
    one_grid.deploy("sleep", SLEEP)
    answer = one_grid.invoke("sleep", 2, Prefer="wait=0.5")
    assert answer.status == 202
    record = one_grid.record(answer.json["id"], wait=20)
    assert record["status"] == "SUCCESS" and record["attempt"] == 1
    assert one_grid.call("GET", f"/v1/invocations/{answer.json['id']}/result").json == "slept"
    time.sleep(3)
    assert one_grid.call("GET", "/v1/scaling").json["in_flight"] == 0


def test_an_idempotency_key_makes_one_invocation(one_grid: Grid) -> None:
    one_grid.deploy("sleep", SLEEP)
    first = one_grid.invoke("sleep", 1, Idempotency_Key="k-sync")
    second = one_grid.invoke("sleep", 1, Idempotency_Key="k-sync")
    assert first.status == second.status == 200
    assert first.headers["x-nanogrid-invocation-id"] != "" and second.json == "slept"
    assert one_grid.submit("sleep", 0, Idempotency_Key="k-async") == one_grid.submit(
        "sleep", 0, Idempotency_Key="k-async"
    )


def test_a_batch_is_accepted_whole_and_all_end(one_grid: Grid) -> None:
    one_grid.deploy("echo", ECHO)
    events = list(range(500))
    answer = one_grid.call("POST", "/v1/functions/echo/invocations:batch", json.dumps(events).encode())
    assert answer.status == 202
    ids = [item["id"] for item in answer.json["invocations"]]
    assert len(set(ids)) == 500
    for id, event in zip(ids, events, strict=True):
        assert one_grid.record(id, wait=30)["status"] == "SUCCESS"
        if event % 100 == 0:
            assert one_grid.call("GET", f"/v1/invocations/{id}/result").json == event


def test_retries_then_dead_letter_then_redrive(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    fails = {
        "main.py": "def handler(event, context):\n    print('attempt', context.attempt)\n    raise ValueError('no')\n"
    }
    grid.deploy("fails", fails, retries=1)
    id = grid.submit("fails", {"n": 1})
    record = grid.until(id, "FAILED", timeout_s=20)
    assert record["attempt"] == 2 and record["dead_letter"]
    dead = grid.call("GET", "/v1/dead-letters").json["dead_letters"]
    assert [one["id"] for one in dead] == [id]
    grid.deploy("fails", ECHO)
    again = grid.call("POST", f"/v1/dead-letters/{id}:redrive").json
    assert grid.record(again["id"], wait=20)["status"] == "SUCCESS"
    assert grid.call("GET", f"/v1/invocations/{again['id']}/result").json == {"n": 1}
    assert grid.call("GET", "/v1/dead-letters").json["dead_letters"] == []


def test_replay_runs_the_same_event_again(one_grid: Grid) -> None:
    one_grid.deploy("echo", ECHO)
    first = one_grid.invoke("echo", {"x": 7}).headers["x-nanogrid-invocation-id"]
    again = one_grid.call("POST", f"/v1/invocations/{first}:replay").json
    record = one_grid.record(again["id"], wait=20)
    assert record["status"] == "SUCCESS" and record["replay_of"] == first
    assert one_grid.call("GET", f"/v1/invocations/{again['id']}/result").json == {"x": 7}


def test_versions_aliases_and_rollback(one_grid: Grid) -> None:
    for number in (1, 2):
        answer = one_grid.deploy("many", {"main.py": f"def handler(event, context):\n    return {number}\n"})
        assert answer.json["version"] == number
    same = one_grid.deploy("many", {"main.py": "def handler(event, context):\n    return 2\n"})
    assert same.json["version"] == 2, "the same code and config is no new version"
    assert one_grid.invoke("many").json == 2
    assert one_grid.invoke("many:1").json == 1
    assert (
        one_grid.call("PUT", "/v1/functions/many/aliases/prod", b'{"version": 1, "weights": {"2": 1.0}}').status == 200
    )
    assert one_grid.invoke("many:prod").json == 2
    assert one_grid.call("PUT", "/v1/functions/many/aliases/prod", b'{"version": 1}').status == 200
    assert one_grid.invoke("many:prod").json == 1
    assert one_grid.call("POST", "/v1/functions/many/versions/1:rollback").status == 200
    assert one_grid.invoke("many").json == 1
    missing = one_grid.invoke("many:nope")
    assert missing.status == 404 and "prod" in missing.json["detail"]
    assert one_grid.call("DELETE", "/v1/functions/many").status == 204
    assert one_grid.invoke("many").status == 404


def test_concurrency_is_kept_across_workers(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    grid.deploy("narrow", SLEEP, concurrency=1)
    ids = [grid.submit("narrow", 0.3) for _ in range(4)]
    records = [grid.record(id, wait=30) for id in ids]
    spans = sorted((r["started_at"], r["ended_at"]) for r in records)
    assert all(r["status"] == "SUCCESS" for r in records)
    assert all(end <= start + 0.05 for (_, end), (start, _) in itertools.pairwise(spans))


def test_large_events_and_results_are_carried(one_grid: Grid) -> None:
    one_grid.deploy("echo", ECHO)
    event = "x" * (2 << 20)
    assert one_grid.invoke("echo", event).json == event
    id = one_grid.submit("echo", event)
    assert one_grid.record(id, wait=30)["status"] == "SUCCESS"
    assert one_grid.call("GET", f"/v1/invocations/{id}/result").json == event


def test_secrets_reach_the_function_and_nobody_else(one_grid: Grid) -> None:
    assert one_grid.call("PUT", "/v1/secrets/TOKEN", b'{"value": "very-secret-value"}').status == 204
    source = {"main.py": "import os\ndef handler(e, c):\n    return os.environ['TOKEN'][::-1]\n"}
    one_grid.deploy("secretive", source, secrets=["TOKEN"])
    assert one_grid.invoke("secretive").json == "very-secret-value"[::-1]
    assert (
        b"very-secret" not in one_grid.call("GET", "/v1/secrets").body + one_grid.call("GET", "/v1/secrets/TOKEN").body
    )
    assert "very-secret" not in one_grid.log()
    assert all(b"very-secret" not in path.read_bytes() for path in (one_grid.data / "secrets").iterdir())


def test_schedules_fire(one_grid: Grid) -> None:
    one_grid.deploy("ticks", ECHO, schedule="* * * * * */2")
    until = time.monotonic() + 15
    while time.monotonic() < until:
        found = one_grid.call("GET", "/v1/invocations?function=ticks&status=SUCCESS").json["invocations"]
        if len(found) >= 2:
            break
        time.sleep(0.3)
    one_grid.call("DELETE", "/v1/functions/ticks")
    assert len(found) >= 2
    assert {one["trigger"] for one in found} == {"schedule"}
    assert len({one["schedule_at"] for one in found}) == len(found)


def test_function_urls_speak_format_2(one_grid: Grid) -> None:
    source = (
        "import json\ndef handler(event, context):\n"
        "    if event['rawPath'] == '/teapot':\n"
        "        return {'statusCode': 418, 'headers': {'x-a': 'b'}, 'body': 'short', 'cookies': ['c=1']}\n"
        "    return {'event': event}\n"
    )
    one_grid.deploy("web", {"main.py": source}, url=True)
    event = one_grid.call("POST", "/f/web/a%20b?x=1&x=2&y=", b'{"k": 1}').json["event"]
    assert event["version"] == "2.0" and event["rawPath"] == "/a%20b" and event["rawQueryString"] == "x=1&x=2&y="
    assert event["queryStringParameters"] == {"x": "1,2", "y": ""}
    assert event["body"] == '{"k": 1}' and event["isBase64Encoded"] is False
    assert event["requestContext"]["http"]["method"] == "POST"
    assert "authorization" not in event["headers"]
    pot = one_grid.call("GET", "/f/web/teapot")
    assert (pot.status, pot.body, pot.headers["x-a"], pot.headers["set-cookie"]) == (418, b"short", "b", "c=1")
    one_grid.deploy("noweb", ECHO)
    assert one_grid.call("GET", "/f/noweb/").status == 404


def test_a_callback_is_signed(one_grid: Grid) -> None:
    from nanogrid.worker.callbacks import signature

    got: list[tuple[dict[str, str], bytes]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((dict(self.headers), body))
            self.send_response(200 if len(got) > 1 else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    one_grid.deploy("echo", ECHO)
    id = one_grid.submit("echo", [1], X_NanoGrid_Callback=f"http://127.0.0.1:{server.server_port}/done")
    until = time.monotonic() + 15
    while len(got) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    server.shutdown()
    assert len(got) == 2, "a refused callback is tried again"
    headers, body = got[1]
    key = (one_grid.data / "secrets" / "callback.key").read_bytes()
    assert headers["X-NanoGrid-Signature"] == signature(key, headers["X-NanoGrid-Timestamp"], body)
    told = json.loads(body)
    assert told["invocation"]["id"] == id and told["result"] == [1]


def zipped(name: str, data: bytes = b"x") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        package.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("config", "code", "status", "says"),
    [
        (b"{not json", zipped("main.py"), 400, "config"),
        (b'{"runtime": "cobol"}', zipped("main.py"), 400, "cobol"),
        (b'{"runtime": "python3", "memroy_mb": 1}', zipped("main.py"), 400, "memory_mb"),
        (b'{"runtime": "python3"}', zipped("other.py"), 422, "main.py"),
        (b'{"runtime": "python3"}', zipped("main.py", b"def handler(:"), 422, "main.py"),
        (b'{"runtime": "python3"}', zipped("main.py", b"import nothing_like_this"), 400, "nothing_like_this"),
        (b'{"runtime": "python3"}', zipped("main.py", b"x = 1"), 400, "handler"),
        (b'{"runtime": "python3"}', zipped("../main.py"), 400, "../main.py"),
        (b'{"runtime": "python3"}', b"this is no archive", 400, "archive"),
        (b'{"runtime": "cpp"}', zipped("main.cpp", b"int main() { return nope; }"), 422, "nope"),
        (b'{"runtime": "python3", "schedule": "whenever"}', zipped("main.py"), 400, "schedule"),
        (b'{"runtime": "python3", "env": {"LD_PRELOAD": "x"}}', zipped("main.py"), 400, "LD_PRELOAD"),
    ],
)
def test_bad_deploys_name_the_cause_and_leave_nothing(
    one_grid: Grid, config: bytes, code: bytes, status: int, says: str
) -> None:
    answer = one_grid.upload("bad", code, config)
    assert answer.status == status, answer.body
    assert says in answer.body.decode(), answer.body
    assert one_grid.call("GET", "/v1/functions/bad").status == 404
    assert not any((one_grid.data / "objects" / "functions").glob("bad/**/*"))


def test_bad_calls_name_the_cause(one_grid: Grid) -> None:
    one_grid.deploy("echo", ECHO)
    missing = one_grid.invoke("nobody")
    assert missing.status == 404 and "nobody" in missing.json["detail"]
    bad = one_grid.call("PUT", "/v1/functions/..%2fx", b"")
    assert bad.status in (400, 404)
    big = one_grid.call("POST", "/v1/functions/echo/invocations", b"1" * (50 << 20))
    assert big.status == 413 and "50 MiB" in big.json["detail"]
    one_grid.deploy("nan", {"main.py": "def handler(event, context):\n    return {1, 2}\n"})
    invalid = one_grid.invoke("nan")
    assert invalid.status == 422 and invalid.json["code"] == "RESULT_INVALID" and "set" in invalid.json["detail"]
    assert one_grid.invoke("echo", Prefer="wait=soon").status == 400
    assert one_grid.call("GET", "/v1/invocations?status=NICE").status == 400
    assert one_grid.call("GET", "/v1/nothing").json["code"] == "NOT_FOUND"
    assert one_grid.invoke("echo", 1).json == 1


def test_the_api_describes_itself(one_grid: Grid) -> None:
    described = one_grid.call("GET", "/v1/openapi.json").json
    assert "/v1/functions/{name}/invocations" in described["paths"]
    metrics = one_grid.call("GET", "/metrics").body.decode()
    assert "nanogrid_workers 2" in metrics
    assert one_grid.call("GET", "/readyz").json["ready"] is True
    assert {worker["id"] for worker in one_grid.call("GET", "/v1/workers").json["workers"]} == {"worker-1", "worker-2"}
