"""Typed interventions for a Heed server, beside the openai package."""

from heed_client.attention import Attention
from heed_client.edited import with_interventions
from heed_client.intervention import Intervention, Interventions, bodies, extra_body, from_profile
from heed_client.report import Report, reports
from heed_client.server import AsyncHeed, Heed, HeedError

__version__ = "0.1.0"

__all__ = [
    "AsyncHeed",
    "Attention",
    "Heed",
    "HeedError",
    "Intervention",
    "Interventions",
    "Report",
    "bodies",
    "extra_body",
    "from_profile",
    "reports",
    "with_interventions",
]
