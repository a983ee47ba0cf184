"""How many requests may be in flight, and how fast they may start."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

FIRST_LIMIT = 8.0
GENTLY = 0.9


class Limiter:
    """A bound on requests in flight that finds what the server bears, as TCP does (AIMD).

    It starts at `FIRST_LIMIT` and grows by one with each success until the first congestion, from
    then on by one a round. Congestion halves it, once for all requests that were in flight then.
    Where a server only keeps to a rate, `GENTLY` is enough: halving gets 82 % of a server of 300
    requests a second without a burst, a tenth less gets all, with 1 % of the requests refused.

    Args:
        most: which the bound never exceeds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(float(most), FIRST_LIMIT)
        self.in_flight = 0
        self._rounds = 0  # times that the limit was halved
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Waits for room and holds it; what it gives is for `congested`."""
        await self._acquire()
        try:
            yield self._rounds
        finally:
            self._release()

    def succeeded(self) -> None:
        """An answer came: there may be room for more."""
        self.limit = min(float(self.most), self.limit + (1 / self.limit if self._rounds else 1))
        self._admit()

    def congested(self, slot: int, gently: bool = False) -> None:
        """The server had too much to do for the request in `slot`, or `gently` refused it."""
        if slot == self._rounds:
            share = GENTLY if gently and self._rounds else 0.5
            self._rounds += 1
            self.limit = max(1.0, self.limit * share)

    async def _acquire(self) -> None:
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever ends it has counted this request as in flight
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)


class Pace:
    """Starts spread evenly, so that no minute sees more than `per_minute` units.

    Args:
        per_minute: units (requests or tokens) a minute; None sets no bound.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._free_at = 0.0

    def reserve(self, units: float = 1) -> float:
        """Books `units` behind what is booked already, and says how many seconds to wait first."""
        if self.per_minute is None:
            return 0.0
        now = monotonic()
        start = max(now, self._free_at)
        self._free_at = start + units * 60 / self.per_minute
        return start - now
