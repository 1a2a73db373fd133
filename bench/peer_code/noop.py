"""What Celery's workers execute: nothing. Broker and results are in the Redis of BENCH_REDIS."""

import os

from celery import Celery

app = Celery("noop", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)


@app.task
def noop(event):
    """Returns nothing, as the function of the grid does."""
