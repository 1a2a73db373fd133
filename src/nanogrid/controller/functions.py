"""Routes of functions: deploy, versions, aliases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nanogrid.controller.access import authorize, decode, json_of, services_of
from nanogrid.controller.problems import problem, request_id_of
from nanogrid.errors import InvalidRequest, NanoGridError, TooLarge
from nanogrid.model.function import Alias, Function, FunctionConfig, Version, check_config, check_name
from nanogrid.sandbox.loaded import LoadFailed

CODE_LIMIT = 256 << 20
LINES = "application/x-ndjson"


def shown_version(version: Version, latest: bool) -> dict[str, Any]:
    """A version as the API shows it."""
    return {
        "function": version.function,
        "version": version.number,
        "latest": latest,
        "code_sha256": version.code_sha256,
        "code_size": version.code_size,
        "created_at": version.created_at,
        "config": {k: v for k, v in msgspec.to_builtins(version.config).items() if k != "env"}
        | ({"env": {name: "***" for name in version.config.env}} if version.config.env else {}),
    }


def shown(function: Function) -> dict[str, Any]:
    """A function as the API shows it. Values of its environment are not shown."""
    latest = function.versions[str(function.latest)]
    return {
        "name": function.name,
        "runtime": latest.config.runtime,
        "latest": function.latest,
        "versions": len(function.versions),
        "aliases": msgspec.to_builtins(function.aliases),
        "revision": function.revision,
        "created_at": function.created_at,
        "updated_at": function.updated_at,
        "config": shown_version(latest, True)["config"],
        "code_sha256": latest.code_sha256,
        "code_size": latest.code_size,
        **({"url": f"/f/{function.name}/"} if latest.config.url else {}),
    }


async def put_function(request: Request) -> Response:
    """Creates or updates a function: multipart with `config` and `code`, or an archive with the config in the query.

    With `Accept: application/x-ndjson` the build log is streamed as lines `{"log": ...}`, and the last line
    is `{"function": ...}` or `{"error": ...}`.
    """
    name = request.path_params["name"]
    authorize(request, "deploy", name)
    check_name(name)
    folder = tempfile.TemporaryDirectory(prefix="nanogrid-upload-")
    try:
        config, archive = await _upload(request, name, Path(folder.name))
        check_config(config)
    except BaseException:
        folder.cleanup()
        raise
    if LINES in request.headers.get("accept", ""):
        return StreamingResponse(_deploy_lines(request, config, archive, folder), media_type=LINES)
    with folder:
        function, version = await _deploy(request, config, archive, lambda line: None)
    return JSONResponse(shown(function) | {"version": version.number}, 201 if version.number == 1 else 200)


async def _deploy(request: Request, config: FunctionConfig, archive: Path, log: Any) -> tuple[Function, Version]:
    try:
        return await services_of(request).publisher.deploy(config, archive, log)
    except LoadFailed as error:
        failure = error.failure
        raise InvalidRequest(
            f"the handler {config.handler or '(default)'!r} does not load: {failure.type}: {failure.message}",
            failure=msgspec.to_builtins(failure),
        ) from error


async def _deploy_lines(
    request: Request, config: FunctionConfig, archive: Path, folder: tempfile.TemporaryDirectory[str]
) -> AsyncIterator[bytes]:
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def deploy() -> None:
        try:
            function, version = await _deploy(request, config, archive, lambda line: lines.put_nowait({"log": line}))
            lines.put_nowait({"function": shown(function) | {"version": version.number}})
        except NanoGridError as error:
            lines.put_nowait({"error": problem(error, request_id_of(request))})
        except Exception as error:
            lines.put_nowait(
                {
                    "error": problem(
                        NanoGridError(f"the platform failed: {type(error).__name__}"), request_id_of(request)
                    )
                }
            )
            raise
        finally:
            lines.put_nowait(None)

    deploying = asyncio.ensure_future(deploy())
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line).encode() + b"\n"
    finally:
        deploying.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await deploying
        folder.cleanup()


async def _upload(request: Request, name: str, folder: Path) -> tuple[FunctionConfig, Path]:
    archive = folder / "code"
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if int(request.headers.get("content-length") or 0) > CODE_LIMIT:
        raise TooLarge(f"the code is over the limit of {CODE_LIMIT >> 20} MiB")
    if kind == "multipart/form-data":
        async with request.form(max_files=2, max_fields=2) as form:
            given, code = form.get("config"), form.get("code")
            if not isinstance(code, UploadFile):
                raise InvalidRequest("the part `code` (a zip or tar archive) is missing")
            text = (await given.read()) if isinstance(given, UploadFile) else (given or "{}").encode()
            with archive.open("wb") as out:
                while block := await code.read(1 << 20):
                    out.write(block)
        return _config(text, name), archive
    if kind not in ("application/zip", "application/gzip", "application/octet-stream", "application/x-tar"):
        raise InvalidRequest(
            f"content type {kind!r}: send multipart/form-data with `config` and `code`, or application/zip"
        )
    size = 0
    with archive.open("wb") as out:
        async for block in request.stream():
            size += len(block)
            if size > CODE_LIMIT:
                raise TooLarge(f"the code is over the limit of {CODE_LIMIT >> 20} MiB")
            out.write(block)
    try:
        config = msgspec.convert({"name": name, **dict(request.query_params)}, FunctionConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the query is wrong: {error}") from error
    return config, archive


def _config(text: bytes, name: str) -> FunctionConfig:
    raw = decode(text, dict[str, Any], "the config")
    if raw.get("name", name) != name:
        raise InvalidRequest(f"the config is for {raw['name']!r}, the address for {name!r}: make them the same")
    return decode(msgspec.json.encode({**raw, "name": name}), FunctionConfig, "the config")


async def list_functions(request: Request) -> Response:
    """All functions."""
    key = authorize(request, "read")
    found = await services_of(request).registry.list()
    return JSONResponse({"functions": [shown(one) for one in found if key.allows("read", one.name)]})


async def get_function(request: Request) -> Response:
    """One function."""
    name = request.path_params["name"]
    authorize(request, "read", name)
    return JSONResponse(shown(await services_of(request).registry.get(name)))


async def delete_function(request: Request) -> Response:
    """Ends a function; what runs goes on to its end."""
    name = request.path_params["name"]
    authorize(request, "deploy", name)
    await services_of(request).registry.delete(name)
    return Response(status_code=204)


async def list_versions(request: Request) -> Response:
    """The versions of a function, newest first."""
    name = request.path_params["name"]
    authorize(request, "read", name)
    function = await services_of(request).registry.get(name)
    versions = sorted(function.versions.values(), key=lambda version: -version.number)
    return JSONResponse({"versions": [shown_version(v, v.number == function.latest) for v in versions]})


async def rollback(request: Request) -> Response:
    """Makes an older version `$LATEST` again."""
    name, number = request.path_params["name"], request.path_params["number"]
    authorize(request, "deploy", name)
    return JSONResponse(shown(await services_of(request).registry.rollback(name, number)))


async def put_alias(request: Request) -> Response:
    """Creates or moves an alias: `{"version": 2, "weights": {"3": 0.1}}`."""
    name = request.path_params["name"]
    authorize(request, "deploy", name)
    target = await json_of(request, Alias)
    return JSONResponse(
        shown(await services_of(request).registry.set_alias(name, request.path_params["alias"], target))
    )


async def delete_alias(request: Request) -> Response:
    """Removes an alias."""
    name = request.path_params["name"]
    authorize(request, "deploy", name)
    await services_of(request).registry.delete_alias(name, request.path_params["alias"])
    return Response(status_code=204)
