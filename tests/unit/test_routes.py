"""The management API, over HTTP and the embedded stores."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from api_client import Grid, open_grid

from nanogrid.controller.app import TABLE, build_app, describe
from nanogrid.invoke.calls import Call
from nanogrid.model.invocation import Event, Failure, Invocation, Status
from nanogrid.model.names import dead_letter_key, new_id


@pytest.fixture
async def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grid]:
    async with open_grid(tmp_path, monkeypatch) as grid:
        yield grid


def archive(files: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, text in (files or {"main.py": "def handler(event, context): return event\n"}).items():
            package.writestr(name, text)
    return buffer.getvalue()


def form(config: object, code: bytes | None = None) -> aiohttp.FormData:
    data = aiohttp.FormData()
    text = config if isinstance(config, str) else json.dumps(config)
    data.add_field("config", text, content_type="application/json")
    data.add_field("code", archive() if code is None else code, filename="code.zip", content_type="application/zip")
    return data


async def deploy(grid: Grid, name: str = "hello", **config: object) -> object:
    status, body = await grid.call("PUT", f"/v1/functions/{name}", data=form({"runtime": "python3", **config}))
    assert status in (200, 201), body
    return body


async def ended(grid: Grid, function: str = "hello") -> Invocation:
    record = Invocation(id=new_id(), function=function, version=1)
    await grid.services.state.create(record)
    record.status, record.attempt, record.worker, record.result = Status.SUCCESS, 1, "w", b'{"a":1}'
    record.log = "first\nsecond\n"
    assert await grid.services.state.save(record)
    return record


async def test_only_health_is_answered_without_a_key(grid: Grid) -> None:
    async with aiohttp.ClientSession() as stranger:
        async with stranger.get(grid.url + "/healthz") as answer:
            assert answer.status == 200
        for entry in TABLE:
            if entry.path == "/healthz" or entry.endpoint.__name__ == "invoke":
                continue
            path = entry.path.replace("{number:int}", "1").replace("{path:path}", "x").replace("{", "").replace("}", "")
            async with stranger.request(entry.methods.split()[0], grid.url + path) as answer:
                assert answer.status == 401, entry.path
                assert answer.content_type == "application/problem+json"
                assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_every_route_is_in_openapi(grid: Grid) -> None:
    paths = describe()["paths"]
    for route in build_app(grid.services).routes:
        path = route.path.replace(":int}", "}").replace(":path}", "}")
        for method in route.methods - {"HEAD"}:
            assert method.lower() in paths[path], path
    status, body = await grid.call("GET", "/v1/openapi.json")
    assert status == 200 and body["paths"].keys() == paths.keys()


async def test_deploy_describe_and_delete(grid: Grid) -> None:
    first = await deploy(grid, env={"TOKEN": "hush"})
    assert first["version"] == 1
    again = await deploy(grid, env={"TOKEN": "hush"})
    assert again["version"] == 1, "the same code and config make no new version"
    status, body = await grid.call("GET", "/v1/functions/hello")
    assert status == 200 and body["runtime"] == "python3" and "hush" not in json.dumps(body)
    status, body = await grid.call("GET", "/v1/functions")
    assert [one["name"] for one in body["functions"]] == ["hello"]
    assert (await grid.call("DELETE", "/v1/functions/hello"))[0] == 204
    status, body = await grid.call("GET", "/v1/functions/hello")
    assert status == 404 and body["code"] == "NOT_FOUND" and body["request_id"]


async def test_deploy_of_a_plain_zip_with_the_config_in_the_query(grid: Grid) -> None:
    status, body = await grid.call(
        "PUT",
        "/v1/functions/hello?runtime=python3.12&memory_mb=64&url=true",
        data=archive(),
        headers={"Content-Type": "application/zip"},
    )
    assert status == 201 and body["config"]["memory_mb"] == 64 and body["url"] == "/f/hello/"
    status, body = await grid.call("PUT", "/v1/functions/hello", data=b"x", headers={"Content-Type": "text/html"})
    assert status == 400 and "multipart/form-data" in body["detail"]


async def test_the_build_log_is_streamed(grid: Grid) -> None:
    headers = {"Accept": "application/x-ndjson"}
    status, body = await grid.call("PUT", "/v1/functions/hello", data=form({"runtime": "python3"}), headers=headers)
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and {"log": "building"} in lines and lines[-1]["function"]["version"] == 1
    bad = form({"runtime": "python3"}, archive({"../out.py": ""}))
    _, body = await grid.call("PUT", "/v1/functions/other", data=bad, headers=headers)
    assert "'..'" in json.loads(body.splitlines()[-1])["error"]["detail"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "the config is wrong"),
        ({"runtime": "python3", "memory": 64}, "did you mean `memory_mb`"),
        ({"runtime": "cobol"}, "unknown runtime 'cobol'"),
        ({"runtime": "python3", "memory_mb": "much"}, "memory_mb"),
        ({"runtime": "python3", "name": "other"}, "'other'"),
        ({"runtime": "python3", "env": {"LD_PRELOAD": "x"}}, "LD_PRELOAD"),
        ({"runtime": "python3", "schedule": "sometimes"}, "cron"),
    ],
)
async def test_a_wrong_config_names_the_cause_and_leaves_nothing(grid: Grid, config: object, says: str) -> None:
    status, body = await grid.call("PUT", "/v1/functions/hello", data=form(config))
    assert status == 400 and says in body["detail"], body
    assert (await grid.call("GET", "/v1/functions"))[1]["functions"] == []


@pytest.mark.parametrize("name", ["-x", "a;rm", "x" * 65, "%C3%A9", "a%20b"])
async def test_a_bad_name_is_refused(grid: Grid, name: str) -> None:
    status, body = await grid.call("PUT", f"/v1/functions/{name}", data=form({"runtime": "python3"}))
    assert status == 400 and "function name" in body["detail"]


async def test_zip_slip_is_refused_and_leaves_nothing(grid: Grid, tmp_path: Path) -> None:
    data = form({"runtime": "python3"}, archive({"../../escaped.py": "x"}))
    status, body = await grid.call("PUT", "/v1/functions/hello", data=data)
    assert status == 400 and "escaped.py" in body["detail"]
    assert not list(tmp_path.rglob("escaped.py")) and not list((tmp_path / "build").iterdir())
    assert (await grid.call("GET", "/v1/functions/hello"))[0] == 404


async def test_versions_aliases_and_rollback(grid: Grid) -> None:
    await deploy(grid)
    await deploy(grid, memory_mb=64)
    _, body = await grid.call("GET", "/v1/functions/hello/versions")
    assert [(v["version"], v["latest"]) for v in body["versions"]] == [(2, True), (1, False)]
    status, body = await grid.call(
        "PUT", "/v1/functions/hello/aliases/live", json={"version": 1, "weights": {"2": 0.1}}
    )
    assert status == 200 and body["aliases"]["live"]["version"] == 1
    assert (await grid.call("PUT", "/v1/functions/hello/aliases/live", json={"version": 9}))[0] == 404
    assert (await grid.call("POST", "/v1/functions/hello/versions/1:rollback"))[1]["latest"] == 1
    assert (await grid.call("POST", "/v1/functions/hello/versions/7:rollback"))[0] == 404
    assert (await grid.call("DELETE", "/v1/functions/hello/aliases/live"))[0] == 204
    assert (await grid.call("DELETE", "/v1/functions/hello/aliases/live"))[0] == 404


async def test_batch_is_durable_and_keeps_its_bytes(grid: Grid) -> None:
    await deploy(grid)
    body = b'[{"n": 1.10}, "two", null]'
    status, answer = await grid.call("POST", "/v1/functions/hello/invocations:batch", data=body)
    assert status == 202 and len(answer["invocations"]) == 3
    first = await grid.services.state.get(answer["invocations"][0]["id"])
    assert first.event == b'{"n": 1.10}' and first.status is Status.PENDING
    assert (await grid.services.queue.depth()).visible == 3
    for wrong in (b"{}", b"[1,", b"[]"):
        assert (await grid.call("POST", "/v1/functions/hello/invocations:batch", data=wrong))[0] == 400
    assert (await grid.call("POST", "/v1/functions/none/invocations:batch", data=b"[1]"))[0] == 404
    assert (await grid.call("POST", "/v1/functions/hello/invocations:batch", data=json.dumps([1] * 10_001)))[0] == 400


async def test_records_results_and_logs(grid: Grid) -> None:
    record = await ended(grid)
    path = f"/v1/invocations/{record.id}"
    status, body = await grid.call("GET", path)
    assert status == 200 and body["status"] == "SUCCESS" and "result" not in body
    assert (await grid.call("GET", path + "/result")) == (200, {"a": 1})
    assert (await grid.call("GET", path + "/logs")) == (200, "first\nsecond\n")
    assert (await grid.call("GET", path + "/logs?follow"))[1] == "first\nsecond\n"
    failed = Invocation(id=new_id(), function="hello", version=1, status=Status.FAILED, attempt=1, worker="w")
    failed.failure = Failure(error_class="FUNCTION_ERROR", type="ValueError", message="no")
    await grid.services.state.save(failed)
    status, body = await grid.call("GET", f"/v1/invocations/{failed.id}/result")
    assert status == 422 and body["code"] == "FUNCTION_ERROR" and body["failure"]["message"] == "no"
    for tail in ("", "/result", "/logs", "/events"):
        assert (await grid.call("GET", f"/v1/invocations/{new_id()}{tail}"))[0] == 404


async def test_wait_answers_at_the_end_or_after_its_time(grid: Grid) -> None:
    record = Invocation(id=new_id(), function="hello", version=1)
    await grid.services.state.create(record)
    status, body = await grid.call("GET", f"/v1/invocations/{record.id}?wait=0.1")
    assert status == 200 and body["status"] == "PENDING"
    assert (await grid.call("GET", f"/v1/invocations/{record.id}/result"))[0] == 409
    waiting = asyncio.ensure_future(grid.call("GET", f"/v1/invocations/{record.id}?wait=10"))
    await asyncio.sleep(0.1)
    record.status, record.attempt, record.worker = Status.SUCCESS, 1, "w"
    await grid.services.state.save(record)
    assert (await asyncio.wait_for(waiting, 3))[1]["status"] == "SUCCESS"
    assert (await grid.call("GET", f"/v1/invocations/{record.id}?wait=soon"))[0] == 400


async def test_list_pages_and_filters(grid: Grid) -> None:
    records = [await ended(grid, "a" if i % 2 else "b") for i in range(5)]
    _, page = await grid.call("GET", "/v1/invocations?limit=3")
    _, rest = await grid.call("GET", f"/v1/invocations?limit=3&cursor={page['cursor']}")
    ids = [one["id"] for one in page["invocations"] + rest["invocations"]]
    assert ids == [one.id for one in reversed(records)] and rest["cursor"] is None
    _, only = await grid.call("GET", "/v1/invocations?function=a&status=success")
    assert {one["function"] for one in only["invocations"]} == {"a"}
    assert (await grid.call("GET", "/v1/invocations?status=DONE"))[0] == 400
    assert (await grid.call("GET", "/v1/invocations?limit=0"))[0] == 400


async def test_cancel_and_replay(grid: Grid) -> None:
    await deploy(grid)
    [record] = await grid.services.invoker.submit([Call("hello", "$LATEST", b"[7]")])
    status, body = await grid.call("POST", f"/v1/invocations/{record.id}:cancel")
    assert status == 200 and body["failure"]["error_class"] == "CANCELLED"
    status, body = await grid.call("POST", f"/v1/invocations/{record.id}:replay")
    assert status == 202 and body["replay_of"] == record.id
    assert (await grid.services.state.get(body["id"])).event == b"[7]"


async def test_events_of_one_invocation_end_with_it_and_resume(grid: Grid) -> None:
    record = Invocation(id=new_id(), function="hello", version=1)
    await grid.services.state.create(record)
    reading = asyncio.ensure_future(grid.call("GET", f"/v1/invocations/{record.id}/events"))
    await asyncio.sleep(0.1)
    await grid.services.state.publish([Event(id=record.id, function="hello", kind="progress", at=1.0, data=50)])
    record.status, record.attempt, record.worker = Status.SUCCESS, 1, "w"
    await grid.services.state.save(record)
    status, text = await asyncio.wait_for(reading, 5)
    kinds = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    numbers = [line[4:] for line in text.splitlines() if line.startswith("id: ")]
    assert status == 200 and kinds == ["status", "progress", "status"]
    _, text = await grid.call("GET", f"/v1/invocations/{record.id}/events", headers={"Last-Event-ID": numbers[1]})
    assert [line[4:] for line in text.splitlines() if line.startswith("id: ")] == numbers[2:]
    assert (await grid.call("GET", f"/v1/invocations/{record.id}/events", headers={"Last-Event-ID": "x"}))[0] == 400


async def test_streams_of_all_events_filter_and_end_at_shutdown(grid: Grid) -> None:
    reading = asyncio.ensure_future(grid.call("GET", "/v1/events?function=a"))
    await asyncio.sleep(0.2)
    await ended(grid, "b")
    wanted = await ended(grid, "a")
    await asyncio.sleep(0.3)
    grid.services.stopping.set()
    _, text = await asyncio.wait_for(reading, 5)
    data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert data and {one["id"] for one in data} == {wanted.id} and text.endswith("retry: 1000\n\n")


async def test_dead_letters_are_listed_redriven_and_deleted(grid: Grid) -> None:
    await deploy(grid)
    ids = []
    for _ in range(2):
        record = Invocation(
            id=new_id(), function="hello", version=1, status=Status.FAILED, event=b"5", dead_letter=True
        )
        await grid.services.objects.put(dead_letter_key(record.id), msgspec.msgpack.encode(record))
        ids.append(record.id)
    ids.sort()
    _, body = await grid.call("GET", "/v1/dead-letters")
    assert [one["id"] for one in body["dead_letters"]] == ids
    status, body = await grid.call("POST", f"/v1/dead-letters/{ids[0]}:redrive")
    assert status == 202 and (await grid.services.state.get(body["id"])).event == b"5"
    assert (await grid.call("POST", f"/v1/dead-letters/{ids[0]}:redrive"))[0] == 404
    assert (await grid.call("DELETE", f"/v1/dead-letters/{ids[1]}"))[0] == 204
    assert (await grid.call("GET", "/v1/dead-letters"))[1]["dead_letters"] == []


async def test_a_secret_never_comes_back(grid: Grid) -> None:
    assert (await grid.call("PUT", "/v1/secrets/token", json={"value": "hush"}))[0] == 204
    assert (await grid.call("GET", "/v1/secrets"))[1] == {"secrets": [{"name": "token"}]}
    status, body = await grid.call("GET", "/v1/secrets/token")
    assert status == 200 and "hush" not in json.dumps(body)
    assert (await grid.call("DELETE", "/v1/secrets/token"))[0] == 204
    assert (await grid.call("GET", "/v1/secrets/token"))[0] == 404


async def test_keys_are_shown_once_and_end_at_once(grid: Grid) -> None:
    status, made = await grid.call("POST", "/v1/keys", json={"name": "ci", "scopes": ["read"]})
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert status == 201 and (await grid.call("GET", "/v1/functions", headers=headers))[0] == 200
    assert made["key"] not in json.dumps((await grid.call("GET", "/v1/keys"))[1])
    assert (await grid.call("DELETE", f"/v1/keys/{made['id']}"))[0] == 204
    assert (await grid.call("GET", "/v1/functions", headers=headers))[0] == 401
    assert (await grid.call("POST", "/v1/keys", json={"name": "x", "scopes": ["root"]}))[0] == 400


async def test_scopes_are_checked(grid: Grid) -> None:
    reader, limited = grid.key("read"), grid.key("deploy", functions="team-*")
    assert (await grid.call("GET", "/v1/secrets", headers=reader))[0] == 403
    assert (await grid.call("DELETE", "/v1/functions/hello", headers=reader))[0] == 403
    assert (await grid.call("POST", "/v1/functions/hello/invocations:batch", data=b"[1]", headers=reader))[0] == 403
    assert (await grid.call("PUT", "/v1/functions/hello", data=form({"runtime": "python3"}), headers=limited))[0] == 403
    assert (await grid.call("PUT", "/v1/functions/team-a", data=form({"runtime": "python3"}), headers=limited))[
        0
    ] == 201


async def test_health_readiness_metrics_and_scaling(grid: Grid) -> None:
    assert (await grid.call("GET", "/healthz"))[1]["status"] == "ok"
    status, body = await grid.call("GET", "/readyz")
    assert status == 503 and body["problems"] == ["no worker lives"]
    _, text = await grid.call("GET", "/metrics")
    assert "# TYPE nanogrid_queue_visible gauge\nnanogrid_queue_visible 0" in text
    _, body = await grid.call("GET", "/v1/scaling")
    assert body["visible"] == 0 and body["workers"] == 0
    assert (await grid.call("POST", "/v1/workers/none:drain"))[0] == 404


async def test_errors_are_problems_with_the_callers_request_id(grid: Grid) -> None:
    status, body = await grid.call("GET", "/v1/nothing", headers={"X-Request-Id": "mine-7"})
    assert status == 404 and body["code"] == "NOT_FOUND" and body["request_id"] == "mine-7"
    assert (await grid.call("PATCH", "/v1/functions"))[1]["code"] == "METHOD_NOT_ALLOWED"


async def test_a_defect_is_a_plain_500(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("inner words")

    monkeypatch.setattr(grid.services.registry, "list", broken)
    status, body = await grid.call("GET", "/v1/functions")
    assert status == 500 and body["request_id"] and "inner words" not in json.dumps(body)
