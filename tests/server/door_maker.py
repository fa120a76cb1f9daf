"""A door without an engine."""

from typing import Any

from prometheus_client import CollectorRegistry

from heed_interventions.views import ModelView
from heed_server.api.activity import Activity
from heed_server.api.cache_room import CacheRoom
from heed_server.api.door import Door
from heed_server.metrics import Metrics
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings

MODEL = ModelView(
    layers=2, query_heads=4, kv_heads=2, head_dim=8, max_length=2048, vision=False,
    unsupported=None, rotary=True,
)  # fmt: skip
ANY_CACHE = CacheRoom()


def door(
    cache: CacheRoom = ANY_CACHE,
    settings: Settings | None = None,
    table: Any = None,
    registry: CollectorRegistry | None = None,
) -> Door:
    """`registry` holds the door's metrics."""
    settings = settings or Settings()
    reports: Any = None  # asked for when generation ends, which it does not here
    metrics = Metrics("cpu", registry or CollectorRegistry())
    profiles = ProfileStore(settings.profiles, None, MODEL, settings.default_interventions)
    return Door(MODEL, settings, profiles, None, table, reports, metrics, Activity(), cache)
