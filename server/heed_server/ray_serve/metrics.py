"""The metrics of all replicas on one page, told apart by a label: a scrape through the front reaches one by chance."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class _Merged(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, LABEL: replica}
                    merged.samples.append(sample._replace(labels=labels))
        yield from families.values()


def merged(pages: Iterable[tuple[str, str]]) -> bytes:
    """One page in Prometheus's text format out of those of (replica, page), each sample with its replica's name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(dict(pages)))
    return generate_latest(registry)
