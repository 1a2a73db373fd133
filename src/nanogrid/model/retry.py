"""What follows a failed attempt: a pure decision on the class of the failure, never on its text."""

from __future__ import annotations

from nanogrid.model.invocation import RETRIED, ErrorClass, Failure

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 300.0
# A caller who waits for a synchronous answer sees the function's own failure at once and decides itself.
RETRIED_SYNC = frozenset((ErrorClass.WORKER_LOST, ErrorClass.PLATFORM))


def retry_delay_s(failure: Failure, attempt: int, retries: int, trigger: str, draw: float) -> float | None:
    """Seconds until the next attempt, or None when this failure is final.

    Args:
        failure: why the attempt failed.
        attempt: its number, from 1.
        retries: how many attempts may follow the first.
        trigger: `sync` and `url` callers wait for the answer; all others do not.
        draw: a random number in 0..1; spreads retries over the second half of the delay.
    """
    classes = RETRIED_SYNC if trigger in ("sync", "url") else RETRIED
    if failure.error_class not in classes or attempt > retries:
        return None
    delay = min(MAX_DELAY_S, FIRST_DELAY_S * 4.0 ** (attempt - 1))
    return delay * (0.5 + draw / 2)
