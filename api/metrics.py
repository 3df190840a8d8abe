"""What Prometheus is told: read from the store at each scrape, nothing counted here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
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

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # registering must not ask Redis

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("echoforge_jobs", "Jobs on record.", labels=["status"])
        for status, count in self._store.counts().items():
            jobs.add_metric([status.value], count)
        yield jobs
        yield from self._workers()

    def _workers(self) -> Iterator[GaugeMetricFamily]:
        labels = ["worker", "device", "model", "state"]
        slots = GaugeMetricFamily("echoforge_worker_slots", "Places.", labels=labels)
        active = GaugeMetricFamily("echoforge_worker_active", "Places in use.", labels=labels)
        for worker in self._store.workers():
            values = [worker.id, worker.device, worker.model, worker.state]
            slots.add_metric(values, worker.slots)
            active.add_metric(values, worker.active)
        yield slots
        yield active
