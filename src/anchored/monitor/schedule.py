"""A schedule for work beside training that keeps it within its share of the time.

A model changes most at the start, so turns are densest there: of n affordable turns, the k-th comes
at about (k/n)^2.5 of the run. Work before the first step (a baseline) counts against the same
budget.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

_DENSITY = 2.5  # with two turns, the first is well within the first quarter


@dataclass
class TurnScheduler:
    """The schedule of the turns in one run.

    Args:
        every: minimum number of steps between turns.
        budget: share of the time of all steps that the turns may take; None for no limit.
        first_step, last_step: the steps of this run; a resumed run starts with a new budget.
        spent: seconds of all turns so far.
    """

    every: int
    budget: float | None
    first_step: int
    last_step: int
    spent: float = 0.0

    def next_turn(self, step: int, last: int, cost: float, step_seconds: float) -> int | None:
        """Return the step of the next turn, or None if the budget or the run has no room for one.

        Args:
            step: the current step.
            last: the step of the last turn.
            cost: seconds of the last turn, which `spent` already includes.
            step_seconds: mean seconds of a training step.
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
    """A timer of training steps.

    The mean leaves out the first of several steps, which includes one-time work such as compilation
    and the first allocations.
    """

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._began: float | None = None

    def begin(self) -> None:
        """Start timing a step."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Stop timing the step; ignored if none was started."""
        if self._began is not None:
            self._durations.append(time.perf_counter() - self._began)
            self._began = None

    @property
    def mean(self) -> float:
        """Mean seconds of a step; 0 before the first step."""
        known = self._durations[1:] or self._durations
        return sum(known) / len(known) if known else 0.0

    @property
    def total(self) -> float:
        """Seconds of all steps so far."""
        return sum(self._durations)
