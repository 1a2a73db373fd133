"""Function URLs: payload format 2.0 in both directions."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_client import Grid, open_grid
from test_routes import deploy

from nanogrid.invoke.calls import Call
from nanogrid.model.invocation import Failure, Invocation, Status
from nanogrid.model.names import new_id


@pytest.fixture
async def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grid]:
    async with open_grid(tmp_path, monkeypatch) as grid:
        await deploy(grid, "web", url=True)
        yield grid


def answers(grid: Grid, value: object, **fields: object) -> list[Call]:
    """Makes the function return `value`; the list gets the calls."""
    calls: list[Call] = []

    def reply(call: Call) -> Invocation:
        calls.append(call)
        result = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Invocation(
            **{"id": new_id(), "function": "web", "version": 1, "status": Status.SUCCESS, "result": result, **fields}
        )

    grid.invoker.reply = reply
    return calls


async def test_a_request_becomes_a_2_0_event(grid: Grid) -> None:
    calls = answers(grid, "ok")
    headers = {"Cookie": "a=1; b=2", "X-Twice": "1", "Content-Type": "application/json", "User-Agent": "ua"}
    await grid.call("POST", "/f/web/a%20b/c?x=1&x=2&y=", data=b'{"n": 1}', headers=headers)
    event = json.loads(calls[0].event)
    assert calls[0].trigger == "url" and event["version"] == "2.0" and event["routeKey"] == "$default"
    assert event["rawPath"] == "/a%20b/c" and event["rawQueryString"] == "x=1&x=2&y="
    assert event["queryStringParameters"] == {"x": "1,2", "y": ""} and event["cookies"] == ["a=1", "b=2"]
    assert event["body"] == '{"n": 1}' and event["isBase64Encoded"] is False
    assert event["headers"]["x-twice"] == "1" and event["headers"]["x-forwarded-for"] == "127.0.0.1"
    http = event["requestContext"]["http"]
    assert http["method"] == "POST" and http["userAgent"] == "ua" and http["sourceIp"] == "127.0.0.1"


async def test_the_grids_key_does_not_reach_the_function(grid: Grid) -> None:
    calls = answers(grid, "ok")
    await grid.call("GET", "/f/web/")
    assert b"ng_" not in calls[0].event and "authorization" not in json.loads(calls[0].event)["headers"]


async def test_bodies_that_are_not_text_travel_as_base64(grid: Grid) -> None:
    calls = answers(grid, "ok")
    await grid.call("PUT", "/f/web/", data=b"\x00\xff", headers={"Content-Type": "image/png"})
    event = json.loads(calls[0].event)
    assert event["isBase64Encoded"] is True and base64.b64decode(event["body"]) == b"\x00\xff"
    await grid.call("GET", "/f/web/")
    assert "body" not in json.loads(calls[1].event) and "queryStringParameters" not in json.loads(calls[1].event)


async def test_an_object_with_a_status_code_is_the_response(grid: Grid) -> None:
    body = base64.b64encode(b"\x89PNG").decode()
    value = {"statusCode": 201, "headers": {"Content-Type": "image/png", "X-A": 7}, "cookies": ["a=1", "b=2"]}
    answers(grid, {**value, "body": body, "isBase64Encoded": True})
    async with grid.session.get(grid.url + "/f/web/") as answer:
        assert answer.status == 201 and answer.content_type == "image/png" and await answer.read() == b"\x89PNG"
        assert answer.headers["X-A"] == "7" and answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert answer.headers["X-NanoGrid-Invocation-Id"]


@pytest.mark.parametrize(("value", "text"), [({"a": 1}, '{"a": 1}'), ("bare", "bare"), ([1], "[1]"), (None, "null")])
async def test_any_other_value_is_the_body(grid: Grid, value: object, text: str) -> None:
    answers(grid, value)
    async with grid.session.get(grid.url + "/f/web") as answer:
        assert answer.status == 200 and answer.content_type == "application/json" and await answer.text() == text


async def test_a_failed_function_is_a_502_without_its_words(grid: Grid) -> None:
    failure = Failure(error_class="FUNCTION_ERROR", type="ValueError", message="inner words")
    answers(grid, b"", status=Status.FAILED, failure=failure)
    async with grid.session.get(grid.url + "/f/web/") as answer:
        assert answer.status == 502 and "inner words" not in await answer.text()
        assert answer.headers["X-NanoGrid-Invocation-Id"]


async def test_a_call_that_goes_on_is_a_202_with_its_address(grid: Grid) -> None:
    answers(grid, b"", status=Status.PROCESSING)
    status, body = await grid.call("GET", "/f/web/")
    assert status == 202 and body["url"] == f"/v1/invocations/{body['id']}"


async def test_a_malformed_response_is_a_502(grid: Grid) -> None:
    answers(grid, {"statusCode": "x"})
    assert (await grid.call("GET", "/f/web/"))[0] == 502


async def test_only_functions_with_a_url_are_served_and_only_with_a_key(grid: Grid) -> None:
    await deploy(grid, "plain")
    status, body = await grid.call("GET", "/f/plain/")
    assert status == 404 and "url = true" in body["detail"]
    assert (await grid.call("GET", "/f/none/"))[0] == 404
    assert (await grid.call("GET", "/f/web/", headers={"Authorization": "Bearer no"}))[0] == 401
    assert (await grid.call("GET", "/f/web/", headers=grid.key("read")))[0] == 403
