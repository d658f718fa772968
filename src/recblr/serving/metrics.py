"""The metrics of a server, for Prometheus."""

from collections.abc import Callable

import prometheus_client


class ServerMetrics:
    """Counters of a server. ``waiting`` returns the number of unanswered requests."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._seconds = prometheus_client.Histogram(
            "recblr_request_seconds", "Time to answer.", ["operation", "status"],
            registry=self._registry, buckets=[0.001 * 2**n for n in range(13)],
        )  # fmt: skip
        self._events = prometheus_client.Counter(
            "recblr_events", "Events received.", ["outcome"], registry=self._registry
        )
        gauge = prometheus_client.Gauge(
            "recblr_requests_waiting", "Not answered yet.", registry=self._registry
        )
        gauge.set_function(waiting)

    def count_event(self, outcome: str) -> None:
        """Count an event that was accepted, a duplicate or rejected."""
        self._events.labels(outcome).inc()

    def observe_request(self, operation: str, status: int, seconds: float) -> None:
        """Add the time that a request took."""
        self._seconds.labels(operation, status).observe(seconds)

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return prometheus_client.generate_latest(self._registry)
