"""A controller on a real socket over the embedded stores, without workers: what the route tests talk to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import uvicorn

from nanogrid.controller.app import build_app
from nanogrid.controller.services import Services
from nanogrid.deploy import publish
from nanogrid.deploy.toolchains import Toolchains
from nanogrid.invoke.calls import Call
from nanogrid.invoke.invoker import Invoker
from nanogrid.model.function import FunctionConfig
from nanogrid.model.invocation import Invocation, Status
from nanogrid.model.names import new_id
from nanogrid.settings import Settings
from nanogrid.wiring import Stores


class AnsweringInvoker(Invoker):
    """The real one, but a synchronous call is answered here, because no worker is there."""

    reply: Callable[[Call], Invocation] | None = None

    async def invoke(self, call: Call, wait_s: float) -> Invocation:
        version = await self.resolve(call.function, call.qualifier)
        if self.reply is not None:
            return self.reply(call)
        return Invocation(
            id=new_id(), function=version.function, version=version.number, status=Status.SUCCESS, result=call.event
        )


async def copy_build(
    source: Path, config: FunctionConfig, out: Path, log: Callable[[str], None], *rest: object
) -> None:
    """Stands in for the build, which has tests of its own."""
    log("building")
    await asyncio.to_thread(shutil.copytree, source, out, dirs_exist_ok=True)


class Grid:
    """The services, and a session with a key of all scopes."""

    services: Services
    invoker: AnsweringInvoker
    session: aiohttp.ClientSession
    url: str

    def key(self, *scopes: str, functions: str = "*") -> dict[str, str]:
        """The headers of a new key."""
        _, plaintext = self.services.keys.create("test", list(scopes), functions)
        return {"Authorization": f"Bearer {plaintext}"}

    async def call(self, method: str, path: str, **more: object) -> tuple[int, object]:
        """Status and body: JSON decoded, anything else as text."""
        async with self.session.request(method, self.url + path, **more) as answer:
            text = await answer.text()
            with contextlib.suppress(ValueError):
                if answer.content_type.endswith(("/json", "+json")):
                    return answer.status, json.loads(text)
            return answer.status, text


@contextlib.asynccontextmanager
async def open_grid(data: Path, monkeypatch: object) -> AsyncIterator[Grid]:
    """A grid on the folder `data`."""
    monkeypatch.setattr(publish, "build", copy_build)
    settings = Settings(data=str(data))
    stores = Stores(settings)
    await stores.open()
    grid = Grid()
    grid.invoker = AnsweringInvoker(stores.state, stores.queue, stores.objects, stores.registry)
    publisher = publish.Publisher(stores.objects, stores.registry, data / "build", data / "cache", Toolchains(), None)
    grid.services = Services(
        registry=stores.registry, state=stores.state, objects=stores.objects, queue=stores.queue, invoker=grid.invoker,
        publisher=publisher, secrets=stores.secrets, keys=stores.keys, settings=settings, isolation="process",
    )  # fmt: skip
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(grid.services), lifespan="off", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server._serve(sockets=[listener]))
    grid.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    headers = grid.key("admin")
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=20)) as grid.session:
            while not server.started:
                await asyncio.sleep(0.01)
            yield grid
            grid.services.stopping.set()
    finally:
        server.should_exit = True
        await serving
        await stores.close()
