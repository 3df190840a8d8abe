"""What Prometheus is told: read from the store at each scrape, nothing counted here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.store import JobStore


def metrics_text(store: JobStore) -> bytes:
    """Raises StoreUnavailable: a scrape without numbers must not look like zeros."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StoreCollector(store))
    return generate_latest(registry)


class _StoreCollector(Collector):
    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        return []  # registering must not ask Redis

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("echoforge_jobs", "Jobs on record.", labels=["status"])
        for status, count in self._store.counts().items():
            jobs.add_metric([status.value], count)
        yield jobs
        yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        labels = ["worker", "device", "model", "state"]
        slots = GaugeMetricFamily("echoforge_worker_slots", "Places.", labels=labels)
        active = GaugeMetricFamily("echoforge_worker_active", "Places in use.", labels=labels)
        prefix_bytes = GaugeMetricFamily(
            "echoforge_prefix_cache_bytes",
            "Keys and values kept of voices' contexts.",
            labels=labels,
        )
        prefixes = CounterMetricFamily(
            "echoforge_prefix_lookups",
            "Contexts looked up in the prefix cache, by whether they were there.",
            labels=[*labels, "result"],
        )
        for worker in self._store.workers():
            values = [worker.id, worker.device, worker.model, worker.state]
            slots.add_metric(values, worker.slots)
            active.add_metric(values, worker.active)
            prefix_bytes.add_metric(values, worker.prefix_bytes)
            prefixes.add_metric([*values, "hit"], worker.prefix_hits)
            prefixes.add_metric([*values, "miss"], worker.prefix_misses)
        yield from (slots, active, prefix_bytes, prefixes)
