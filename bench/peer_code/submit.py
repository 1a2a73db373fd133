"""Puts work into Celery and waits for it, told by one line of JSON on stdin, answering with one on stdout.

{"kind": "many", "count": 2000}  ->  {"seconds": 6.1, "success": 2000}
{"kind": "single", "count": 50}  ->  {"ms": [6.2, ...]}
"""

import json
import os
import sys
import time

import redis
from noop import app, noop

POLL_S = 0.02
PAUSE_S = 0.02
"""Between single ones, so that each meets an idle worker."""
PATIENCE_S = 120.0
EVENT = {"greeting": "hello-nanogrid", "n": "0000000"}


def many(store, count):
    """From the first submission to the last stored result; each result is then read and checked."""
    began = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        ids = [noop.apply_async((EVENT,), producer=producer).id for _ in range(count)]
    keys = [app.backend.get_key_for_task(id) for id in ids]
    while store.exists(*keys) < count:
        if time.monotonic() - began > PATIENCE_S:
            break
        time.sleep(POLL_S)
    seconds = time.monotonic() - began
    states = [json.loads(value)["status"] for value in store.mget(keys) if value is not None]
    store.delete(*keys)
    return {"seconds": seconds, "success": states.count("SUCCESS")}


def single(count):
    """One after the other: submitted, and its result read."""
    times = []
    for _ in range(count):
        began = time.monotonic()
        noop.apply_async((EVENT,)).get(timeout=PATIENCE_S)
        times.append((time.monotonic() - began) * 1000)
        time.sleep(PAUSE_S)
    return {"ms": times}


def main():
    """Serves until stdin ends."""
    store = redis.Redis.from_url(os.environ["BENCH_REDIS"])
    for line in sys.stdin:
        order = json.loads(line)
        answer = many(store, order["count"]) if order["kind"] == "many" else single(order["count"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
