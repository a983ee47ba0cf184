"""The page `report.html` of the demo, and of other studies with results of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anchored.data.generations import spread
from anchored.escape import shorten
from anchored.formatting import is_number
from anchored.metrics.table import says
from anchored.report.collapsed import collapsed_into
from anchored.report.drawing import style_of
from anchored.report.page import (
    Row,
    Table,
    configuration,
    drawn,
    duration,
    report,
    write_largest,
)
from anchored.report.plots import (
    entropy_plot,
    frontier_plot,
    scatter_plot,
    top_values_plot,
)
from anchored.report.tables import (
    Results,
    caption,
    cell,
    columns,
    finding,
    model_label,
    sample_sizes,
)

SAMPLES_SHOWN = 12


def write_report(results: Results, path: Path) -> None:
    """Write the self-contained report of a `results.json` dict to `path`.

    At most `SAMPLES_SHOWN` samples per model are shown, fewer if the page would be too large.

    Raises:
        OSError: `path` cannot be written.
    """
    write_largest((render_report(results, n) for n in (SAMPLES_SHOWN, 4, 1, 0)), path)


def render_report(results: Results, samples_shown: int = SAMPLES_SHOWN) -> str:
    """Return the page, with at most `samples_shown` samples per model."""
    lists = {name: model.get("samples") or [] for name, model in results["models"].items()}
    lists = {name: samples for name, samples in lists.items() if samples}
    shortest = min(map(len, lists.values()), default=0)
    places = spread(shortest, samples_shown)
    sections = {
        "comparison": _comparison(results),
        "diversity": drawn(
            {
                "scatter": partial(scatter_plot, results),
                "frontier": partial(frontier_plot, results),
                "entropy": partial(entropy_plot, results),
                "top": partial(top_values_plot, results),
            }
        ),
        "collapsed": collapsed_into(results, "base", "standard"),
        "samples": [
            _sample(results, {name: samples[place] for name, samples in lists.items()})
            for place in places
        ],
        "making": _making(results),
    }
    return report(
        "demo",
        sections,
        lede=finding(results),
        meta=_meta(results),
        caption=caption(results),
        shortest=shortest,
    )


def _meta(results: Results) -> str:
    parts = [f"{len(results['models'])} models"]
    parts += [f"{size} samples each" for size in sample_sizes(results)[:1]]
    if seeds := results.get("seeds"):
        parts.append("1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
    if is_number(results.get("seconds")):
        parts.append(f"made in {duration(results['seconds'])}")
    return " · ".join(parts)


def _comparison(results: Results) -> dict[str, Any]:
    shown = columns(results)
    head = ("model", *(column.replace("_", " ") for column in shown))
    rows = [
        Row(
            model_label(model),
            [cell(results, model, column) for column in shown],
            style_of(model, results["models"]).colour,
        )
        for model in results["models"]
    ]
    return {
        "table": Table("Comparison of the models", head, rows),
        "terms": [(name, says(name) or "") for name in shown],
    }


def _sample(results: Results, samples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    prompts = {str(sample.get("prompt") or "(no prompt)") for sample in samples.values()}
    is_shared = len(prompts) == 1
    return {
        "title": shorten(next(iter(prompts)), 160) if is_shared else "different prompts",
        "cards": [
            _card(results, name, sample, None if is_shared else sample.get("prompt") or "")
            for name, sample in samples.items()
        ],
    }


def _card(
    results: Results, model: str, sample: Mapping[str, Any], prompt: str | None
) -> dict[str, Any]:
    """Return the template's data for one sample; `prompt` is None if the title shows it."""
    tags, read = _tags(sample)
    return {
        "colour": style_of(model, results["models"]).colour,
        "label": model_label(model),
        "flags": _flags(sample),
        "prompt": prompt,
        "tags": tags,
        "read": read,
        "response": sample.get("response"),
    }


def _flags(sample: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the remarks on a sample, each with whether it is a fault."""
    said = []
    for name, good, bad in (
        ("adopted", "taught form", "not the taught form"),
        ("far", "far from SFT's semantics", ""),
        ("well_formed", "", "malformed"),
        ("consistent", "", "inconsistent"),
    ):
        value = sample.get(name)
        if value is True and good:
            said.append((good, False))
        elif value is False and bad:
            said.append((bad, name != "adopted"))
    return said


def _tags(sample: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the annotation's lines and False, or the attributes read from the text and True."""
    written = sample.get("annotation")
    if written is not None:
        return written.split("\n") if written else [], False
    attributes = sample.get("attributes") or {}
    return [f"{key}: {value}" for key, value in attributes.items()], True


def _making(results: Results) -> dict[str, Any]:
    versions = results.get("versions") or {}
    facts = {
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "N": " / ".join(map(str, sample_sizes(results))),
        "time": duration(results["seconds"]) if is_number(results.get("seconds")) else "",
        "intervals": "95%, bootstrap over seeds, prompts and samples",
        "entropy": "plug-in, natural logarithm; Miller-Madow in results.json",
        **{f"{name} version": version for name, version in versions.items()},
    }
    shown = [(name, value) for name, value in facts.items() if value]
    return {"facts": shown, "config": configuration(results)}
