"""A cache of user states in the memory of this process."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from recblr.serving.storage import State, User


class LocalCache:
    """A StateCache of the ``size`` most recently used states.

    100,000 states of the default model take about 0.6 GiB.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._states: OrderedDict[User, State] = OrderedDict()

    def get(self, users: Sequence[User]) -> list[State | None]:
        for user in users:
            if user in self._states:
                self._states.move_to_end(user)
        return [self._states.get(user) for user in users]

    def __contains__(self, user: object) -> bool:
        return user in self._states

    def put(self, states: Sequence[tuple[User, State]]) -> None:
        self._states.update(states)
        for user, _ in states:
            self._states.move_to_end(user)
        while len(self._states) > self._size:
            self._states.popitem(last=False)

    def discard(self, users: Iterable[User]) -> None:
        for user in users:
            self._states.pop(user, None)

    def check(self) -> None:
        pass  # it is in memory

    def close(self) -> None:
        pass

    def erase(self, user: User, version: int) -> None:
        self._states.pop(user, None)
