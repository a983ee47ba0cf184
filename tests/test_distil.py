"""From labelled texts to an annotator: what is learnt, held out, left out, saved and refused."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anchored.annotation import Annotation, Key, Schema
from anchored.annotators.distilled import DistilledAnnotator, KeyModel
from anchored.cli import main
from anchored.corpus import choose as choosing
from anchored.corpus.choose import choose, nearness
from anchored.corpus.distil import calibration_error, distil, learnable_values, scores, threshold
from anchored.corpus.offline_run import AnnotateConfig
from anchored.corpus.offline_run import run as annotate
from anchored.data.readers import SourceConfig
from anchored.errors import ConfigError, DataError
from anchored.metrics.embedding import unit
from anchored.tags.observations import Part

QUIET = Console(quiet=True)
SCENES = {
    "sea": ["The ship rolled on the waves.", "The sailors hauled the sail.", "Salt wind blew."],
    "kitchen": ["She stirred the soup.", "The bread was in the oven.", "The kettle boiled."],
    "court": ["The judge read the verdict.", "The lawyer rose.", "The jury sat in silence."],
}
SCHEMA = Schema(
    name="scenes",
    keys=(
        Key(name="scene", description="where", values=(*SCENES, "moon")),
        Key(name="mood", description="chance", values=("glad", "sad")),
        Key(name="entity", description="who", many=True),
        Key(name="plot", description="anything"),
    ),
)


def labelled(count: int = 400, seed: int = 0) -> list[Part]:
    rng = random.Random(seed)
    found = []
    for n in range(count):
        scene = rng.choice([*SCENES])
        text = " ".join(rng.choices(SCENES[scene], k=4))
        text += f" There they saw Mara, and Mara waved {n}."
        plan: dict[str, Any] = {"mood": rng.choice(["glad", "sad"]), "plot": f"plot {n}"}
        if scene != "court":  # where this teacher never says so
            plan["scene"] = scene
        found.append(Part(f"row {n}", "", text, Annotation.of({**plan, "entity": "Mara"})))
    return found


@pytest.fixture(scope="module")
def taught():
    return distil(labelled(), SCHEMA, target_precision=0.9)


def test_a_key_that_texts_tell_is_learnt_and_one_that_they_do_not_is_not(taught):
    annotator, reports = taught
    assert set(annotator.models) == {"scene"}
    assert annotator.models["scene"].values == (None, "kitchen", "sea")
    assert {key: report.by for key, report in reports.items()} == {
        "scene": "distilled", "mood": "rules", "entity": "rules", "plot": "nothing",
    }  # fmt: skip
    assert annotator.unread == ("plot",)
    found = reports["scene"].distilled
    assert (found.precision, found.recall, found.kappa) == (1, 1, 1)
    assert 0.5 < found.coverage < 0.8
    assert reports["mood"].threshold is None and reports["mood"].distilled.coverage == 0
    assert reports["entity"].rules.precision == 1


def test_texts_are_annotated_in_schema_order_and_the_same_in_any_batch(taught):
    annotator, _ = taught
    texts = [part.text for part in labelled(30, seed=1)]
    found = annotator.annotate_batch(texts)
    assert found == [annotator.annotate_batch([text])[0] for text in texts]
    assert annotator.annotate_batch([]) == []
    for text, annotation in zip(texts, found, strict=True):
        scene = next(scene for scene in SCENES if text[:10] in " ".join(SCENES[scene]))
        assert annotation.values("scene") == (() if scene == "court" else (scene,))
        assert annotation.keys == tuple(key for key in SCHEMA.names if key in annotation.keys)


def test_a_saved_annotator_writes_the_same(taught, tmp_path: Path):
    annotator, _ = taught
    annotator.save(tmp_path)
    loaded = DistilledAnnotator.load(tmp_path)
    texts = [part.text for part in labelled(30, seed=1)]
    assert loaded.annotate_batch(texts) == annotator.annotate_batch(texts)
    assert (loaded.schema, loaded.unread) == (SCHEMA, ("plot",))
    sent = pickle.loads(pickle.dumps(loaded.again()))()  # as to another process
    assert sent.annotate_batch(texts) == annotator.annotate_batch(texts)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("distilled.json", None, DataError, "no such file; `anchored distil LABELLED --out"),
        ("distilled.json", "{}", DataError, "not a file that `anchored distil` wrote"),
        ("weights.safetensors", "x", DataError, "not the weights of distilled.json"),
        ("weights.safetensors", None, DataError, "not the weights of distilled.json"),
        ("distilled.json", "other", ConfigError, "distil again, or install the versions"),
    ],
)
def test_a_damaged_annotator_is_refused(taught, tmp_path: Path, name, change, error, message):
    taught[0].save(tmp_path)
    path = tmp_path / name
    if change is None:
        path.unlink()
    elif change == "other":
        path.write_text(json.dumps({**json.loads(path.read_text()), "static_model": "another"}))
    else:
        path.write_text(change)
    with pytest.raises(error, match=message):
        DistilledAnnotator.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "labels", "classes"),
    [
        (Key(name="a", description="", values=("x", "y")), ["x"] * 12 + ["y"] * 12, ("x", "y")),
        (Key(name="a", description=""), ["x"] * 20 + [None] * 10, (None, "x")),
        (Key(name="a", description=""), ["x"] * 20 + ["y"] * 9, None),
        (Key(name="a", description=""), ["x"] * 90 + ["y"] * 9 + [None], None),
        (Key(name="a", description=""), ["x"] * 90 + ["y"] * 10 + ["z"], ("x", "y")),
        (Key(name="a", description=""), [str(n) for n in range(99)], None),
        (Key(name="a", description="", many=True), ["x"] * 20 + ["y"] * 20, None),
        (Key(name="a", description="", values=("x", "y")), [None] * 40, None),
    ],
)
def test_which_values_can_be_learnt(key, labels, classes):
    assert learnable_values(key, labels) == classes


def test_the_threshold_is_the_lowest_that_keeps_the_target():
    p = np.linspace(0.99, 0.5, 50)
    labels: list[str | None] = ["x"] * 30 + ["y"] * 20
    assert threshold(["x"] * 50, p, labels, 1.0) == p[29]
    assert threshold(["x"] * 50, p, labels, 0.75) == p[39]
    assert threshold(["x"] * 50, p, labels, 0.6) == p[49]
    assert threshold(["y"] * 50, p, labels, 0.9) == 2
    assert threshold([None] * 50, p, labels, 0.1) == 2
    tied = np.full(50, 0.7)
    assert threshold(["x"] * 50, tied, labels, 0.9) == 2  # no threshold tells them apart


def test_below_the_threshold_nothing_is_written():
    model = KeyModel((None, "x"), np.array([[0.0], [1.0]]), np.zeros(2), threshold=0.8)
    vectors = np.array([[np.log(3.9)], [np.log(4.1)], [-9.0]])
    assert model.pick(vectors) == [None, "x", None]
    assert model.best(vectors)[0] == ["x", "x", None]
    assert model.probabilities(vectors)[1] == pytest.approx([1 / 5.1, 4.1 / 5.1])
    warm = KeyModel((None, "x"), model.weights, model.bias, temperature=2.0)
    assert warm.probabilities(vectors)[1, 1] == pytest.approx(4.1**0.5 / (1 + 4.1**0.5))


def test_calibration_error_is_the_gap_weighted_by_texts():
    p, right = np.array([0.95] * 4 + [0.55] * 6), np.array([True] * 9 + [False])
    assert calibration_error(p, right) == pytest.approx(0.4 * 0.05 + 0.6 * (5 / 6 - 0.55))


def test_scores_count_tags_against_labels():
    def of(*values: str) -> Annotation:
        return Annotation.of([("who", value) for value in values])

    found = scores([of("a"), of("a", "b"), of(), of("c")], [of("a"), of("b"), of("d"), of()], "who")
    assert (found.coverage, found.precision, found.recall, found.kappa) == (0.75, 0.5, 2 / 3, None)
    none = scores([of()], [of()], "who")
    assert (none.precision, none.recall, none.coverage) == (None, None, 0)


def test_labels_of_one_row_are_never_fitted_and_held_out():
    parts = [
        Part(f"row {n % 40}", "", f"{part.text} {n}", part.annotation)
        for n, part in enumerate(labelled(400))
    ]
    from anchored.corpus.distil import _splits

    groups = [
        {part.row for part in parts if part.text in split.texts}
        for split in _splits(parts, SCHEMA, 0)
    ]
    assert [len(group) for group in groups] == [24, 8, 8]
    assert set.union(*groups) == {part.row for part in parts}


def write(path: Path, parts: list[Part], tagged: bool = True) -> Path:
    rows = []
    for part in parts:
        chunk: dict[str, Any] = {"text": part.text}
        if tagged and part.annotation is not None:
            chunk["annotation"] = part.annotation.rows()
        rows.append({"id": part.row, "chunks": [chunk]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.yaml"
    path.write_text(json.dumps(SCHEMA.model_dump(mode="json")), encoding="utf-8")
    return path


def test_the_command_distils_and_annotate_writes_by_it(tmp_path: Path, schema: Path, capsys):
    source, folder = write(tmp_path / "labelled.jsonl", labelled()), tmp_path / "mine"
    command = ["distil", str(source), "--out", str(folder), "--schema", str(schema), "--json"]
    assert main([*command, "--target-precision", "0.9"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["keys"]["scene"]["by"] == "distilled"
    assert json.loads((folder / "report.json").read_bytes()) == report
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    plain = write(tmp_path / "plain.jsonl", labelled(20, seed=2), tagged=False)
    fields: dict[str, Any] = {"source": str(plain), "annotator": f"distilled:{folder}"}
    fields |= {"out": tmp_path / "out", "schema_name": str(schema), "rows_per_shard": 10}
    manifest = annotate(AnnotateConfig.model_validate(fields | {"workers": 1}), QUIET)
    assert manifest["annotator"].startswith("distilled from ")
    assert (manifest["unread_keys"], manifest["calibration"]) == (["plot"], None)
    shards = sorted((tmp_path / "out").glob("shard*"))
    rows = [json.loads(line) for shard in shards for line in shard.open(encoding="utf-8")]
    texts = [part.text for part in labelled(20, seed=2)]
    expected = DistilledAnnotator.load(folder).annotate_batch(texts)
    assert [row["chunks"][0]["annotation"] for row in rows] == [a.rows() for a in expected]


def test_annotate_refuses_a_distilled_annotator_that_does_not_fit(
    tmp_path: Path, schema: Path, taught
):
    taught[0].save(tmp_path / "mine")
    plain = write(tmp_path / "plain.jsonl", labelled(20, seed=2), tagged=False)
    fields: dict[str, Any] = {
        "source": str(plain), "out": tmp_path / "out", "annotator": f"distilled:{tmp_path}/mine",
        "workers": 1,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"is not the schema that .* was distilled for"):
        annotate(AnnotateConfig.model_validate(fields), QUIET)
    fields["schema_name"] = str(schema)
    calibration = {"calibration": tmp_path / "mine" / "calibration.json"}
    with pytest.raises(ConfigError, match="goes with annotator offline"):
        annotate(AnnotateConfig.model_validate(fields | calibration), QUIET)
    assert not (tmp_path / "out").exists()
    config = AnnotateConfig.model_validate(fields)
    annotate(config, QUIET)
    distil(labelled(seed=5), SCHEMA, 0.9)[0].save(tmp_path / "mine")
    with pytest.raises(DataError, match="the annotator has changed since this run began"):
        annotate(config, QUIET)
    for name in ("offlime", "distilled:", "distilled"):
        with pytest.raises(ValueError, match="use offline or distilled:FOLDER"):
            AnnotateConfig.model_validate(fields | {"annotator": name})


def test_too_few_labelled_texts_are_refused(tmp_path: Path, capsys):
    source = write(tmp_path / "few.jsonl", labelled(9))
    assert main(["distil", str(source), "--out", str(tmp_path / "mine")]) == 2
    assert "has 9 labelled texts; label at least 100" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_chosen_texts_stand_for_every_part_of_the_pool():
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(8, 16)))
    sizes = [400, 5, 5, 5, 5, 5, 5, 5]
    cluster = np.repeat(np.arange(8), sizes)
    vectors = unit(centres[cluster] + 0.02 * rng.normal(size=(435, 16)))
    places = choose(vectors, 24)
    assert len(set(places)) == 24
    assert {cluster[place] for place in places} == set(range(8))
    drawn = [rng.choice(435, 24, replace=False).tolist() for _ in range(5)]
    assert all(nearness(vectors, places) > nearness(vectors, one) for one in drawn)
    assert nearness(vectors, list(range(435))) == pytest.approx(1)
    assert sorted(choose(vectors[:7], 7)) == list(range(7))


def test_the_command_writes_chosen_texts_as_rows_to_label(tmp_path: Path, capsys):
    source = write(tmp_path / "plain.jsonl", labelled(60), tagged=False)
    out = tmp_path / "sample.jsonl"
    assert main(["distil", str(source), "--choose", "12", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["chosen"], told["pool"]) == (12, 60)
    rows = [json.loads(line) for line in out.open()]
    texts = {part.row: part.text for part in labelled(60)}
    assert len(rows) == 12
    assert all(row["chunks"] == [{"text": texts[row["id"]]}] for row in rows)
    asked = Part("a", "Why?", "So.", None)
    assert choosing._row(asked) == {"id": "a", "prompt": "Why?", "response": "So."}
    config = choosing.ChooseConfig(source=SourceConfig(path=str(source)), count=61, out=out)
    with pytest.raises(DataError, match="has 60 distinct texts, fewer than --choose 61"):
        choosing.run(config, QUIET)
