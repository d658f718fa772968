"""Where requests wait for a thread that does them, each tenant's in a row of its own."""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BusyError(RuntimeError):
    """No request of this tenant is taken now."""


class Line(Generic[T]):
    """Requests that wait, a row of each tenant; taken from every row in turn.

    Of a tenant no more are taken at once than its share among those who asked in the last second: who
    comes while others' requests are done does not wait long.
    """

    def __init__(self) -> None:
        self._rows: dict[str, deque[T]] = {}
        self._asked: dict[str, float] = {}  # when each tenant last did, the latest at the end
        self._some = threading.Condition()
        self._closed = False

    def put(self, tenant: str, request: T) -> None:
        """Raises BusyError if nothing is taken any more."""
        with self._some:
            if self._closed:
                raise BusyError("the server is about to end")
            self._rows.setdefault(tenant, deque()).append(request)
            self._asked.pop(tenant, None)
            if tenant:  # "" is ourselves
                self._asked[tenant] = time.monotonic()
            self._some.notify()

    def take(self, count: int, wait: bool = True) -> list[T] | None:
        """Up to ``count``, at least one if it shall ``wait``; None at the end."""
        with self._some:
            while wait and not self._rows and not self._closed:
                self._some.wait()
            if not self._rows and self._closed:
                return None
            while self._asked and next(iter(self._asked.values())) < time.monotonic() - 1:
                del self._asked[next(iter(self._asked))]
            share = -(-count // max(1, len(self._asked)))
            taken: list[T] = []
            for _ in range(share):
                for tenant in list(self._rows)[: count - len(taken)]:
                    row = self._rows.pop(tenant)
                    taken.append(row.popleft())
                    if row:
                        self._rows[tenant] = row  # at the end: its turn comes after the others'
            return taken

    def close(self) -> None:
        """Take no more in; what waits is still taken out."""
        with self._some:
            self._closed = True
            self._some.notify_all()
