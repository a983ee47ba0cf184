"""What a model collapsed into, and how much of it each method undoes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anchored.report.drawing import style_of
from anchored.report.escape import escape, shorten
from anchored.report.page import Row, definitions, folded, scrolling, table
from anchored.report.plots import top_shares
from anchored.report.score_table import METRICS
from anchored.report.tables import (
    COLUMNS,
    Results,
    cell,
    is_number,
    model_label,
    number,
    percent,
)

_FAVOURITES = 4
_BESIDE = ("adoption", "adoption_far", "quality", "utility_k", "perplexity", "frontier_area")
_MARK = "†"
_TERMS = {**METRICS, **COLUMNS}


def undone(results: Results) -> str:
    """The methods that are held against SFT, the best `gap_closed` first, below base and SFT.

    One with `short_of` is marked and stands last, without a rank: it kept its range by not
    learning. Empty where nothing is held against SFT.
    """
    order = _ranked(results)
    if not order:
        return ""
    models = results["models"]
    head = [*results.get("benchmark", {}).get("metrics", ()), "gap_closed", "collapse_reduction"]
    columns = [
        name
        for name in (*head, *_BESIDE)
        if name in head[-2:] or any(is_number(model.get(name)) for model in models.values())
    ]
    rows = [_undone_row(results, name, columns) for name in order]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(results))
    terms = definitions((name, _TERMS[name]) for name in columns if name in _TERMS)
    shown = table("Collapse undone", ("", *columns), rows)
    return shown + notes + folded("What the columns mean", terms)


def _ranked(results: Results) -> list[str]:
    found = results["comparisons"]
    treatments = [name for name in found if found[name].get("gap_closed")]
    others = [name for name in results["models"] if name not in treatments]
    treatments.sort(key=lambda name: _rank(found[name]))
    return [*others, *treatments] if treatments else []


def _rank(found: Mapping[str, Any]) -> tuple[bool, float]:
    gap = found["gap_closed"].get("mean")
    return bool(found.get("short_of")), -gap if is_number(gap) else math.inf


def _undone_row(results: Results, name: str, columns: Sequence[str]) -> Row:
    marked = results["comparisons"].get(name, {}).get("short_of")
    heading = model_label(name) + (f" {_MARK}" if marked else "")
    cells = [cell(results, name, column) for column in columns]
    return Row(heading, cells, style_of(name, results["models"]).colour)


def _notes(results: Results) -> Iterator[str]:
    """What the comparison is by, what each mark stands for, and why a gap is missing."""
    compared = results["comparisons"].values()
    for metric in sorted({found["metric"] for found in compared if "metric" in found}):
        yield f"gap_closed and collapse_reduction by {metric}."
    for name, found in results["comparisons"].items():
        for short in found.get("short_of") or ():
            yield (
                f"{_MARK} {model_label(name)} is not ranked: {short['metric']} "
                f"{number(short['value'])}, SFT {number(short['sft'])}, margin "
                f"{number(short['margin'])}."
            )
        if reason := (found.get("gap_closed") or {}).get("reason"):
            yield f"{model_label(name)}: {reason}."


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
