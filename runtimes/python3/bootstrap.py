"""The Python runtime inside a sandbox: loads a handler and serves invocations on a unix socket.

Started as `python3 -I -S -B bootstrap.py`, with NANOGRID_SOCKET naming the socket and stdout and stderr
already on the log pipe. In order: connect, HELLO, wait for LOAD (`loading.py`), then one INVOKE at a time
until the worker closes the connection.

- Frames are those of `nanogrid.wire`; results leave on the socket alone, so nothing printed can forge one.
- The socket closes on exec and in forked children, and no module in `sys.modules` holds it.
- What can be paid before user code arrives is paid at boot (imports, asyncio among them); the path of one
  invocation is one receive, one decode of the event, the handler, one encode, one send.
- One thread only waits for the end of the connection, so that a busy handler does not outlive its worker.
"""

# (No pathlib: it would cost every sandbox memory and boot time.)

import asyncio
import gc
import inspect
import json
import os
import signal
import socket
import sys
import time
import traceback
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(HERE)

import loading  # noqa: E402
from channel import (  # noqa: E402
    ERROR,
    HELLO,
    INVOKE,
    LOAD,
    LOAD_FAILED,
    LOADED,
    MAX_FRAME,
    RESULT,
    Channel,
)
from context import UNENCODABLE, Context, ResultInvalid, Streamed, encode_text  # noqa: E402

import nanogrid  # noqa: E402

PROTOCOL = 1
PLAIN = frozenset((dict, list, str, int, float, bool, type(None), bytes, tuple))
OWN_MODULES = ("channel", "context", "loading")

decode_text = json.JSONDecoder().decode


class EventInvalid(Exception):
    """The event says that it is JSON and is not."""


class Server:
    """A loaded handler and the loop that serves it."""

    def __init__(self, channel, load, handler):
        self._channel = channel
        self._load = load
        self._handler = handler
        self._loop = None
        if inspect.iscoroutinefunction(handler):
            self._event_loop()

    def serve(self):
        """Until the worker closes the connection."""
        receive = self._channel.receive
        while self.invoke(receive()):
            pass

    def invoke(self, frame):
        """One invocation: its RESULT or ERROR has left when this returns; False at the end of the stream."""
        if frame is None:
            return False
        kind, meta, payload = frame
        del frame  # A large event must not be kept while its handler works on the decoded one.
        if kind != INVOKE:
            return True
        channel = self._channel
        meta = decode_text(str(meta, "utf-8"))
        channel.owner = context = Context(self._load, meta, channel)
        try:
            event = event_of(meta, payload)
            payload = None
            result = self._handler(event, context)
            if type(result) not in PLAIN:
                result = self._settle(result, context)
            kind, (meta, body) = RESULT, encode_result(result)
        except BaseException as error:
            kind, meta, body = ERROR, error_meta(error, self._load["code"]), b""
        event = context = result = None  # Their finalizers may print, and belong to this invocation.
        flush_output()
        channel.send(kind, meta, body)
        return True

    def _settle(self, result, context):
        """Waits for what is not a value yet: a coroutine, a generator, an async generator."""
        if hasattr(result, "__await__"):
            result = self._event_loop().run_until_complete(result)
        if isinstance(result, types.GeneratorType):
            return Streamed(context).drain(result)
        if isinstance(result, types.AsyncGeneratorType):
            return self._event_loop().run_until_complete(Streamed(context).drain_async(result))
        return result

    def _event_loop(self):
        """One loop for the life of the sandbox, so that clients made in one invocation serve the next."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop


def event_of(meta, payload):
    """The event as the handler gets it: decoded JSON, or bytes when it has another content type."""
    if "type" in meta:
        kind = meta["type"].partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            return bytes(payload)
    if not payload:
        return None
    try:
        return decode_text(str(payload, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise EventInvalid(f"the event is not JSON: {error}; send JSON, or name its Content-Type") from None


def encode_result(result):
    """The frame meta and payload of a result.

    Raises:
        ResultInvalid: it is not JSON, or larger than a frame may be.
    """
    if isinstance(result, (bytes, bytearray, memoryview)):
        meta, body = b'{"type":"application/octet-stream"}', bytes(result)
    else:
        try:
            meta, body = b"{}", encode_text(result).encode()
        except UNENCODABLE as error:
            raise ResultInvalid(f"the handler's result is not JSON: {loading.text_of(error)}") from None
    if len(body) > MAX_FRAME - 1024:
        raise ResultInvalid(f"the handler's result has {len(body)} bytes, the limit is {MAX_FRAME - 1024}")
    return meta, body


def error_meta(error, code):
    """The meta of an ERROR frame."""
    meta = loading.describe(error, code)
    if isinstance(error, SystemExit):
        meta["message"] = f"the handler called sys.exit({loading.text_of(error)}); return a value instead"
    if isinstance(error, (ResultInvalid, EventInvalid)):
        meta["stack"] = []
    if isinstance(error, ResultInvalid):
        meta["class"] = "RESULT_INVALID"
    return encode_text(meta).encode()


def flush_output():
    """What was printed goes into the log before the outcome is told."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # User code may have closed or replaced it.
            continue


def prepare_process():
    """What user code finds: lines that appear as they are printed, a SIGTERM that ends it."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    if os.getpid() == 1:  # The kernel ignores a default SIGTERM to the first process of a namespace.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in OWN_MODULES:
        sys.modules.pop(name, None)
    sys.argv = [""]


def bind_module(channel):
    """Gives `import nanogrid` its voice: it speaks for the invocation that runs when it is called."""

    def progress(value):
        if (context := channel.owner) is not None:
            context.progress(value)

    def emit(chunk):
        if (context := channel.owner) is not None:
            context.emit(chunk)

    for bound in (progress, emit):
        bound.__doc__ = getattr(nanogrid, bound.__name__).__doc__
        setattr(nanogrid, bound.__name__, bound)


def boot():
    """Connects and serves; returns the exit status."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.environ.get("NANOGRID_SOCKET", "/run/nanogrid/s"))
    channel = Channel(sock)
    del sock
    os.register_at_fork(after_in_child=channel.forget)
    prepare_process()
    channel.watch()
    gc.collect()
    gc.freeze()
    hello = {"pid": os.getpid(), "runtime": "python3", "protocol": PROTOCOL}
    channel.send(HELLO, encode_text(hello).encode())
    frame = channel.receive()
    if frame is None or frame[0] != LOAD:
        return 0 if frame is None else 1
    started = time.perf_counter()
    load = decode_text(str(frame[1], "utf-8"))
    bind_module(channel)
    try:
        server = Server(channel, load, loading.load_handler(load))
    except loading.LoadFailed as error:
        flush_output()
        channel.send(LOAD_FAILED, encode_text(error.meta).encode())
        return 1
    gc.freeze()
    flush_output()
    channel.send(LOADED, encode_text({"init_ms": (time.perf_counter() - started) * 1000}).encode())
    server.serve()
    return 0


if __name__ == "__main__":
    status = 1
    try:
        status = boot()
    except OSError as error:
        print(f"nanogrid: the connection to the worker broke: {error}", file=sys.stderr)
    except SystemExit as error:  # A signal handler of user code, between invocations.
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    flush_output()
    os._exit(status)  # At once: threads and exit handlers of user code have no say.
