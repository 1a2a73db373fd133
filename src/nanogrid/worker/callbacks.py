"""Signed webhooks: the end of an invocation, told to the address that its caller gave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time

import aiohttp
import msgspec

from nanogrid.model.invocation import Invocation

log = logging.getLogger(__name__)
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 3600.0
GIVE_UP_S = 86400.0
"""A receiver may be down for a day."""
TIMEOUT_S = 30.0
RESULT_LIMIT = 256 * 1024


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """The value of `X-NanoGrid-Signature`: HMAC-SHA256 over `timestamp.body`, hex, with its scheme in front."""
    return "v1=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def body_of(record: Invocation, result: bytes) -> bytes:
    """What is sent: the record and, up to 256 KiB, the result (JSON as it is, anything else in base64)."""
    shown = record.public()
    content: object = None
    if record.failure is None and len(result) <= RESULT_LIMIT:
        is_json = record.result_type == "application/json"
        content = msgspec.Raw(result) if is_json and result else base64.b64encode(result).decode()
    return msgspec.json.encode({"invocation": shown, "result": content})


class Callbacks:
    """Delivers in the background, with backoff, for up to a day while this worker lives."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Future[None]] = set()

    def notify(self, record: Invocation, result: bytes) -> None:
        """Starts the delivery to `record.callback`."""
        if record.callback:
            future = asyncio.ensure_future(self._deliver(record.callback, record.id, body_of(record, result)))
            self._background.add(future)
            future.add_done_callback(self._background.discard)

    async def _deliver(self, url: str, id: str, body: bytes) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        delay_s, since = FIRST_DELAY_S, time.monotonic()
        while True:
            stamp = str(int(time.time()))
            headers = {
                "Content-Type": "application/json",
                "X-NanoGrid-Invocation-Id": id,
                "X-NanoGrid-Timestamp": stamp,
                "X-NanoGrid-Signature": signature(self._key, stamp, body),
            }
            try:
                async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    if answer.status < 300 or answer.status == 410:
                        return
                    log.info("callback_refused invocation=%s status=%d", id, answer.status)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.info("callback_failed invocation=%s error=%s", id, type(error).__name__)
            if time.monotonic() - since + delay_s > GIVE_UP_S:
                log.warning("callback_given_up invocation=%s", id)
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_DELAY_S)

    async def close(self) -> None:
        """Ends deliveries that still wait."""
        for future in list(self._background):
            future.cancel()
        if self._session is not None:
            await self._session.close()
