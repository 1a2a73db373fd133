"""Routes of the grid itself: workers, scaling, secrets, keys, health, metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanogrid import __version__
from nanogrid.controller.access import authorize, json_of, services_of
from nanogrid.errors import Conflict, NanoGridError, NotFound


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/keys."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    scopes: list[str]
    functions: str = "*"
    expires_at: float | None = None


class SecretValue(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /v1/secrets/{name}."""

    value: Annotated[str, msgspec.Meta(max_length=65536)]


async def list_workers(request: Request) -> Response:
    """The workers that live, with what they carry."""
    authorize(request, "read")
    return JSONResponse(
        {"workers": [msgspec.to_builtins(worker) for worker in await services_of(request).state.workers()]}
    )


async def drain_worker(request: Request) -> Response:
    """Lets a worker finish what it has, then stop; under `nanogrid up` a fresh one takes its place."""
    authorize(request, "admin")
    id = request.path_params["id"]
    link = services_of(request).invoker.links.find(id)
    if link is None:
        raise NotFound(f"no worker {id!r}: see `nanogrid workers ls`")
    if link.info.draining:
        raise Conflict(f"worker {id!r} is draining already")
    link.drain()
    return JSONResponse({"id": id, "draining": True}, 202)


async def scaling(request: Request) -> Response:
    """What scaling looks at: the queue and the workers."""
    authorize(request, "read")
    services = services_of(request)
    depth, workers = await services.queue.depth(), await services.state.workers()
    running = sum(worker.running for worker in workers)
    capacity = sum(worker.capacity for worker in workers)
    shown = {
        "visible": depth.visible,
        "in_flight": depth.in_flight,
        "workers": len(workers),
        "running": running,
        "capacity": capacity,
    }
    return JSONResponse(shown)


async def list_secrets(request: Request) -> Response:
    """Names only: a value never comes back."""
    authorize(request, "admin")
    return JSONResponse({"secrets": [{"name": name} for name in await services_of(request).secrets.list()]})


async def put_secret(request: Request) -> Response:
    """Stores or replaces a value; new sandboxes see it."""
    authorize(request, "admin")
    secret = await json_of(request, SecretValue)
    await services_of(request).secrets.put(request.path_params["name"], secret.value)
    return Response(status_code=204)


async def get_secret(request: Request) -> Response:
    """Whether a secret is there; never its value."""
    authorize(request, "admin")
    name = request.path_params["name"]
    if name not in await services_of(request).secrets.list():
        raise NotFound(f"no secret {name!r}")
    return JSONResponse({"name": name, "value": "***"})


async def delete_secret(request: Request) -> Response:
    """Removes a secret."""
    authorize(request, "admin")
    await services_of(request).secrets.delete(request.path_params["name"])
    return Response(status_code=204)


async def list_keys(request: Request) -> Response:
    """All keys, without what would let one use them."""
    authorize(request, "admin")
    keys = await asyncio.to_thread(services_of(request).keys.list)
    return JSONResponse({"keys": [key.public() for key in keys]})


async def create_key(request: Request) -> Response:
    """Makes a key; its plaintext is in this answer and nowhere else."""
    authorize(request, "admin")
    new = await json_of(request, NewKey)
    key, plaintext = await asyncio.to_thread(
        services_of(request).keys.create, new.name, new.scopes, new.functions, new.expires_at
    )
    return JSONResponse(key.public() | {"key": plaintext}, 201)


async def revoke_key(request: Request) -> Response:
    """Ends a key at once here, and within seconds on every controller."""
    authorize(request, "admin")
    await asyncio.to_thread(services_of(request).keys.revoke, request.path_params["id"])
    return Response(status_code=204)


async def healthz(request: Request) -> Response:
    """This process answers. The one route without a key."""
    return JSONResponse({"status": "ok", "version": __version__})


async def readyz(request: Request) -> Response:
    """Stores answer and a worker is there: 200, else 503 with what is missing."""
    authorize(request, "read")
    services = services_of(request)
    problems = []
    try:
        if not await services.state.workers():
            problems.append("no worker lives")
        await services.queue.depth()
    except NanoGridError as error:
        problems.append(error.detail)
    return JSONResponse(
        {"ready": not problems, "problems": problems, "isolation": services.isolation},
        503 if problems else 200,
    )


async def metrics(request: Request) -> Response:
    """Gauges in Prometheus' text format."""
    authorize(request, "read")
    services = services_of(request)
    depth, workers = await services.queue.depth(), await services.state.workers()
    lines = [
        *_gauge("nanogrid_queue_visible", "Messages that wait.", depth.visible),
        *_gauge("nanogrid_queue_in_flight", "Messages in a worker's hands.", depth.in_flight),
        *_gauge("nanogrid_workers", "Workers that live.", len(workers)),
        *_gauge("nanogrid_workers_capacity", "Invocations that they can carry.", sum(w.capacity for w in workers)),
        *_gauge(
            "nanogrid_invocations_running",
            "Invocations that they carry, at the last heartbeat.",
            sum(w.running for w in workers),
        ),
        *_gauge("nanogrid_sandboxes", "Loaded sandboxes.", sum(w.sandboxes for w in workers)),
    ]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _gauge(name: str, help: str, value: float) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name} {value}"]
