"""Numbers and tables formatted for the terminal and for documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from rich.table import Table
from rich.text import Text

MISSING = "—"
Cells = tuple[str, ...]


def number(value: Any, digits: int = 2) -> str:
    """Format a finite number with fixed digits; anything else becomes a dash."""
    if not is_number(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def is_number(value: Any) -> TypeGuard[float]:
    """Return True if `value` is a finite number; null, NaN and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def interval(bounds: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Format an interval as `[low, high]`; return "" if an end is missing."""
    if not bounds or not (is_number(bounds.get("low")) and is_number(bounds.get("high"))):
        return ""
    return f"[{number(bounds['low'], digits)}, {number(bounds['high'], digits)}]"


def percent(share: Any) -> str:
    """Format a share as a whole percentage: `0.934` becomes `93%`."""
    return f"{100 * share:.0f}%" if is_number(share) else MISSING


def table_of(title: str, intro: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Build a terminal table: names in the first column, long text in the last, numbers between."""
    table = Table(title=title, caption=intro, caption_style="dim")
    last = len(head) - 1
    for place, name in enumerate(head):
        side = "right" if 0 < place < last else "left"
        table.add_column(name, justify=side, no_wrap=place < last)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
