"""Errors as problem documents (RFC 9457): the one mapper of the management routes."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanogrid.controller.access import authorize
from nanogrid.errors import Forbidden, NanoGridError
from nanogrid.model.names import new_id

log = logging.getLogger(__name__)


def problem(error: NanoGridError, request_id: str) -> dict[str, Any]:
    """The document that describes `error`; extra members, such as a build's `log`, come from the error."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "request_id": request_id,
        **error.extra,
    }


def request_id_of(request: Request) -> str:
    """The caller's id of the request, or a new one."""
    given = request.headers.get("x-request-id", "")[:128]
    return given if given.isprintable() and given else new_id()


def _answer(request: Request, body: dict[str, Any], retryable: bool = False) -> Response:
    headers = {"X-Request-Id": str(body["request_id"])}
    if retryable:
        headers["Retry-After"] = "1"
    if body["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, body["status"], headers, media_type="application/problem+json")


async def on_nanogrid_error(request: Request, error: Exception) -> Response:
    """An error raised on purpose."""
    assert isinstance(error, NanoGridError)
    return _answer(request, problem(error, request_id_of(request)), error.retryable)


async def on_http_error(request: Request, error: Exception) -> Response:
    """No such route, or not this method."""
    assert isinstance(error, HTTPException)
    try:
        # Which routes there are is no secret, but nobody without a key gets another answer than that.
        authorize(request, "read")
    except Forbidden:
        pass
    except NanoGridError as refused:
        return await on_nanogrid_error(request, refused)
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "INVALID_REQUEST")
    detail = {
        404: f"there is nothing at {request.url.path}: the routes are listed at /v1/openapi.json",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    title = HTTPStatus(error.status_code).phrase
    body = {
        "type": "about:blank",
        "title": title,
        "status": error.status_code,
        "code": code,
        "detail": detail,
    }
    return _answer(request, {**body, "request_id": request_id_of(request)})


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """A defect of ours: the log has the cause, the caller an id to quote."""
    request_id = request_id_of(request)
    log.error("request_failed request_id=%s path=%s", request_id, request.url.path, exc_info=error)
    detail = "the platform failed; its log has the cause under this request_id"
    body = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "code": "PLATFORM",
        "detail": detail,
    }
    return _answer(request, {**body, "request_id": request_id})
