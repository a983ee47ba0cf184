"""Show what a model collapsed into, and how much of the collapse each method undoes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchored.formatting import percent
from anchored.metrics.table import says
from anchored.report.collapse_table import columns, explanations, label, order
from anchored.report.drawing import style_of
from anchored.report.page import Row, Table
from anchored.report.plots import top_shares
from anchored.report.tables import Results, cell, model_label

_FAVOURITES = 4


def undone(results: Results) -> dict[str, Any] | None:
    """Return base, SFT, and the methods compared with SFT, sorted by `gap_closed`.

    A method with `short_of` is marked and comes last, without a rank: it kept its range by not
    learning. The result is None if no method is compared with SFT.
    """
    ranked = order(results)
    if not ranked:
        return None
    shown = columns(results)
    rows = [
        Row(
            label(results, name, model_label),
            [cell(results, name, column) for column in shown],
            style_of(name, results["models"]).colour,
        )
        for name in ranked
    ]
    return {
        "table": Table("Collapse undone", ("", *shown), rows),
        "notes": list(explanations(results, model_label)),
        "terms": [(name, said) for name in shown if (said := says(name))],
    }


def collapsed_into(results: Results, before: str, after: str) -> dict[str, Any] | None:
    """Return the most frequent values of `after` by attribute, with their share in both models.

    The result is None if one of the two is missing or has no `by_key`.
    """
    models = results["models"]
    keys = models.get(after, {}).get("by_key") or {}
    if not keys or not models.get(before, {}).get("by_key"):
        return None
    rows = [
        (
            key,
            [
                (value, share, base_share(models[before], key, value))
                for value, share in top_shares(models[after], key)[:_FAVOURITES]
            ],
        )
        for key in keys
    ]
    label = f"Most frequent values of {model_label(after)} and their share in {model_label(before)}"
    return {"label": label, "rows": rows}


def base_share(base: Mapping[str, Any], key: str, value: str) -> str:
    """Return how often the base writes `value`: its share, or a bound if `top` does not list it."""
    shares = top_shares(base, key)
    known = dict(shares)
    if value in known:
        return percent(known[value])
    rest = 1 - sum(known.values())
    bound = min([rest, *(share for _, share in shares[-1:])])
    return "never" if bound * (base.get("n") or 1) < 0.5 else f"at most {percent(bound)}"
