"""The comparison table of `results.json`, for documents, terminals and the HTML page.

A model can reach a high `gap_closed` by not learning (the base has 1), so it is shown only together
with `adoption`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from anchored.escape import shorten
from anchored.formatting import MISSING, interval, is_number, number, percent

Results = Mapping[str, Any]
NAME_CHARS = 40

MODEL_LABELS = {
    "base": "Base",
    "annotated_base": "Annotated base",
    "standard": "Standard SFT",
    "anchored": "Anchored SFT",
    "anchored_replay": "Anchored + replay",
    "tagged": "Tagged SFT",
}

# The columns of the comparison, from left to right.
COLUMNS = (
    "semantic_entropy",
    "gap_closed",
    "collapse_reduction",
    "adoption",
    "adoption_far",
    "adherence",
    "adherence_by_chance",
    "well_formed",
    "consistent",
    "answer_accuracy",
    "perplexity",
    "dissimilarity",
)
_COMPARED = frozenset({"gap_closed", "collapse_reduction"})


def columns(results: Results) -> list[str]:
    """Return those of `COLUMNS` that are known for any model."""
    return [
        column
        for column in COLUMNS
        if column in _COMPARED
        or any(is_number(metrics.get(column)) for metrics in results["models"].values())
    ]


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table and its 95% interval, as text (empty without an interval).

    `exact` is the number in `results.json`; None if there is none.
    """

    value: str = MISSING
    interval: str = ""
    exact: float | None = None

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


def model_label(name: str) -> str:
    """Return what readers see for a model's name: words for the demo's names, others unchanged."""
    return MODEL_LABELS.get(name, shorten(name, NAME_CHARS))


def figure(value: Any, bounds: Mapping[str, Any] | None = None, digits: int = 2) -> Cell:
    """Return the cell of a number and its interval, if any, with `digits` decimals."""
    exact = value if is_number(value) else None
    return Cell(number(value, digits), interval(bounds, digits), exact)


def cell(results: Results, model: str, column: str) -> Cell:
    """Return the cell of `model` under `column`.

    A compared number (`gap_closed`, `collapse_reduction`) is withheld if adoption is not known.
    """
    metrics = results["models"][model]
    if column not in _COMPARED:
        bounds = (metrics.get("intervals") or {}).get(column)
        return figure(metrics.get(column), bounds)
    found = (results.get("comparisons", {}).get(model) or {}).get(column)
    if not found or not is_number(metrics.get("adoption")):
        return Cell()
    return figure(found.get("mean"), found) if column == "gap_closed" else _reduction(found)


def _reduction(found: Mapping[str, Any]) -> Cell:
    if found.get("lower_bound"):
        low = found.get("low")
        return Cell(f"≥ {number(low, 1)}×", exact=low) if is_number(low) else Cell()
    if not is_number(found.get("mean")):
        return Cell()
    return Cell(f"{number(found['mean'], 1)}×", interval(found, 1), found["mean"])


def markdown_table(results: Results) -> str:
    """Return the comparison in Markdown, one row per model.

    Intervals are shown for the entropy and the compared numbers.
    """
    shown = columns(results)
    head = ["model", *shown]
    rows = [
        [model_label(model), *(_markdown_cell(results, model, column) for column in shown)]
        for model in results["models"]
    ]
    rule = ["---", *("---:" for _ in shown)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
    return f"{lines}\n\n{caption(results)}\n"


def _markdown_cell(results: Results, model: str, column: str) -> str:
    found = cell(results, model, column)
    return str(found) if column in {"semantic_entropy", *_COMPARED} else found.value


def rich_table(results: Results) -> Table:
    """Return the comparison for a terminal, one column per model, to fit into 80 characters."""
    table = Table(
        caption=caption(results),
        caption_style="dim",
        header_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for model in results["models"]:
        table.add_column(model_label(model), justify="right")
    for column in columns(results):
        cells = (cell(results, model, column) for model in results["models"])
        table.add_row(column, *map(_rich_cell, cells))
    return table


def _rich_cell(found: Cell) -> Text:
    text = Text(found.value, style="dim" if found.value == MISSING else "", overflow="fold")
    bounds = found.interval.strip("[]").replace(", ", "–")
    return text.append(f"\n{bounds}", style="dim") if bounds else text


def sample_sizes(results: Results) -> list[int]:
    """Return the distinct N of the models, ascending."""
    return sorted({metrics["n"] for metrics in results["models"].values() if metrics.get("n")})


def caption(results: Results) -> str:
    """Return N, seeds, and what the brackets are; with a warning if N differs between models."""
    sizes = sample_sizes(results)
    parts = [f"N = {' / '.join(map(str, sizes))} samples a model"] if sizes else []
    if seeds := results.get("seeds"):
        parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    parts.append("intervals: 95% bootstrap")
    text = "; ".join(parts) + "."
    if len(sizes) > 1:
        text += " N differs between models: their entropies are not comparable."
    return text


def finding(results: Results) -> str:
    """Summarise in one sentence what SFT did to diversity, what anchoring kept, what it learnt."""
    models = results["models"]
    before, after = (_entropy(models, name) for name in ("base", "standard"))
    if before is None or after is None:
        return (
            "These results hold no base and standard pair, so there is no collapse to compare with."
        )
    moved = f"from {number(before)} to {number(after)} nats"
    if after >= before:
        return f"Standard SFT did not narrow the model here: semantic entropy went {moved}."
    opening = f"Standard SFT cut semantic entropy {moved}"
    treated = [
        name for name in ("anchored", "anchored_replay") if _entropy(models, name) is not None
    ]
    if not treated:
        return f"{opening}."
    return f"{opening}; {_kept(results, treated[0])}{_also(results, treated[1:])}."


def _entropy(models: Mapping[str, Any], name: str) -> float | None:
    value = models.get(name, {}).get("semantic_entropy")
    return value if is_number(value) else None


def _kept(results: Results, model: str) -> str:
    metrics, standard = results["models"][model], results["models"]["standard"]
    held = f"{_in_prose(model)} ended at {number(metrics['semantic_entropy'])}"
    gap = _gap_mean(results, model)
    if gap is None:
        return f"{held} (no gap is stated: adoption or the comparison is missing)"
    held += f", closing {percent(gap)} of the gap"
    if not is_number(standard.get("adoption")):
        return held
    learnt, taught = metrics["adoption"], standard["adoption"]
    joint = "with" if learnt >= taught - 0.05 else "but with only"
    shares = f"{percent(learnt)} of its answers in the taught form against {percent(taught)}"
    return f"{held}, {joint} {shares}"


def _also(results: Results, models: list[str]) -> str:
    parts = []
    for model in models:
        if (gap := _gap_mean(results, model)) is not None:
            adoption = percent(results["models"][model]["adoption"])
            parts.append(f" ({_in_prose(model)}: {percent(gap)} of the gap, {adoption} adoption)")
    return "".join(parts)


def _gap_mean(results: Results, model: str) -> float | None:
    if cell(results, model, "gap_closed").value == MISSING:
        return None
    return results["comparisons"][model]["gap_closed"]["mean"]


def _in_prose(model: str) -> str:
    label = model_label(model)
    return label[0].lower() + label[1:]
