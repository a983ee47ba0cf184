"""`report.html`: one file that reads everywhere, with no script and nothing to load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from anchored.files import atomic_write
from anchored.report.escape import cut, escape, shorten
from anchored.report.plots import (
    entropy_plot,
    frontier_plot,
    scatter_plot,
    style_of,
    top_shares,
    top_values_plot,
)
from anchored.report.tables import (
    COLUMNS,
    Results,
    caption,
    cell,
    columns,
    finding,
    is_number,
    model_label,
    percent,
    sample_sizes,
)

MAX_BYTES = 3_000_000
SAMPLES_SHOWN = 12
_WIDE, _NARROW = 1024, 344
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(results: Results, path: Path) -> None:
    """Write the self-contained report of a `results.json` dict to `path`.

    At most `SAMPLES_SHOWN` samples a model are shown, fewer where the page would pass `MAX_BYTES`.

    Raises:
        OSError: `path` cannot be written.
    """
    page = ""
    for shown in (SAMPLES_SHOWN, 4, 1, 0):
        page = render_report(results, shown)
        if len(page.encode()) < MAX_BYTES:
            break
    atomic_write(path, page)


def render_report(results: Results, samples_shown: int = SAMPLES_SHOWN) -> str:
    """The page as text, with so many samples a model."""
    sections = [
        _comparison(results),
        _diversity(results),
        _collapsed(results),
        _samples(results, samples_shown),
        _making(results),
    ]
    return page("Diversity after post-training", _header(results) + "".join(sections))


def page(title: str, body: str) -> str:
    """A whole HTML document in the report's style; `title` is plain text, `body` markup."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>Written by anchored.</footer>\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(results: Results) -> str:
    return (
        '<header><p class="overline">anchored · report</p>'
        "<h1>Diversity after post-training</h1>"
        f'<p class="lede">{escape(finding(results))}</p>'
        f'<p class="meta">{escape(_meta(results))}</p></header>'
    )


