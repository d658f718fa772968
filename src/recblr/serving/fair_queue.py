"""A queue that serves tenants in turn."""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BusyError(RuntimeError):
    """A request is refused because too many are waiting, or because the server is shutting down."""


class FairQueue(Generic[T]):
    """A first-in, first-out queue per tenant; :meth:`take` takes from all queues in turn.

    One call takes at most an equal share for each tenant that was active in the last second. So a
    tenant that comes while the requests of others are handled does not wait long.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}
        self._last_active: dict[str, float] = {}  # by tenant, the latest at the end
        self._changed = threading.Condition()
        self._closed = False

    def put(self, tenant: str, request: T) -> None:
        """Add a request. The server's own requests have the tenant "".

        Raises:
            BusyError: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise BusyError("the server is shutting down")
            self._queues.setdefault(tenant, deque()).append(request)
            self._last_active.pop(tenant, None)
            if tenant:
                self._last_active[tenant] = time.monotonic()
            self._changed.notify()

    def take(self, count: int, wait: bool = True) -> list[T] | None:
        """Up to ``count`` requests; at least one with ``wait``. None if closed and empty."""
        with self._changed:
            while wait and not self._queues and not self._closed:
                self._changed.wait()
            if not self._queues and self._closed:
                return None
            share = -(-count // max(1, self._active_tenants()))
            taken: list[T] = []
            for _ in range(share):
                for tenant in list(self._queues)[: count - len(taken)]:
                    queue = self._queues.pop(tenant)
                    taken.append(queue.popleft())
                    if queue:
                        self._queues[tenant] = (
                            queue  # at the end: its next turn is after the others'
                        )
            return taken

    def _active_tenants(self) -> int:
        """How many tenants have sent a request in the last second."""
        begin = time.monotonic() - 1
        while self._last_active and next(iter(self._last_active.values())) < begin:
            del self._last_active[next(iter(self._last_active))]
        return len(self._last_active)

    def close(self) -> None:
        """Refuse further requests; those in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
