"""The metrics of a server, for Prometheus. Several workers of one server add up theirs in files."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

import prometheus_client
from prometheus_client import Gauge
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = (
    "PROMETHEUS_MULTIPROC_DIR"  # of the workers' files; read when prometheus_client is imported
)


class ServerMetrics:
    """Counters and gauges of a server; those of a single process also describe the process."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._shown = self._registry
        if FOLDER in os.environ:
            self._shown = prometheus_client.CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        else:
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
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []

    def gauge(
        self, name: str, text: str, of_all: Literal["sum", "min", "max"], value: Callable[[], float]
    ) -> None:
        """Add a gauge; ``of_all`` says how the values of several workers become one."""
        mode: Literal["livesum", "livemin", "livemax"] = f"live{of_all}"  # type: ignore[assignment]
        gauge = Gauge(f"recblr_{name}", text, registry=self._registry, multiprocess_mode=mode)
        self._gauges.append((gauge, value))

    def count_events(self, outcomes: Iterable[str]) -> None:
        """Count events that were accepted, duplicates or rejected."""
        for outcome, count in Counter(outcomes).items():
            self._events.labels(outcome).inc(count)

    def observe_request(self, operation: str, status: int, seconds: float) -> None:
        """Add the time that a request took."""
        key = operation, status
        if key not in self._children:
            self._children[key] = self._seconds.labels(operation, status)
        self._children[key].observe(seconds)

    def refresh(self) -> None:
        """Set the gauges to their values; other workers read them in the file."""
        for gauge, value in self._gauges:
            gauge.set(value())

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        self.refresh()
        return prometheus_client.generate_latest(self._shown)