def _meta(results: Results) -> str:
    parts = [f"{len(results['models'])} models"]
    parts += [f"{size} samples each" for size in sample_sizes(results)[:1]]
    if seeds := results.get("seeds"):
        parts.append("1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
    if is_number(results.get("seconds")):
        parts.append(f"made in {duration(results['seconds'])}")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """`412.3` as `6 min 52 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _section(title: str, intro: str, body: str) -> str:
    if not body:
        return ""
    return f'<section><h2>{escape(title)}</h2><p class="intro">{escape(intro)}</p>{body}</section>'


def _comparison(results: Results) -> str:
    shown = columns(results)
    head = "".join(f'<th scope="col">{column.replace("_", " ")}</th>' for column in shown)
    rows = "".join(_comparison_row(results, model) for model in results["models"])
    terms = "".join(f"<dt>{name}</dt><dd>{escape(COLUMNS[name])}</dd>" for name in shown)
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Comparison of the models">'
        f'<table class="comparison"><thead><tr><th scope="col">model</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f"<details><summary>What the columns mean</summary><dl>{terms}</dl></details>"
    )
    return _section("Comparison", caption(results), table)


def _comparison_row(results: Results, model: str) -> str:
    cells = []
    for column in columns(results):
        found = cell(results, model, column)
        bounds = f"<small>{found.interval}</small>" if found.interval else ""
        cells.append(f"<td>{found.value}{bounds}</td>")
    paint = _paint(model, results)
    return f'<tr {paint}><th scope="row">{escape(model_label(model))}</th>{"".join(cells)}</tr>'


def _paint(model: str, results: Results) -> str:
    return f'style="--c:{style_of(model, results["models"]).colour}"'


def _diversity(results: Results) -> str:
    figures = [
        _figure(
            "Diversity against adoption",
            scatter_plot,
            results,
            "Up is diverse, right has learnt what SFT taught. A model that learnt nothing sits at "
            "the base, upper left: diversity counts only together with adoption. "
            "Bars are 95% intervals; faint marks are seeds.",
        ),
        _figure(
            "Gap closed against adoption far from SFT",
            frontier_plot,
            results,
            "The taught form where the semantics are not SFT's own, against the diversity kept: "
            "what a method gives up of one for the other. Bars are 95% intervals.",
        ),
        _figure(
            "Entropy of each attribute",
            entropy_plot,
            results,
            "Entropy of each attribute's values over the sampled texts, in nats.",
        ),
        _figure(
            "Most frequent values",
            top_values_plot,
            results,
            "Each block is one value, as wide as its share of the samples; grey is the rest.",
        ),
    ]
    intro = "The same numbers as pictures: who learnt, who kept the range, and where the mass went."
    return _section("Diversity", intro, "".join(figures))


def _figure(title: str, plot: Callable[[Results, int], str], results: Results, text: str) -> str:
    wide, narrow = plot(results, _WIDE), plot(results, _NARROW)
    if not wide:
        return ""
    return (
        f'<figure><h3>{title}</h3><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _collapsed(results: Results) -> str:
    models = results["models"]
    keys = models.get("standard", {}).get("by_key") or {}
    if not keys or not models.get("base", {}).get("by_key"):
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(shorten(key, 40))}</th>'
        f"<td>{_collapsed_values(models, key)}</td></tr>"
        for key in keys
    )
    table = f'<table class="left"><tbody>{rows}</tbody></table>'
    intro = "Standard SFT's most frequent values; in brackets, how often the base writes them."
    return _section("What SFT collapsed into", intro, table)


def _collapsed_values(models: Mapping[str, Any], key: str) -> str:
    top = top_shares(models["standard"], key)[:4]
    return " ".join(
        f'<span class="value">{escape(shorten(value, 60))} {percent(share)} '
        f"<small>({base_share(models['base'], key, value)})</small></span>"
        for value, share in top
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


def _samples(results: Results, shown: int) -> str:
    lists = {name: metrics.get("samples") or [] for name, metrics in results["models"].items()}
    lists = {name: samples for name, samples in lists.items() if samples}
    if not lists or not shown:
        return ""
    shortest = min(map(len, lists.values()))
    places = spread(shortest, shown)
    body = "".join(
        _sample(results, number, {name: samples[place] for name, samples in lists.items()})
        for number, place in enumerate(places, 1)
    )
    intro = (
        f"{len(places)} of {shortest} a model, evenly spaced, not picked. "
        "Filled tags are the annotation the model wrote before its answer; "
        "dotted ones were read off the text afterwards."
    )
    return _section("Samples side by side", intro, body)


def spread(length: int, wanted: int) -> list[int]:
    """At most `wanted` indices below `length`, evenly spaced, the first included."""
    count = min(length, wanted)
    return [place * length // count for place in range(count)]


def _sample(results: Results, number: int, samples: Mapping[str, Mapping[str, Any]]) -> str:
    prompts = {str(sample.get("prompt") or "(no prompt)") for sample in samples.values()}
    title = escape(shorten(next(iter(prompts)), 160)) if len(prompts) == 1 else "different prompts"
    cards = "".join(
        _card(results, name, sample, show_prompt=len(prompts) > 1)
        for name, sample in samples.items()
    )
    state = " open" if number <= 2 else ""
    return (
        f'<details class="sample"{state}><summary><b>{number}</b>{title}</summary>'
        f'<div class="cards">{cards}</div></details>'
    )


def _card(results: Results, model: str, sample: Mapping[str, Any], show_prompt: bool) -> str:
    asked = (
        f'<p class="asked" dir="auto">{_prose(sample.get("prompt"), 400)}</p>'
        if show_prompt
        else ""
    )
    return (
        f'<article class="card" {_paint(model, results)}><h3>{escape(model_label(model))}</h3>'
        f'<p class="flags">{_flags(sample)}</p>{asked}{_tags(sample)}'
        f'<p class="told" dir="auto">{_prose(sample.get("response"))}</p></article>'
    )


def _prose(text: Any, chars: int = 4_000) -> str:
    return escape(cut(str(text or ""), chars=chars))


def _flags(sample: Mapping[str, Any]) -> str:
    said = []
    for name, good, bad in (
        ("adopted", "taught form", "not the taught form"),
        ("far", "far from SFT's semantics", ""),
        ("well_formed", "", "malformed"),
        ("consistent", "", "inconsistent"),
    ):
        value = sample.get(name)
        if value is True and good:
            said.append(good)
        elif value is False and bad:
            said.append(bad if name == "adopted" else f'<span class="bad">{bad}</span>')
    return " · ".join(said)


def _tags(sample: Mapping[str, Any]) -> str:
    """The annotation as chips; for a model that wrote none, what was read off its text."""
    written, kind, label = sample.get("annotation"), "tags", "Annotation"
    if written is None:
        attributes = sample.get("attributes") or {}
        written = "\n".join(f"{key}: {value}" for key, value in attributes.items())
        kind, label = "tags read", "Read off the text"
    items = "".join(map(_chip, written.split("\n")[:40])) if written else ""
    if not items:
        return ""
    return f'<ul class="{kind}" aria-label="{label}" title="{label}">{items}</ul>'


def _chip(line: str) -> str:
    key, separator, value = line.partition(": ")
    if not separator:
        key, value = "", line
    return f"<li><i>{escape(shorten(key, 32))}</i> {escape(shorten(value, 80))}</li> "


def _making(results: Results) -> str:
    versions = results.get("versions") or {}
    facts = {
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "N": " / ".join(map(str, sample_sizes(results))),
        "time": duration(results["seconds"]) if is_number(results.get("seconds")) else "",
        "intervals": "95%, bootstrap over seeds, prompts and samples",
        "entropy": "plug-in, natural logarithm; Miller-Madow in results.json",
        **{f"{name} version": version for name, version in versions.items()},
    }
    config = yaml.safe_dump(results.get("config") or {}, sort_keys=False, allow_unicode=True)
    body = (
        definitions((name, value) for name, value in facts.items() if value)
        + f"<details><summary>Configuration</summary><pre>{_prose(config, 60_000)}</pre></details>"
    )
    intro = "What it takes to make these numbers again; results.json has them in full."
    return _section("How each number was made", intro, body)


def definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    """A definition list of plain-text names and values."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<dl>{''.join(rows)}</dl>"
