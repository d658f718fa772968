"""Which requests are in work, and whose work is next on the event loop.

Each tenant has few requests in work, and no tenant waits behind the many of another.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from recblr.serving.fair_queue import BusyError, FairQueue
from recblr.serving.settings import ServerSettings

TURN = 0.3  # estimate of the time that a request uses the event loop at once, in ms
TOGETHER = 8  # requests in work of all active tenants, if there are several


@dataclass
class _Tenant:
    inside: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    bodies: int = 0
    last_active: float = 0.0


class Admission:
    """Admits the requests of tenants; a request that is not admitted takes no time of the server.

    A tenant has a share of the requests in work, which depends on how many tenants have sent a request
    in the last second. All methods run on the event loop.

    Args:
        settings: the limits.
        is_computing: whether another thread computes, so that turns wait until :meth:`resume`.
    """

    def __init__(
        self, settings: ServerSettings, is_computing: Callable[[], bool] = lambda: False
    ) -> None:
        self._settings, self._is_computing, self._paused = settings, is_computing, False
        self._tenants: dict[str, _Tenant] = {}
        self._share, self._counted_at, self._alone = settings.max_running, 0.0, True
        self._turns: FairQueue[tuple[str, asyncio.Future[None]]] = FairQueue(1)
        self._last = "", 0.0  # the tenant whose turn it is, and since when; 0 if it is nobody's

    @property
    def waiting(self) -> int:
        """The number of requests that are not admitted yet."""
        return sum(len(tenant.waiting) for tenant in self._tenants.values())

    async def enter(self, name: str) -> None:
        """Wait until a request of a tenant is admitted; :meth:`leave` has to follow.

        Raises:
            BusyError: too many are waiting, or it waited for too long.
        """
        tenant = self._tenant(name)
        self._count()
        if tenant.inside < self._share and not tenant.waiting:
            tenant.inside += 1
            return
        most, seconds = self._settings.max_waiting, self._settings.wait_seconds
        if len(tenant.waiting) >= most:
            raise BusyError(f"{most} requests are waiting already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tenant.waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave(name)
            if isinstance(error, TimeoutError):
                raise BusyError(
                    f"the request waited {seconds:g} seconds for earlier ones"
                ) from None
            raise

    def leave(self, name: str) -> None:
        """End a request that was admitted."""
        tenant = self._tenants[name]
        tenant.inside -= 1
        while tenant.waiting and tenant.inside < self._share:
            turn = tenant.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                tenant.inside += 1

    async def turn(self, name: str) -> None:
        """Wait until a tenant may use the event loop, for about a millisecond.

        If several tenants are active, the one that has used the least time is next.
        """
        if self._alone:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._turns.put(name, (name, turn), TURN)
        if not self._last[1] and not self._paused:
            self._last = name, time.perf_counter()
            loop.call_soon(self._next_turn)
        await turn

    def resume(self) -> None:
        """Go on with turns; with at least one, because another thread may compute again already."""
        if self._paused:
            self._paused = False
            self._give_turn(time.perf_counter())

    def _next_turn(self) -> None:
        name, begin = self._last
        now = time.perf_counter()
        self._turns.charge({name: 1e3 * (now - begin) - TURN})
        self._last = "", 0.0
        if self._is_computing():
            self._paused = True
        else:
            self._give_turn(now)

    def _give_turn(self, now: float) -> None:
        if not (taken := self._turns.take(wait=False)):
            return
        ((name, turn),) = taken
        self._last = name, now
        if not turn.done():  # its client may have hung up
            turn.set_result(None)
        # After the callback by which the request goes on, and after the bytes that have arrived.
        asyncio.get_running_loop().call_soon(self._next_turn)

    def hold(self, name: str, size: int) -> None:
        """Count a part of a body that is kept in memory; a negative ``size`` releases it.

        Raises:
            BusyError: the tenant has too many bodies in memory.
        """
        tenant = self._tenant(name)
        most = self._settings.max_waiting_bytes
        if size > 0 and tenant.bodies + size > most:
            raise BusyError(f"{most:,} bytes of bodies are waiting already")
        tenant.bodies += size

    def _tenant(self, name: str) -> _Tenant:
        if name not in self._tenants:
            self._tenants[name] = _Tenant()
        tenant = self._tenants[name]
        tenant.last_active = time.monotonic()
        return tenant

    def _count(self) -> None:
        """Count the active tenants, ten times a second."""
        now = time.monotonic()
        if now < self._counted_at + 0.1:
            return
        self._counted_at, active = now, 0
        for name, tenant in list(self._tenants.items()):
            if tenant.last_active > now - 1 or tenant.inside:
                active += 1
            elif not tenant.bodies and not tenant.waiting:
                del self._tenants[name]
        most, self._alone = self._settings.max_running, active < 2
        self._share = most if self._alone else min(most, max(1, TOGETHER // active))
