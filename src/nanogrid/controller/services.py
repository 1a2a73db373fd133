"""What the routes work with; put together by `wiring`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from nanogrid.credentials.base import Secrets
from nanogrid.credentials.keys import Keys
from nanogrid.deploy.publish import Publisher
from nanogrid.invoke.invoker import Invoker
from nanogrid.objects.base import ObjectStore
from nanogrid.queues.base import Queue
from nanogrid.registry.base import Registry
from nanogrid.settings import Settings
from nanogrid.state.base import StateStore


@dataclass(frozen=True)
class Services:
    """One per controller process. `stopping` ends live streams at shutdown."""

    registry: Registry
    state: StateStore
    objects: ObjectStore
    queue: Queue
    invoker: Invoker
    publisher: Publisher
    secrets: Secrets
    keys: Keys
    settings: Settings
    isolation: str
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
