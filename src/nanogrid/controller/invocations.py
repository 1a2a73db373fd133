"""Routes of invocations: batch, records, results, logs, cancel, replay, dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nanogrid.controller.access import authorize, authorize_all, body_of, decode, number, record_for, services_of
from nanogrid.errors import Conflict, InvalidRequest, NotFound
from nanogrid.invoke.calls import Call
from nanogrid.model.invocation import Invocation, Status

BATCH_LIMIT = 10_000
BATCH_BYTES = 32 << 20


async def invoke_batch(request: Request) -> Response:
    """Accepts many events, a JSON array, in one durable step; answers their ids in the same order."""
    name, _, qualifier = request.path_params["name"].partition(":")
    authorize(request, "invoke", name)
    events = decode(await body_of(request, BATCH_BYTES), list[msgspec.Raw], "the batch (a JSON array of events)")
    if not 1 <= len(events) <= BATCH_LIMIT:
        raise InvalidRequest(f"a batch has 1 to {BATCH_LIMIT} events, this one has {len(events)}")
    calls = [Call(name, qualifier or "$LATEST", bytes(event), trigger="batch") for event in events]
    records = await services_of(request).invoker.submit(calls)
    return JSONResponse({"invocations": [{"id": r.id, "url": f"/v1/invocations/{r.id}"} for r in records]}, 202)


async def list_invocations(request: Request) -> Response:
    """Records, newest first; `cursor` of one page leads to the next."""
    query = request.query_params
    authorize_all(request, "read", query.get("function"))
    limit = int(number(request, "limit", 50, 1, 1000))
    try:
        status = Status(query["status"].upper()) if "status" in query else None
    except ValueError:
        raise InvalidRequest(f"status={query['status'][:20]!r}: use one of {', '.join(Status)}") from None
    since = number(request, "since", 0.0, 0.0, 1e11) if "since" in query else None
    records = await services_of(request).state.query(
        function=query.get("function"), status=status, since=since, limit=limit, before=query.get("cursor")
    )
    cursor = records[-1].id if len(records) == limit else None
    return JSONResponse({"invocations": [record.public() for record in records], "cursor": cursor})


async def _record(request: Request, scope: str = "read") -> Invocation:
    return await record_for(request, scope)


async def get_invocation(request: Request) -> Response:
    """A record; with `wait=N` it is answered once the invocation ends, or after N seconds."""
    record = await _record(request)
    wait_s = number(request, "wait", 0.0, 0.0, 3600.0)
    if wait_s > 0 and not record.done:
        record = await services_of(request).state.wait(record.id, wait_s) or await services_of(request).state.get(
            record.id
        )
    return JSONResponse(record.public())


async def get_result(request: Request) -> Response:
    """The result, as the function returned it; 409 while there is none."""
    record = await _record(request)
    if not record.done:
        raise Conflict(f"invocation {record.id} is {record.status}: ask with ?wait=N at /v1/invocations/{record.id}")
    headers = {"X-NanoGrid-Invocation-Id": record.id}
    if record.failure is not None:
        failure = record.failure
        body = {
            "type": "about:blank", "title": "The function failed", "status": 422, "code": str(failure.error_class),
            "detail": f"{failure.type}: {failure.message}", "invocation": record.id,
            "failure": msgspec.to_builtins(failure),
        }  # fmt: skip
        return JSONResponse(body, 422, headers, media_type="application/problem+json")
    content = await services_of(request).invoker.result_of(record)
    return Response(content, media_type=record.result_type, headers=headers)


async def get_logs(request: Request) -> Response:
    """What the function printed; with `follow` as it comes, until the end."""
    record = await _record(request)
    if "follow" not in request.query_params or record.done:
        note = "\n[log truncated at 1 MiB]\n" if record.log_truncated else ""
        return Response(record.log + note, media_type="text/plain; charset=utf-8")
    return StreamingResponse(_follow(request, record.id), media_type="text/plain; charset=utf-8")


async def _follow(request: Request, id: str) -> AsyncIterator[bytes]:
    services, sent = services_of(request), 0
    while True:
        done = await services.state.wait(id, 0.5)
        text = (done or await services.state.get(id)).log
        if len(text) > sent:
            yield text[sent:].encode()
            sent = len(text)
        if done is not None or services.stopping.is_set():
            return


async def cancel(request: Request) -> Response:
    """Ends an invocation: SIGTERM, grace, SIGKILL. Answers with the record once the end is confirmed."""
    record = await _record(request, "invoke")
    services = services_of(request)
    record = await services.invoker.cancel(record.id)
    if not record.done:
        patience_s = services.settings.cancel_grace_s + 2.0
        record = await services.state.wait(record.id, patience_s) or await services.state.get(record.id)
    return JSONResponse(record.public(), 200 if record.done else 202)


async def replay(request: Request) -> Response:
    """The same event again, as a new invocation."""
    record = await _record(request, "invoke")
    again = await services_of(request).invoker.replay(record.id)
    return JSONResponse({"id": again.id, "url": f"/v1/invocations/{again.id}", "replay_of": record.id}, 202)


async def list_dead_letters(request: Request) -> Response:
    """Invocations that ran out of attempts."""
    key = authorize(request, "read")
    limit = int(number(request, "limit", 100, 1, 1000))
    found = await services_of(request).invoker.dead_letters.list(limit, request.query_params.get("cursor", ""))
    cursor = found[-1].id if len(found) == limit else None
    shown = [record.public() for record in found if key.allows("read", record.function)]
    return JSONResponse({"dead_letters": shown, "cursor": cursor})


async def redrive(request: Request) -> Response:
    """Runs a dead letter again, as a new invocation."""
    key, letters = authorize(request, "invoke"), services_of(request).invoker.dead_letters
    record = await letters.get(request.path_params["id"])
    if not key.allows("invoke", record.function):
        raise NotFound(f"no dead letter {record.id!r}")
    again = await letters.redrive(record.id)
    return JSONResponse({"id": again.id, "url": f"/v1/invocations/{again.id}", "replay_of": again.replay_of}, 202)


async def delete_dead_letter(request: Request) -> Response:
    """Forgets a dead letter."""
    authorize(request, "admin")
    await services_of(request).invoker.dead_letters.delete(request.path_params["id"])
    return Response(status_code=204)
