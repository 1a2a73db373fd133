"""What a handler is given of its invocation, and how what it streams leaves."""

import json
import time

from channel import PARTIAL, PROGRESS
from loading import text_of

FAR_MS = 10 * 365 * 24 * 3600 * 1000
"""Ten years: the time that is left when the function has no time limit."""
UNENCODABLE = (TypeError, ValueError, RecursionError, OverflowError)

encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class ResultInvalid(Exception):
    """What the handler returned or yielded cannot be encoded."""


class Context:
    """What a handler may know of its invocation. Its names are those of AWS Lambda where that has one."""

    log_group_name = log_stream_name = identity = client_context = None

    def __init__(self, load, meta, channel):
        self.aws_request_id = self.invocation_id = self.id = meta.get("id", "")
        self.attempt = meta.get("attempt", 1)
        self.content_type = meta.get("type", "application/json")
        self._deadline_ms = meta.get("deadline_ms") or 0
        self._load = load
        self._send = channel.send

    @property
    def function_name(self):
        """The function's name."""
        return self._load["function"]

    @property
    def function_version(self):
        """The version's number as text."""
        return str(self._load["version"])

    @property
    def memory_limit_in_mb(self):
        """The memory limit in MiB."""
        return self._load.get("memory_mb", 0)

    @property
    def invoked_function_arn(self):
        """A name in the form of an ARN, for code that takes one apart."""
        return f"arn:aws:lambda:local:000000000000:function:{self.function_name}:{self.function_version}"

    @property
    def deadline(self):
        """When the attempt times out, in seconds since the epoch; None without a time limit."""
        return self._deadline_ms / 1000 if self._deadline_ms else None

    def get_remaining_time_in_millis(self):
        """Milliseconds until the time limit, never below 0; ten years when there is none."""
        if not self._deadline_ms:
            return FAR_MS
        return max(0, int(self._deadline_ms - time.time() * 1000))

    def progress(self, value):
        """Reports progress: anything JSON can hold. Does nothing once the invocation is over."""
        self._send(PROGRESS, encode_text({"progress": value}).encode(), on_behalf_of=self)

    def emit(self, chunk):
        """Sends a piece of the output at once: text or bytes as they are, else one line of JSON."""
        self._send(PARTIAL, payload=chunk_bytes(chunk), on_behalf_of=self)


def chunk_bytes(chunk):
    """A streamed item as bytes."""
    if isinstance(chunk, str):
        return chunk.encode()
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        return bytes(chunk)
    return encode_text(chunk).encode() + b"\n"


class Streamed:
    """The items of a generator: each leaves at once, together they are the result."""

    def __init__(self, context):
        self._context = context
        self._items = []

    def add(self, item):
        """Sends one item."""
        try:
            self._context.emit(item)
        except UNENCODABLE as error:
            raise ResultInvalid(f"item {len(self._items)} of the stream is not JSON: {text_of(error)}") from None
        self._items.append(item)

    def drain(self, generator):
        """All items of a generator; a value that it returns is the result instead."""
        while True:
            try:
                item = next(generator)
            except StopIteration as end:
                return self._joined() if end.value is None else end.value
            self.add(item)

    async def drain_async(self, generator):
        """All items of an async generator."""
        async for item in generator:
            self.add(item)
        return self._joined()

    def _joined(self):
        items = self._items
        if not items or not all(isinstance(item, (str, bytes, bytearray, memoryview)) for item in items):
            return items
        if all(isinstance(item, str) for item in items):
            return "".join(items)
        return b"".join(map(chunk_bytes, items))
