"""What a model collapsed into, and how much of it each method undoes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anchored.report.drawing import style_of
from anchored.report.escape import escape, shorten
from anchored.report.page import Row, scrolling
from anchored.report.plots import top_shares
from anchored.report.tables import (
    MISSING,
    Cell,
    Results,
    cell,
    is_number,
    model_label,
    number,
    percent,
)

_FAVOURITES = 4
_BESIDE = ("adoption", "adoption_far", "quality", "utility_k", "perplexity")


def collapse_rows(results: Results) -> tuple[list[str], list[Row]]:
    """Columns and rows of the methods that are held against SFT, the best `gap_closed` first.

    A method with `short_of` has no rank and comes last: what it keeps it has not paid for.
    """
    compared = {
        name: found
        for name, found in results["comparisons"].items()
        if found.get("gap_closed") and name in results["models"]
    }
    models = results["models"]
    beside = [c for c in _BESIDE if any(is_number(models[name].get(c)) for name in compared)]
    columns = ["gap_closed", "collapse_reduction", *beside]
    order = sorted(compared, key=lambda name: _rank_key(compared[name]))
    rows = []
    for rank, name in enumerate(order, 1):
        short = _short_of(compared[name])
        cells = [Cell(MISSING if short else str(rank))]
        cells += [cell(results, name, column) for column in columns]
        colour = style_of(name, models).colour
        rows.append(Row(model_label(name), [*cells, Cell(short)], colour))
    return columns, rows


def _rank_key(found: Mapping[str, Any]) -> tuple[bool, float]:
    gap = found["gap_closed"].get("mean")
    return bool(found.get("short_of")), -gap if is_number(gap) else math.inf


def _short_of(found: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{one['metric']} by {number(one['by'])} (margin {number(one['margin'])})"
        for one in found.get("short_of") or []
    )


def collapsed_into(results: Results, before: str, after: str) -> str:
    """A table of the most frequent values of `after`, and how often `before` has them.

    Empty where one of the two is missing or has no `by_key`.
    """
    models = results["models"]
    keys = models.get(after, {}).get("by_key") or {}
    if not keys or not models.get(before, {}).get("by_key"):
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(shorten(key, 40))}</th>'
        f"<td>{_favourites(models[before], models[after], key)}</td></tr>"
        for key in keys
    )
    label = f"Most frequent values of {model_label(after)} and their share in {model_label(before)}"
    return scrolling(label, f'<table class="left"><tbody>{rows}</tbody></table>')


def _favourites(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    return " ".join(
        f'<span class="value">{escape(shorten(value, 60))} {percent(share)} '
        f"<small>({base_share(before, key, value)})</small></span>"
        for value, share in top_shares(after, key)[:_FAVOURITES]
    )


def base_share(base: Mapping[str, Any], key: str, value: str) -> str:
    """How often the base writes `value`: its share, or a bound where `top` does not list it."""
    shares = top_shares(base, key)
    known = dict(shares)
    if value in known:
        return percent(known[value])
    rest = 1 - sum(known.values())
    bound = min([rest, *(share for _, share in shares[-1:])])
    return "never" if bound * (base.get("n") or 1) < 0.5 else f"at most {percent(bound)}"
