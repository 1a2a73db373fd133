"""The management API as an ASGI application, from one table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanogrid import __version__
from nanogrid.controller import function_urls, functions, grid, invocations, live
from nanogrid.controller.access import authorize
from nanogrid.controller.problems import on_http_error, on_nanogrid_error, on_unknown_error
from nanogrid.controller.services import Services
from nanogrid.errors import NanoGridError

Endpoint = Callable[[Request], Awaitable[Response]]
ANY = "GET POST PUT PATCH DELETE HEAD OPTIONS"


class Entry(NamedTuple):
    """One row of the API: what OpenAPI says of it comes from here and from the endpoint's docstring."""

    methods: str
    path: str
    endpoint: Endpoint
    scope: str


async def openapi(request: Request) -> Response:
    """This description."""
    authorize(request, "read")
    return JSONResponse(describe())


async def invoke(request: Request) -> Response:
    """Invokes a function with the body as its event.

    Answered before the application is reached, by `front.py`; here so that the table is whole.
    """
    raise HTTPException(405)


TABLE: tuple[Entry, ...] = (
    Entry("GET", "/healthz", grid.healthz, ""),
    Entry("GET", "/readyz", grid.readyz, "read"),
    Entry("GET", "/metrics", grid.metrics, "read"),
    Entry("GET", "/v1/openapi.json", openapi, "read"),
    Entry("GET", "/v1/functions", functions.list_functions, "read"),
    Entry("PUT", "/v1/functions/{name}", functions.put_function, "deploy"),
    Entry("GET", "/v1/functions/{name}", functions.get_function, "read"),
    Entry("DELETE", "/v1/functions/{name}", functions.delete_function, "deploy"),
    Entry("GET", "/v1/functions/{name}/versions", functions.list_versions, "read"),
    Entry("POST", "/v1/functions/{name}/versions/{number:int}:rollback", functions.rollback, "deploy"),
    Entry("PUT", "/v1/functions/{name}/aliases/{alias}", functions.put_alias, "deploy"),
    Entry("DELETE", "/v1/functions/{name}/aliases/{alias}", functions.delete_alias, "deploy"),
    Entry("POST", "/v1/functions/{name}/invocations", invoke, "invoke"),
    Entry("POST", "/v1/functions/{name}/invocations:batch", invocations.invoke_batch, "invoke"),
    Entry("GET", "/v1/invocations", invocations.list_invocations, "read"),
    Entry("POST", "/v1/invocations/{id}:cancel", invocations.cancel, "invoke"),
    Entry("POST", "/v1/invocations/{id}:replay", invocations.replay, "invoke"),
    Entry("GET", "/v1/invocations/{id}/result", invocations.get_result, "read"),
    Entry("GET", "/v1/invocations/{id}/logs", invocations.get_logs, "read"),
    Entry("GET", "/v1/invocations/{id}/events", live.invocation_events, "read"),
    Entry("GET", "/v1/invocations/{id}", invocations.get_invocation, "read"),
    Entry("GET", "/v1/events", live.all_events, "read"),
    Entry("GET", "/v1/dead-letters", invocations.list_dead_letters, "read"),
    Entry("POST", "/v1/dead-letters/{id}:redrive", invocations.redrive, "invoke"),
    Entry("DELETE", "/v1/dead-letters/{id}", invocations.delete_dead_letter, "admin"),
    Entry("GET", "/v1/workers", grid.list_workers, "read"),
    Entry("POST", "/v1/workers/{id}:drain", grid.drain_worker, "admin"),
    Entry("GET", "/v1/scaling", grid.scaling, "read"),
    Entry("GET", "/v1/secrets", grid.list_secrets, "admin"),
    Entry("PUT", "/v1/secrets/{name}", grid.put_secret, "admin"),
    Entry("GET", "/v1/secrets/{name}", grid.get_secret, "admin"),
    Entry("DELETE", "/v1/secrets/{name}", grid.delete_secret, "admin"),
    Entry("GET", "/v1/keys", grid.list_keys, "admin"),
    Entry("POST", "/v1/keys", grid.create_key, "admin"),
    Entry("DELETE", "/v1/keys/{id}", grid.revoke_key, "admin"),
    Entry(ANY, "/f/{name}", function_urls.serve, "invoke"),
    Entry(ANY, "/f/{name}/{path:path}", function_urls.serve, "invoke"),
)


def describe() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for entry in TABLE:
        path = entry.path.replace(":int}", "}").replace(":path}", "}")
        names = [part.partition("}")[0] for part in path.split("{")[1:]]
        lines = (entry.endpoint.__doc__ or "").strip().splitlines()
        for method in entry.methods.split():
            operation: dict[str, Any] = {
                "summary": lines[0],
                "description": "\n".join(line.strip() for line in lines[1:]).strip(),
                "operationId": f"{method.lower()}_{entry.endpoint.__name__}_{len(names)}",
                "parameters": [
                    {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
                ],
                "responses": {"default": {"description": "The answer, or a problem document (RFC 9457)."}},
            }
            if entry.scope:
                operation["security"] = [{"key": [entry.scope]}]
            paths.setdefault(path, {})[method.lower()] = operation
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key: ng_..."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "NanoGrid", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": scheme}},
    }


def build_app(services: Services) -> Starlette:
    """The application for one controller."""
    app = Starlette(
        routes=[Route(entry.path, entry.endpoint, methods=entry.methods.split()) for entry in TABLE],
        exception_handlers={
            NanoGridError: on_nanogrid_error,
            HTTPException: on_http_error,
            Exception: on_unknown_error,
        },
    )
    app.state.services = services
    return app
