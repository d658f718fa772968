"""The metrics of a server, for Prometheus."""

from collections.abc import Callable

import prometheus_client
from prometheus_client import Gauge


class ServerMetrics:
    """Counters and gauges of a server and its process."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        prometheus_client.GCCollector(registry=self._registry)
        self._seconds = prometheus_client.Histogram(
            "recblr_request_seconds", "Time to answer.", ["operation", "status"],
            registry=self._registry, buckets=[0.001 * 2**n for n in range(13)],
        )  # fmt: skip
        self._events = prometheus_client.Counter(
            "recblr_events", "Events received.", ["outcome"], registry=self._registry
        )
        self._children: dict[tuple[str, int], prometheus_client.Histogram] = {}

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read when the metrics are rendered."""
        Gauge(f"recblr_{name}", text, registry=self._registry).set_function(value)

    def count_event(self, outcome: str) -> None:
        """Count an event that was accepted, a duplicate or rejected."""
        self._events.labels(outcome).inc()

    def observe_request(self, operation: str, status: int, seconds: float) -> None:
        """Add the time that a request took."""
        key = operation, status
        if key not in self._children:
            self._children[key] = self._seconds.labels(operation, status)
        self._children[key].observe(seconds)

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return prometheus_client.generate_latest(self._registry)
