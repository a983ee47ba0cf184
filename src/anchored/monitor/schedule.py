"""How often something beside training may run, so that it takes its share of the time and no more.

A model changes most at the start, and so turns come densest there: of n that can be paid, the k-th
comes about (k/n)^2.5 of the way through the run. What comes before the first step (a baseline) is
paid from the same budget.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

_DENSITY = 2.5  # with two turns the first is well within the first quarter


@dataclass
class TurnScheduler:
    """Decide when the next turn is due.

    Args:
        every: steps between turns, at least.
        budget: share of the time of all steps that the turns may take; None for no limit.
        first_step, last_step: of this run; a resumed one begins with a budget of its own.
    """

    every: int
    budget: float | None
    first_step: int
    last_step: int
    spent: float = 0.0

    def next_turn(self, step: int, last: int, cost: float, step_seconds: float) -> int | None:
        """The step of the next turn, now or later; None where no other can be paid or none is left.

        Args:
            step: where the run is.
            last: the step of the last turn.
            cost: seconds that it took; `spent` holds them already.
            step_seconds: mean time of a training step.
        """
        wait = self.every
        if self.budget is not None:
            steps = self.last_step - self.first_step
            left = self.budget * steps * step_seconds - self.spent
            if left < cost:
                return None
            turns = int(left / cost)
            wait = max(wait, math.ceil((self.last_step - last) / turns**_DENSITY))
        due = max(step, last + wait)
        return due if due <= self.last_step else None


class StepTimer:
    """Mean seconds of a training step, from its begin to its end; the first of several is left out.

    That one holds what is done once (compilation, the first allocations).
    """

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._began: float | None = None

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """It is over; ignored where none began."""
        if self._began is not None:
            self._durations.append(time.perf_counter() - self._began)
            self._began = None

    @property
    def mean(self) -> float:
        """Seconds; 0 before the first step."""
        known = self._durations[1:] or self._durations
        return sum(known) / len(known) if known else 0.0

    @property
    def total(self) -> float:
        """Seconds of all steps so far."""
        return sum(self._durations)
