"""A queue that shares the time of a thread fairly between tenants."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class BusyError(RuntimeError):
    """A request is refused because too many are waiting, or because the server is shutting down."""


class FairQueue(Generic[T]):
    """A first-in, first-out queue per tenant; the tenant that has used the least time is next.

    The cost of a request is an estimate of the time to handle it; :meth:`charge` corrects it. A tenant
    that comes back after a pause has no claim on the time of the pause (start-time fair queueing).

    Args:
        count: how many requests one call of :meth:`take` takes at most.
        cost: their total cost at most, if several tenants are active; at least one request is taken.
    """

    def __init__(self, count: int, cost: float = float("inf")) -> None:
        self._count, self._cost = count, cost
        self._queues: dict[str, deque[tuple[T, float]]] = {}
        self._used: dict[str, float] = {}  # virtual time of active tenants
        self._now = 0.0  # virtual time of the last request taken
        self._last_active: dict[str, float] = {}  # by tenant, the latest at the end
        self._changed = threading.Condition()
        self._closed = False

    def put(self, tenant: str, request: T, cost: float = 1.0, first: bool = False) -> None:
        """Add a request; with ``first`` before the tenant's others. The tenant "" is the server itself.

        Raises:
            BusyError: the queue is closed.
        """
        with self._changed:
            if self._closed and not first:
                raise BusyError("the server is shutting down")
            if tenant not in self._queues:
                self._queues[tenant] = deque()
                self._used[tenant] = max(self._used.get(tenant, 0.0), self._now)
            queue = self._queues[tenant]
            (queue.appendleft if first else queue.append)((request, cost))
            self._last_active.pop(tenant, None)
            self._last_active[tenant] = time.monotonic()
            self._changed.notify()

    def take(self, wait: bool = True) -> list[T] | None:
        """Some requests; at least one with ``wait``. None if closed and empty."""
        with self._changed:
            while wait and not self._queues and not self._closed:
                self._changed.wait()
            if not self._queues and self._closed:
                return None
            self._forget_inactive()
            tenants = len(self._last_active.keys() - {""})
            # What is left is for tenants that come while these requests are handled.
            count = -(-self._count // max(1, tenants)) * max(1, len(self._queues))
            cost = self._cost if tenants > 1 else float("inf")
            taken: list[T] = []
            while self._queues and len(taken) < min(count, self._count):
                tenant = min(self._queues, key=self._turn)
                queue = self._queues[tenant]
                if taken and queue[0][1] > cost:
                    break
                request, estimate = queue.popleft()
                taken.append(request)
                cost -= estimate
                if tenant:
                    self._now = max(self._now, self._used[tenant])
                    self._used[tenant] += estimate
                if not queue:
                    del self._queues[tenant]
            return taken

    @property
    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._queues

    @property
    def is_shared(self) -> bool:
        """Whether several tenants are active."""
        with self._changed:
            return len(self._last_active.keys() - {""}) > 1

    def charge(self, costs: Mapping[str, float]) -> None:
        """Add to what tenants have used: the measured cost of requests minus the estimated one."""
        with self._changed:
            for tenant, cost in costs.items():
                if tenant in self._used:
                    self._used[tenant] = max(self._used[tenant] + cost, self._now)

    def _turn(self, tenant: str) -> float:
        return self._used[tenant] if tenant else -1.0

    def _forget_inactive(self) -> None:
        """Forget the tenants that have sent no request in the last second."""
        begin = time.monotonic() - 1
        while self._last_active and next(iter(self._last_active.values())) < begin:
            tenant = next(iter(self._last_active))
            del self._last_active[tenant]
            if tenant not in self._queues:
                self._used.pop(tenant, None)

    def close(self) -> None:
        """Refuse further requests; those in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
