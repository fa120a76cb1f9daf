"""What each intervention means: its parameters, its checks, and the edits that it becomes.

    methods = parse(body["interventions"])
    resolution = resolve(methods, model, prompt)

No vLLM, no torch, no HTTP in here.
"""

from heed_interventions.errors import REASONS, InterventionError, Reason
from heed_interventions.method import CacheClass, Method
from heed_interventions.parse import parse
from heed_interventions.registry import (
    METHODS,
    MOST_INTERVENTIONS,
    catalogue,
    catalogue_entry,
    field_schema,
    method_schema,
)
from heed_interventions.resolve import Resolution, Source, resolve
from heed_interventions.text.token_text import AlignmentError, TokenText, align
from heed_interventions.views import ImageSpan, ModelView, PromptView

__all__ = [
    "METHODS",
    "MOST_INTERVENTIONS",
    "REASONS",
    "AlignmentError",
    "CacheClass",
    "ImageSpan",
    "InterventionError",
    "Method",
    "ModelView",
    "PromptView",
    "Reason",
    "Resolution",
    "Source",
    "TokenText",
    "align",
    "catalogue",
    "catalogue_entry",
    "field_schema",
    "method_schema",
    "parse",
    "resolve",
]
