"""From interventions, a model and a prompt to edits, a cache class, and a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heed_interventions.composition import Placed, conflict, repeated
from heed_interventions.errors import InterventionError, join_path
from heed_interventions.method import CacheClass, Method
from heed_interventions.policy import EVERYTHING, Policy
from heed_interventions.publication import digest, lowest
from heed_interventions.views import ModelView, PromptView, RequestView
from heed_kernels.edits import Edit, HeadSet

Source = Literal["request", "default"]


@dataclass(frozen=True)
class Resolution:
    """What a request's interventions come to on one prompt.

    edits: for the worker; empty means plain. Each names its intervention by `source`.
    cache: class of the whole set.
    digest: SHA-256 (hex) of the edits that publishable prompt rows see, for the salt; None unless
        the class is salted.
    publication_limit: blocks that hold a row at or past this absolute position are never published;
        None means no limit.
    reports: one object per intervention, in request order.
    heads: the selected pairs per intervention; None where it was skipped.
    """

    edits: tuple[Edit, ...]
    cache: CacheClass
    digest: str | None
    publication_limit: int | None
    reports: tuple[dict[str, Any], ...]
    heads: tuple[HeadSet | None, ...]


@dataclass(frozen=True)
class _Resolved:
    method: Method
    edits: tuple[Edit, ...]
    heads: HeadSet
    limit: int | None
    cache: CacheClass
    report: dict[str, Any]


def resolve(
    interventions: Sequence[Method],
    model: ModelView,
    prompt: PromptView,
    *,
    sources: Sequence[Source] | None = None,
    allow_privileged: bool = False,
    check: Callable[[Edit], None] | None = None,
    policy: Policy = EVERYTHING,
    path: str = "interventions",
) -> Resolution:
    """Check `interventions` against the model and the prompt, and compile them to edits.

    sources: where each one comes from; all from the request when left out. One from the server's
        defaults that does not fit is skipped and says why; it never raises.
    check: whether the server can carry an edit out for this prompt; raises `InterventionError`.
    path: the field's name in the request, for errors.

    Raises `InterventionError`: 403 for what is privileged or against the policy, 400 for all else.
    """
    sources = sources or ["request"] * len(interventions)
    done: dict[int, _Resolved] = {}
    reports: list[dict[str, Any]] = [{}] * len(interventions)
    # What the request asks for is placed first, so that a default gives way to it.
    order = sorted(
        range(len(interventions)), key=lambda index: (sources[index] != "request", index)
    )
    for index in order:
        method, source = interventions[index], sources[index]
        view = RequestView(model, prompt, join_path(path, index), index)
        try:
            policy.check(method, view.path)
            found = _resolve_one(method, view, source, list(done.values()), allow_privileged)
            policy.check_edits(method, found.edits, view)
            if check is not None:
                for edit in found.edits:
                    check(edit)
            done[index], reports[index] = found, found.report
        except InterventionError as error:
            error.method = method.name()
            if source == "request":
                raise
            reports[index] = report_of(method, "skipped", source) | {"reason": error.message}

    active = [done[index] for index in sorted(done) if done[index].edits]
    edits = tuple(edit for item in active for edit in item.edits)
    heads = tuple(done[index].heads if index in done else None for index in range(len(reports)))
    if any(item.cache is CacheClass.PRIVATE for item in active):
        return Resolution(edits, CacheClass.PRIVATE, None, 0, tuple(reports), heads)
    limit = lowest(item.limit for item in active)
    name = digest(edits, limit)
    cache = CacheClass.SHARED if name is None else CacheClass.SALTED
    return Resolution(edits, cache, name, limit, tuple(reports), heads)


def _resolve_one(
    method: Method,
    view: RequestView,
    source: Source,
    before: Sequence[_Resolved],
    allow_privileged: bool,
) -> _Resolved:
    model, prompt = view.model, view.prompt
    privileged = method.privileged_parameter()
    if privileged and not allow_privileged:
        raise InterventionError(
            f"this {privileged} of {method.name()} is privileged, and this server does not allow "
            "privileged interventions (--allow-privileged-interventions)",
            join_path(view.path, privileged),
            reason="privileged",
            status=403,
        )
    if model.unsupported is not None:
        # Nothing about such a model can be relied on, not even that it has layers.
        if not method.is_neutral(model):
            raise InterventionError(model.unsupported, view.path, reason="unsupported")
        report = report_of(method, "neutral", source)
        return _Resolved(method, (), HeadSet(()), None, CacheClass.SHARED, report)
    if method.needs_image:
        view.image_end("method", method.name())
    obstacle = method.obstacle(model)
    if obstacle is not None and not method.is_neutral(model):
        raise view.error("method", obstacle, "unsupported")
    heads = method.on(view)
    edits = tuple(method.edits(view))
    twice = repeated(method, [item.method for item in before])
    if twice:
        raise view.error("method", twice, "composition")
    if method.is_neutral(model) or not edits:
        if not method.is_neutral(model):
            view.report.setdefault("reason", "there is nothing to edit in this prompt")
        edits, cache, limit = (), CacheClass.SHARED, None
    else:
        placed = [Placed(item.method, item.edits) for item in before if item.edits]
        meaningless = conflict(Placed(method, edits), placed)
        if meaningless:
            raise InterventionError(meaningless, view.path, reason="composition")
        limit = method.publication_limit(prompt.length)
        cache = _cache_class(method, edits, limit)
    report = report_of(method, "applied" if edits else "neutral", source, heads, cache)
    return _Resolved(method, edits, heads, limit, cache, report | view.report)


def _cache_class(method: Method, edits: tuple[Edit, ...], limit: int | None) -> CacheClass:
    if method.looks_ahead():
        return CacheClass.PRIVATE
    return CacheClass.SHARED if digest(edits, limit) is None else CacheClass.SALTED


def report_of(
    method: Method,
    status: Literal["applied", "neutral", "skipped"],
    source: Source,
    heads: HeadSet | None = None,
    cache: CacheClass = CacheClass.SHARED,
) -> dict[str, Any]:
    """The parts of a report that every intervention has; heads: None where none were selected."""
    report: dict[str, Any] = {
        "method": method.name(),
        "status": status,
        "source": source,
        "layer_count": heads.layer_count if heads else 0,
        "head_count": heads.pair_count if heads else 0,
        "cache": cache.value,
    }
    if method.profile is not None:
        report["profile"] = method.profile
    if heads and method.report == "full":
        report["heads"] = heads_by_layer(heads)
    return report


def heads_by_layer(heads: HeadSet | None) -> dict[str, list[int]]:
    """The query heads of each layer that has selected ones, as reports name them; None: no layer has."""
    if heads is None:
        return {}
    return {str(layer): list(heads.heads(layer)) for layer, mask in enumerate(heads.masks) if mask}
