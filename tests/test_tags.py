"""Are the tags any good: each figure on data whose answer is known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.linear_model import RidgeCV
from sklearn.metrics import cohen_kappa_score, mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anchored.annotation import Annotation
from anchored.cli import main
from anchored.data.canonical import CanonicalMap
from anchored.data.prepare import PrepareConfig, prepare
from anchored.data.rows import canonical_row
from anchored.errors import ConfigError, DataError
from anchored.inspection.inspect import view_of
from anchored.models.embedders import StaticEmbedder
from anchored.tags.agreement import agreement, cohens_kappa
from anchored.tags.informativeness import explained, informativeness, row_folds, tag_features
from anchored.tags.observations import Part, Sample, parts_of, prompted
from anchored.tags.prompts import adjusted_information, mutual_information, prompt_shares
from anchored.tags.quality import TagsConfig, measure
from anchored.tags.variants import canonical_map, one_edit, spelling, variant_groups

QUIET = Console(quiet=True)
PLAN = Annotation.of({"place": "mill"})


def parts(row: dict[str, Any]) -> list[tuple[str, str, Annotation | None]]:
    found = parts_of(canonical_row(row, "here"))
    return [(part.prompt, part.text, part.annotation) for part in found]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TURNS = [
    {"role": "user", "content": "One."},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two."},
    {"role": "assistant", "content": "Second.", "annotation": PLAN.rows()},
]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "A."}, [("", "A.", None)]),
        ({"text": "A.", "annotation": PLAN.rows()}, [("", "A.", PLAN)]),
        (
            {"chunks": [{"text": "A.", "annotation": []}, {"text": "B."}]},
            [("", "A.", Annotation()), ("", "B.", None)],
        ),
        ({"prompt": "P.", "response": "A."}, [("P.", "A.", None)]),
        ({"messages": TURNS}, [("One.", "First.", None), ("Two.", "Second.", PLAN)]),
    ],
)
def test_each_text_with_an_annotation_of_its_own_is_a_part(row, expected):
    assert parts(row) == expected


def test_the_prompted_text_is_the_last_answer_or_the_whole_document():
    def of(row: dict[str, Any]) -> Part | None:
        return prompted(canonical_row(row, "here"))

    assert of({"messages": TURNS}) == Part("here", "Two.", "Second.", PLAN)
    chunks = [{"text": "A.", "annotation": PLAN.rows()}, {"text": "B."}]
    assert of({"prompt": "P.", "chunks": chunks}) == Part("here", "P.", "A.\n\nB.", PLAN)
    assert of({"chunks": chunks}) is None
    assert of({"prompt": "P.", "text": "A."}) == Part("here", "P.", "A.", None)
    assert of({"prompt": "P.", "response": "A."}) == Part("here", "P.", "A.", None)


def test_two_corpora_in_different_order_are_sampled_at_the_same_texts():
    texts = [f"text {n}" for n in range(1000)]
    samples = []
    for order in (texts, texts[::-1] + ["text 5"] * 9 + ["another"] * 3):
        sample = Sample[str](50, seed=1)
        for text in order:
            sample.add(text, "", text)
        samples.append(sample.items())
    assert len(samples[0]) == len(set(samples[1])) == 50
    assert len(set(samples[0]) & set(samples[1])) >= 49  # "another" may be among them
    other = Sample[str](50, seed=2)
    for text in texts:
        other.add(text, "", text)
    assert set(other.items()) != set(samples[0])


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("forest", "forest", True),
        ("forest", "forrest", True),
        ("forest", "foest", True),
        ("forest", "forist", True),
        ("forest", "froest", True),
        ("forest", "forests", True),
        ("forest", "fosert", False),
        ("forest", "fores", True),
        ("forest", "frest s", False),
        ("", "ab", False),
    ],
)
def test_one_edit_is_one_letter_or_one_swap(first, second, near):
    assert one_edit(first, second) is near
    assert one_edit(second, first) is near


@pytest.mark.parametrize(
    ("value", "left"),
    [("The Café", "cafe"), ("old-growth_woods!", "old growth wood"),
     ("Lucas", "lucas"), ("bus", "bus"),
     ("stories", "story"), ("glass", "glass"), ("The", "the"), ("!?", "!?")],
)  # fmt: skip
def test_a_spelling_leaves_out_what_tells_nothing_apart(value, left):
    assert spelling(value) == left


def test_variants_join_the_most_frequent_value_and_say_why():
    counts = {
        "forest": 50, "forests": 4, "The Forest": 2, "forrest": 3, "marry": 30, "carry": 5,
        "Mr. Hill": 30, "Mrs. Hill": 5, "1890s": 60, "1990s": 9, "family relationships": 20,
        "family relations": 12, "Marta": 8, "Marla": 7,
    }  # fmt: skip
    found = [(g.canonical, [(v.value, v.why) for v in g.variants]) for g in variant_groups(counts)]
    assert found == [
        ("family relationships", [("family relations", "meaning")]),
        ("forest", [("forests", "spelling"), ("forrest", "slip"), ("The Forest", "spelling")]),
    ]
    assert len(variant_groups(counts, near_meaning=2)) == 1


def test_a_canonical_map_round_trips_and_maps_each_annotation(tmp_path: Path):
    groups = {"place": variant_groups({"forest": 50, "Forests": 4, "forrest": 3}), "time": ()}
    canonical_map(groups).save(tmp_path / "map.yaml")
    found = CanonicalMap.load(tmp_path / "map.yaml")
    assert found.keys == {"place": {"forest": ("Forests", "forrest")}}
    pairs = [("place", "Forests"), ("time", "Forests"), ("place", "forest"), ("place", "sea")]
    expected = [("place", "forest"), ("time", "Forests"), ("place", "sea")]
    assert found.apply(Annotation.of(pairs)) == Annotation.of(expected)
    assert found.apply(PLAN) is PLAN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: {a: {x: [y], z: [y]}}", "a: 'y' is listed under 'x' and 'z'"),
        ("keys: {a: {x: [y], y: [z]}}", "a: 'y' is both a variant and a value to keep"),
        ("keys: {a: {x: [1984]}}", "keys.a.x.0: 1984: input should be a valid string"),
        ("keys: {}\nkey: {}", "key: unknown field; did you mean 'keys'"),
    ],
)
def test_a_canonical_map_that_goes_two_ways_is_refused(tmp_path: Path, text, message):
    (tmp_path / "map.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        CanonicalMap.load(tmp_path / "map.yaml")


def test_prepare_writes_canonical_values_and_says_by_which_file(tmp_path: Path):
    text = "At the mill the wheel turned. " * 20
    rows: list[dict[str, Any]] = [
        {"text": text, "annotation": [{"key": "place", "value": "the Mill"}], "prompt": "Where?"},
        {"chunks": [{"text": text, "annotation": [{"key": "place", "value": "the Mill"}]}]},
        {"prompt": "Where?", "response": text, "annotation": [{"key": "place", "value": "mill"}]},
    ]
    CanonicalMap(keys={"place": {"mill": ("the Mill",)}}).save(tmp_path / "map.yaml")
    source = {"path": str(write(tmp_path / "rows.jsonl", rows))}
    fields = {"sources": [source], "tokenizer": {"vocab_size": 300}, "prompted_share": 1}
    for name, given in (("data", tmp_path / "map.yaml"), ("plain", None)):
        changed = {**fields, "out": tmp_path / name, "canonical": given}
        prepare(PrepareConfig.model_validate(changed), QUIET)
    documents = [document for row in view_of(tmp_path / "data").data["rows"] for document in row]
    values = [[s["text"] for s in spans if s["kind"] == "tag_value"] for spans in documents]
    assert values == [[" mill"]] * 3
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_bytes())
    assert len(manifest["canonical"]) == 64
    assert json.loads((tmp_path / "plain" / "manifest.json").read_bytes())["canonical"] is None


def test_kappa_is_that_of_the_textbook():
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("y", "y")] * 3) is None


def test_kappa_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 7, 300)
    second = np.where(rng.random(300) < 0.6, first, rng.integers(0, 9, 300))
    pairs = [*zip(first.tolist(), second.tolist(), strict=True)]
    assert cohens_kappa(pairs) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_agreement_is_over_the_texts_where_either_has_the_key():
    pairs = [
        (Annotation.of({"who": ["Mara", "Tom"], "mood": "sad"}), Annotation.of({"who": "mara"})),
        (
            Annotation.of({"who": "Tom", "mood": "sad"}),
            Annotation.of({"who": "Tom", "mood": "sad"}),
        ),
        (Annotation(), Annotation()),
        (Annotation(), Annotation.of({"mood": "glad"})),
    ]
    found = agreement(pairs)
    assert (found["who"].pairs, found["who"].exact, found["who"].jaccard) == (2, 0.5, 0.75)
    assert (found["who"].coverage, found["who"].kappa) == ((0.5, 0.5), None)
    assert (found["mood"].pairs, found["mood"].exact) == (3, pytest.approx(1 / 3))
    # agreed 2 of 4; by chance sad 2 * 1, none 2 * 2 of 16
    assert found["mood"].kappa == pytest.approx((1 / 2 - 6 / 16) / (1 - 6 / 16))


def test_ridge_finds_exactly_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    x, folds = rng.normal(size=(400, 8)), np.arange(400) % 5
    signal, noise = x @ rng.normal(size=(8, 6)), rng.normal(size=(400, 6))
    assert explained(x, signal, folds) > 0.9999
    assert -0.1 < explained(x, noise, folds) < 0  # what is fitted to the texts themselves is above
    scaled = signal / signal.std() + noise / noise.std()
    assert explained(x, scaled, folds) == pytest.approx(0.5, abs=0.05)
    assert explained(np.zeros((400, 1)), signal, folds) == pytest.approx(0, abs=0.05)


def test_ridge_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    x, folds = rng.normal(size=(400, 8)) * 10.0 ** np.arange(-3, 5), np.arange(400) % 2
    y = x / x.std(0) @ rng.normal(size=(8, 6)) + 2 * rng.normal(size=(400, 6)) + 5
    wrong, spread = 0.0, 0.0
    for fold in (0, 1):
        seen, held = folds != fold, folds == fold
        model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(-2, 5)))
        wrong += ((y[held] - model.fit(x[seen], y[seen]).predict(x[held])) ** 2).sum()
        spread += ((y[held] - y[seen].mean(0)) ** 2).sum()
    assert explained(x, y, folds) == pytest.approx(1 - wrong / spread, abs=1e-9)


def test_the_parts_of_one_row_are_never_in_two_folds():
    rows = [f"row {n % 37}" for n in range(500)]
    folds = row_folds(rows, np.random.default_rng(0))
    assert {len({f for r, f in zip(rows, folds, strict=True) if r == row}) for row in rows} == {1}
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]


SCENES = {
    "sea": "The ship rolled on the waves and the sailors hauled the sail in the salt wind.",
    "kitchen": "She stirred the soup, sliced the bread and put the kettle on the stove.",
    "court": "The judge read the verdict while the lawyer and the jury sat in silence.",
}


def scene_parts(count: int, rng: random.Random, honest: bool = True) -> list[Part]:
    found = []
    for n in range(count):
        place = rng.choice([*SCENES])
        tag = place if honest else rng.choice([*SCENES])
        text = f"{SCENES[place]} {rng.choice(['Then', 'Later', 'At last'])} it was day {n}."
        found.append(Part(f"row {n}", "", text, Annotation.of({"place": tag, "kind": "tale"})))
    return found


def test_tags_that_say_what_a_text_is_about_explain_it_and_dealt_out_ones_do_not():
    embedder, rng = StaticEmbedder(), random.Random(0)
    told = informativeness(scene_parts(200, rng), embedder)
    assert told.r2 > 0.8
    assert told.by_key["place"] == pytest.approx(told.r2, abs=0.01)
    assert max(abs(told.by_chance), abs(told.by_key["kind"])) < 0.05
    assert abs(informativeness(scene_parts(200, rng, honest=False), embedder).r2) < 0.05


def test_features_hold_common_values_presence_and_the_meaning_of_rare_ones():
    annotations = [Annotation.of({"place": "sea"})] * 5 + [Annotation.of({"place": "lagoon"})]
    columns = tag_features([*annotations, Annotation()])["place"]
    assert columns[:, :2].tolist() == [[1, 1]] * 5 + [[0, 1], [0, 0]]
    assert columns.shape == (7, 2 + 16)


def test_mutual_information_of_equal_codes_is_their_entropy_and_of_crossed_ones_nothing():
    codes = np.arange(8)
    assert mutual_information(codes % 4, codes % 4) == pytest.approx(math.log(4))
    assert mutual_information(codes % 2, codes // 2) == pytest.approx(0)


def test_information_and_its_mean_by_chance_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 20, 2000), rng.integers(0, 9, 2000)
    table = contingency_matrix(groups, values, sparse=True)
    found, by_chance, *_ = adjusted_information(groups, values, rng)
    assert found == pytest.approx(mutual_info_score(groups, values), abs=1e-12)
    assert by_chance == pytest.approx(expected_mutual_information(table, 2000), rel=0.02)


def test_the_adjusted_share_is_one_where_all_is_decided_and_zero_by_chance():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    values = rng.permutation(20)[groups] % 4
    assert adjusted_information(groups, values, rng)[2:] == (pytest.approx(1), 1 / 201)
    dealt = [adjusted_information(groups, rng.permutation(values), rng)[2] for _ in range(20)]
    assert np.mean(dealt) == pytest.approx(0, abs=0.02)  # type: ignore[arg-type]
    assert mutual_information(groups, rng.permutation(values)) > 0.15  # what is taken off
    assert adjusted_information(groups, np.arange(200), rng)[2] is None


def test_what_prompts_decide_is_told_from_what_they_leave_open():
    rng = random.Random(0)
    prompts = [f"Tell me a tale of the {place}." for place in SCENES for _ in range(60)]
    plans = [
        Annotation.of({"place": p.split()[-1][:-1], "mood": rng.choice("abc"), "id": str(n)})
        for n, p in enumerate(prompts)
    ]
    found = prompt_shares(prompts, plans)
    assert (found.rows, found.groups, found.grouped_by) == (180, 3, "prompt")
    assert found.keys["place"].decided == pytest.approx(1)
    assert found.keys["place"].named == 1
    assert found.keys["place"].named_by_chance < 0.7
    assert found.keys["mood"].decided == pytest.approx(0, abs=0.03)
    assert found.keys["id"].decided is None  # it never recurs: any grouping tells it as well
    unique = prompt_shares([f"{p} Part {n}." for n, p in enumerate(prompts)], plans)
    assert unique.grouped_by == "cluster"
    assert unique.keys["place"].decided == pytest.approx(1)


def corpus(path: Path, seed: int = 0, wrong: float = 0.0) -> Path:
    rng = random.Random(seed)
    rows = []
    for n in range(120):
        place = rng.choice([*SCENES])
        tag = rng.choice([*SCENES]) if rng.random() < wrong else place
        row: dict[str, Any] = {"id": str(n), "prompt": f"Tell me about the {place}."}
        row |= {"response": f"{SCENES[place]} It was day {n}."}
        row["annotation"] = Annotation.of(
            {"place": tag, "mood": rng.choice(["glad", "Glad"])}
        ).rows()
        rows.append(row)
    return write(path, rows)


def tags_config(path: Path, against: Path | None = None) -> TagsConfig:
    other = against and {"path": str(against)}
    return TagsConfig.model_validate({"source": {"path": str(path)}, "against": other})


def test_a_corpus_is_measured_in_every_respect(tmp_path: Path):
    first, second = corpus(tmp_path / "a.jsonl"), corpus(tmp_path / "b.jsonl", wrong=0.5)
    found = measure(tags_config(first, second), QUIET)
    assert found.agreement is not None
    assert found.agreement.texts > 30  # where both drew the same place by the same chance
    assert found.variants["mood"][0].variants[0].why == "spelling"
    assert found.informativeness is not None and found.informativeness.r2 > 0.5
    assert found.prompts is not None and found.prompts.keys["place"].named == 1
    same = measure(tags_config(first, first), QUIET).agreement
    assert same is not None and (same.texts, same.keys["place"].kappa) == (120, 1)


def test_what_cannot_be_measured_is_refused(tmp_path: Path):
    other = write(tmp_path / "b.jsonl", [{"text": "Else.", "annotation": PLAN.rows()}])
    with pytest.raises(DataError, match="none of the sampled texts is in"):
        measure(tags_config(corpus(tmp_path / "a.jsonl"), other), QUIET)
    with pytest.raises(DataError, match="no row has an annotation"):
        measure(tags_config(write(tmp_path / "c.jsonl", [{"text": "Else."}])), QUIET)
    few = measure(tags_config(other), QUIET)
    assert (few.informativeness, few.prompts, few.agreement) == (None, None, None)


def test_the_command_shows_and_writes_what_was_measured(tmp_path: Path, capsys, monkeypatch):
    path, names = corpus(tmp_path / "a.jsonl"), ("map.yaml", "view.html")
    monkeypatch.setenv("COLUMNS", "150")
    files = [str(tmp_path / name) for name in names]
    options = ["--tags", "--against", str(path), "--canonical", files[0], "--html", files[1]]
    assert main(["inspect", str(path), *options]) == 0
    out = capsys.readouterr().out
    titles = ("Breadth", "Variants", "Informativeness", "What prompts decide", "Agreement")
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    for title in titles:
        assert title in out and f"<h2>{title}</h2>" in page
    assert set(CanonicalMap.load(tmp_path / "map.yaml").keys) == {"mood"}
    assert main(["inspect", str(path), "--tags", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    measured = ["variants", "informativeness", "prompts", "agreement"]
    assert list(data) == ["corpus", "annotations", "keys", *measured]
    assert data["agreement"] is None


def test_options_of_the_tags_without_them_are_refused(tmp_path: Path, capsys):
    assert main(["inspect", str(corpus(tmp_path / "a.jsonl")), "--against", "x"]) == 2
    assert capsys.readouterr().err == "anchored: error: --against requires --tags; add it\n"
