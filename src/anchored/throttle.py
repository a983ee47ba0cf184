"""Limits on the number of requests in flight and on the rate at which they start."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

FIRST_LIMIT = 8.0
GENTLY = 0.9


class Limiter:
    """A limit on requests in flight that adapts to the server's capacity, as TCP does (AIMD).

    The limit starts at `FIRST_LIMIT` and grows by one with each success until the first congestion,
    and by one per round from then on. Congestion halves it, once for all requests in flight at that
    moment. For a server that only enforces a rate, the factor `GENTLY` is enough: against a server
    of 300 requests per second without bursts, halving reaches 82 % of the rate, while a cut by a
    tenth reaches all of it, with 1 % of the requests refused.

    Args:
        most: the upper bound of the limit.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(float(most), FIRST_LIMIT)
        self.in_flight = 0
        self._rounds = 0  # times that the limit was halved
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Wait for a free slot and hold it; pass the yielded number to `congested`."""
        await self._acquire()
        try:
            yield self._rounds
        finally:
            self._release()

    def succeeded(self) -> None:
        """Record an answer, which may raise the limit."""
        self.limit = min(float(self.most), self.limit + (1 / self.limit if self._rounds else 1))
        self._admit()

    def congested(self, slot: int, gently: bool = False) -> None:
        """Record that the server was overloaded, or (`gently`) refused the request in `slot`."""
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
            await turn  # `_admit` has already counted this request as in flight
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


class RateLimit:
    """A rate limit that spreads starts evenly, so that no minute exceeds `per_minute` units.

    Args:
        per_minute: units (requests or tokens) per minute; None for no limit.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._free_at = 0.0

    def reserve(self, units: float = 1) -> float:
        """Reserve `units` after all earlier reservations and return the seconds to wait first."""
        if self.per_minute is None:
            return 0.0
        now = monotonic()
        start = max(now, self._free_at)
        self._free_at = start + units * 60 / self.per_minute
        return start - now
