"""What a model collapsed into, and how much of it each method undoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anchored.escape import escape, shorten
from anchored.formatting import percent
from anchored.report.collapse_table import columns, explanations, label, order
from anchored.report.drawing import style_of
from anchored.report.page import Row, definitions, folded, scrolling, table
from anchored.report.plots import top_shares
from anchored.report.score_table import METRICS
from anchored.report.tables import COLUMNS, Results, cell, model_label

_FAVOURITES = 4
_TERMS = {**METRICS, **COLUMNS}


def undone(results: Results) -> str:
    """The methods that are held against SFT, the best `gap_closed` first, below base and SFT.

    One with `short_of` is marked and stands last, without a rank: it kept its range by not
    learning. Empty where nothing is held against SFT.
    """
    ranked = order(results)
    if not ranked:
        return ""
    shown = columns(results)
    rows = [_undone_row(results, name, shown) for name in ranked]
    notes = explanations(results, model_label)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    terms = definitions((name, _TERMS[name]) for name in shown if name in _TERMS)
    body = table("Collapse undone", ("", *shown), rows)
    return body + said + folded("What the columns mean", terms)


def _undone_row(results: Results, name: str, shown: Sequence[str]) -> Row:
    cells = [cell(results, name, column) for column in shown]
    return Row(label(results, name, model_label), cells, style_of(name, results["models"]).colour)


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
