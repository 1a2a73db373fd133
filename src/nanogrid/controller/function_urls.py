"""Function URLs: any HTTP request as an event of payload format 2.0, and the answer back.

The format is that of AWS Lambda function URLs (docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanogrid.controller.access import authorize, body_of, services_of
from nanogrid.errors import NotFound
from nanogrid.invoke.calls import Call
from nanogrid.model.names import new_id

JSON_TYPE = "application/json"
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN_HEADERS = frozenset(("content-length", "transfer-encoding", "connection"))
"""How the answer travels is the controller's business."""
HIDDEN = frozenset(("authorization",))
"""The grid's own key is none of the function's business."""


def is_text(content_type: str) -> bool:
    """Whether a body goes into the event as text; anything else goes as base64."""
    kind = content_type.partition(";")[0].strip().lower()
    return (
        kind.startswith("text/")
        or kind in ("application/json", "application/xml", "application/javascript")
        or kind.endswith(("+json", "+xml"))
    )


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in pairs:
        out[name] = f"{out[name]},{value}" if name in out else value
    return out


def event_of(request: Request, name: str, body: bytes) -> dict[str, Any]:
    """The 2.0 event of a request."""
    raw_path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    path = raw_path[len(f"/f/{name}") :] or "/"
    query = request.scope["query_string"].decode("latin-1")
    headers = _joined((k, v) for k, v in request.headers.items() if k not in HIDDEN and k != "cookie")
    client = request.client.host if request.client else ""
    headers.setdefault("x-forwarded-for", client)
    headers.setdefault("x-forwarded-proto", request.url.scheme)
    headers.setdefault("x-forwarded-port", str(request.url.port or (443 if request.url.scheme == "https" else 80)))
    now = time.time()
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": name,
            "domainName": request.headers.get("host", ""),
            "domainPrefix": name,
            "http": {
                "method": request.method,
                "path": path,
                "protocol": f"HTTP/{request.scope['http_version']}",
                "sourceIp": client,
                "userAgent": request.headers.get("user-agent", ""),
            },
            "requestId": new_id(now),
            "routeKey": "$default",
            "stage": "$default",
            "time": datetime.fromtimestamp(now, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies := [
        part.strip() for value in request.headers.getlist("cookie") for part in value.split(";") if part.strip()
    ]:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = _joined(parse_qsl(query, keep_blank_values=True))
    if body:
        event["isBase64Encoded"] = not is_text(request.headers.get("content-type", ""))
        event["body"] = base64.b64encode(body).decode() if event["isBase64Encoded"] else body.decode("utf-8", "replace")
    return event


class _Answer(msgspec.Struct):
    """What a function may answer, as far as it is looked at; anything else is no answer of format 2.0."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = msgspec.field(name="statusCode")
    headers: dict[str, str | int | float | bool] = {}
    cookies: list[str] = []
    body: str | None = None
    base64: bool = msgspec.field(name="isBase64Encoded", default=False)


def response_of(payload: bytes, kind: str) -> Response:
    """The HTTP answer that a result means: an object with statusCode, or any value as the body.

    Raises:
        ValueError: the object is no answer of format 2.0, or would break the protocol.
    """
    if not kind.startswith("application/json"):
        return Response(payload, media_type=kind)
    value = msgspec.json.decode(payload) if payload else None
    if not isinstance(value, dict) or "statusCode" not in value:
        return Response(value if isinstance(value, str) else payload, media_type=JSON_TYPE)
    answer = msgspec.convert(value, _Answer)
    body = answer.body or ""
    content = base64.b64decode(body, validate=True) if answer.base64 else body.encode()
    response = Response(content, answer.status)
    for name, text in [*answer.headers.items(), *(("set-cookie", cookie) for cookie in answer.cookies)]:
        if not HEADER_NAME.fullmatch(name) or not str(text).isprintable():
            raise ValueError(f"header {name[:80]!r} is not allowed in HTTP")
        if name.lower() not in OWN_HEADERS:
            response.headers.append(name, str(text))
    response.headers.setdefault("content-type", JSON_TYPE)
    return response


async def serve(request: Request) -> Response:
    """Invokes the function for a request below its URL."""
    name = request.path_params["name"]
    authorize(request, "invoke", name)
    services = services_of(request)
    version = await services.invoker.resolve(name, "$LATEST")
    if not version.config.url:
        raise NotFound(f"function {name!r} has no URL: set `url = true` in its nanogrid.toml and deploy it again")
    body = await body_of(request, services.settings.max_event_mb << 20)
    event = msgspec.json.encode(event_of(request, name, body))
    record = await services.invoker.invoke(Call(name, "$LATEST", event, trigger="url"), services.settings.sync_wait_s)
    headers = {"X-NanoGrid-Invocation-Id": record.id}
    if not record.done:
        return JSONResponse({"id": record.id, "url": f"/v1/invocations/{record.id}"}, 202, headers)
    if record.failure is not None:
        return JSONResponse({"message": "Internal Server Error"}, 502, headers)
    try:
        response = response_of(record.result or b"", record.result_type)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return JSONResponse(
            {"message": "Internal Server Error", "detail": "the function's answer is no 2.0 response"},
            502,
            headers,
        )
    response.headers["X-NanoGrid-Invocation-Id"] = record.id
    return response
