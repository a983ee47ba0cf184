"""The offline annotator: rules on sentences with one right reading, and all on real text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchored.annotation import Key, Schema
from anchored.annotators import labels, rules
from anchored.annotators.offline import Calibration, OfflineAnnotator, described_keys
from anchored.annotators.rules import Casing, Words
from anchored.annotators.zeroshot import ZeroShot, leads
from anchored.errors import ConfigError, DataError
from anchored.files import read_jsonl

SAMPLE = [
    "The soldiers of the army fought a long battle. Their general had lost the war.",
    "She baked bread in the kitchen and cooked a delicious meal with cheese and onions.",
    "The rocket left its orbit and the astronauts saw the planet and distant galaxies.",
    "He played the guitar and sang a melody while the band tuned the piano.",
    "The judge listened to the lawyer, and the court found the prisoner guilty.",
    "Waves broke over the ship and the sailors saw an island in the ocean.",
    "The teacher gave her students homework after the lesson in the classroom.",
    "A ghost haunted the old house, and an eerie spirit cursed all who came.",
    "Rain and thunder filled the sky, and the wind of the storm tore at the clouds.",
    "The doctor gave the patient medicine against the disease in the hospital.",
    "Seeds grew to flowers and roses in the garden, and the plants were in blossom.",
    "The dog chased the cat, the kitten ran from the puppy, and all the pets were tired.",
] * 3


@pytest.fixture(scope="module")
def annotator() -> OfflineAnnotator:
    return OfflineAnnotator.fit(Schema.load("general"), SAMPLE)


def entities(text: str, casing: Casing | None = None) -> list[str]:
    words = Words.of(text)
    return rules.entities(words, rules.spans(words), casing or Casing())


def location(text: str, casing: Casing | None = None) -> str | None:
    words = Words.of(text)
    return rules.location(words, rules.spans(words), casing or Casing())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("One day Mara met a fox. Mara ran.", ["Mara"]),
        ("Then Mara saw Tobin, and Tobin saw Mara.", ["Mara", "Tobin"]),
        ("We saw Mara, Mara, Mara and Tobin.", ["Mara"]),
        ("She gave it to Mr. Patel. He thanked her.", ["Mr. Patel"]),
        ("There sat Sarah Jenkins. Then Sarah left, and Sarah wept.", ["Sarah"]),
        ("It was the Lady of Shalott who sang.", ["Lady of Shalott"]),
        ("That was Lily's book, and Lily read it.", ["Lily"]),
        ("Suddenly the wolf saw a hare. The wolf ran.", ["wolf"]),
        ("On Monday, in July, he spoke English.", []),
        ("# The Great Big Adventure\nthey slept", []),
    ],
)
def test_entities_are_the_names_inside_sentences(text: str, names: list[str]):
    assert entities(text) == names


def test_a_sentence_start_is_a_name_only_where_the_corpus_or_the_chunk_says_so():
    assert entities("Mara smiled.") == []
    assert entities("Mara smiled.", Casing(names=frozenset(["mara"]))) == ["Mara"]
    assert entities("Mara smiled. They knew Mara.") == ["Mara"]


def test_casing_learns_names_and_words_that_only_sometimes_have_a_capital():
    sample = ["I saw Mara and the King.", "He met Mara. The king left.", "a king, a king"]
    casing = Casing.fit([Words.of(text) for text in sample])
    assert casing == Casing(frozenset(["mara"]), frozenset(["king"]))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("They went into the dark forest.", "forest"),
        ("They lived in Baghdad.", "Baghdad"),
        ("He had come from Germany.", "Germany"),
        ("A man was in the village of Oakwood.", "Oakwood"),
        ("They walked along Willow Creek.", "Willow Creek"),
        ("They spoke to Charlotte.", None),
        ("They lived in Charlotte.", "Charlotte"),
        ("A castle is expensive.", None),
        ("A castle is expensive. This castle was sold.", "castle"),
        ("Nothing happened.", None),
    ],
)
def test_location_is_a_named_place_or_a_setting(text: str, place: str | None):
    assert location(text) == place


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("It happened one winter.", "winter"),
        ("At midnight the night was cold; it was a long night.", "night"),
        ("It was built in 1894.", "1890s"),
        ("The 1920s were loud.", "1920s"),
        ("In the 18th century all was calm.", "18th century"),
        ("In May it rained.", "May"),
        ("You may go.", None),
        ("He ran to the spring.", None),
        ("They met in spring.", "spring"),
        ("There were 1500 people.", None),
        ("Once upon a time there was a king.", "long ago"),
    ],
)
def test_time_is_the_most_frequent_of_what_is_mentioned(text: str, when: str | None):
    assert rules.time(Words.of(text)) == when


def test_action_is_the_rarest_verb_of_equally_frequent_ones():
    counts = rules.action_counts(
        Words.of("They walked home, stole a goose and walked on. Mr. Drew.")
    )
    assert counts == Counter({"walk": 2, "steal": 1})
    assert rules.action(counts, {"walk": 1.0, "steal": 3.0}) == "steal"
    assert rules.action(counts, {"walk": 1.0, "steal": 1.0}) == "walk"
    assert rules.action(Counter(), {}) is None


def test_inflections_are_found_under_their_verb():
    forms = ["chased", "chasing", "carries", "carried", "hugging", "dying", "sought", "went away"]
    found = [labels.actions().find(form.split())[0][1] for form in forms]
    assert found == ["chase", "chase", "carry", "carry", "love", "die", "search", "leave"]


def test_polarity_is_vaders_on_plain_sentences():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    for text in ("a happy day", "a very happy day", "it was not good", "a terrible sad war", "a"):
        expected = vader.polarity_scores(text)["compound"]
        assert rules.polarity(Words.of(text)) == pytest.approx(expected, abs=1e-4)


def test_polarity_is_the_mean_over_sentences():
    happy, sad = (rules.polarity(Words.of(text)) for text in ("So happy.", "So sad."))
    assert rules.polarity(Words.of("So happy. So sad. A day.")) == pytest.approx((happy + sad) / 3)


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("HOST: Welcome!\n\nGUEST: Thank you.", "script"),
        ("- one thing\n- another thing\n- a third", "list"),
        ("Roses bloom,\nviolets too,\nthe night is dark,\nand so are you", "verse"),
        ('"Where were you all night?" he said. "At home, as always, with the cat."', "dialogue"),
        ("I walked home and my dog followed me to our house.", "first person"),
        ("Then you take your knife and cut the bread.", "instruction"),
        ("The king walked home and was glad.", "narration"),
        ("The planet is large and has two moons.", "exposition"),
    ],
)
def test_style_is_read_off_the_surface(text: str, style: str):
    assert rules.style(Words.of(text)) == style


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The cat sat on the mat and slept.", "en"),
        ("Le chat est assis sur le tapis et il dort toute la journée.", "fr"),
        ("Der Hund läuft schnell durch den dunklen Wald und bellt.", "de"),
        ("Four words are few", None),
    ],
)
def test_language_is_an_iso_code_from_five_words_up(text: str, code: str | None):
    assert rules.language(Words.of(text)) == code


def test_a_whole_annotation_in_the_order_of_the_schema(annotator: OfflineAnnotator):
    text = (
        "One winter the army came to Berlin, where Mara hid from the war. "
        "Soldiers with weapons lost a battle against the military of the enemy."
    )
    found = annotator.annotate_batch([text])[0]
    assert [str(tag) for tag in found.only(["topic", "entity", "action", "location", "time"])] == [
        "topic: war",
        "entity: Mara",
        "action: hide",
        "location: Berlin",
        "time: winter",
    ]
    assert found == annotator.schema.canonical(found)


def test_text_reads_the_same_alone_and_in_any_batch(annotator: OfflineAnnotator):
    together = annotator.annotate_batch(SAMPLE)
    assert together == [annotator.annotate_batch([text])[0] for text in SAMPLE]
    assert together[::-1] == annotator.annotate_batch(SAMPLE[::-1])


def test_a_saved_calibration_reads_text_as_before(annotator: OfflineAnnotator, tmp_path: Path):
    annotator.save(tmp_path / "calibration.json")
    again = OfflineAnnotator.load(annotator.schema, tmp_path / "calibration.json")
    assert again.calibration == annotator.calibration
    assert again.annotate_batch(SAMPLE) == annotator.annotate_batch(SAMPLE)


def test_zero_shot_keys_are_left_out_where_nothing_speaks_for_a_label(annotator: OfflineAnnotator):
    found = annotator.annotate_batch(["Qwzx vbnm.", ""])
    assert [annotation.only(["topic", "domain"]).tags for annotation in found] == [(), ()]


def test_sentiment_terciles_of_the_sample_are_equally_frequent():
    texts = [f"{word} {word} day {i}." for i in range(10) for word in ("happy", "sad", "plain")]
    found = OfflineAnnotator.fit(Schema.load("general"), texts).annotate_batch(texts)
    assert Counter(annotation.values("sentiment") for annotation in found) == {
        ("positive",): 10,
        ("neutral",): 10,
        ("negative",): 10,
    }


def test_words_that_no_description_holds_speak_for_the_label_they_are_near_to():
    described = {"topic": {"war": "war, army", "food": "food, meal"}}
    scores = ZeroShot(described, {}, 10).scores([["infantry", "troops"], ["soup", "pasta"]])
    assert (scores.argmax(1) == [0, 1]).all()
    assert (scores.max(1) > 4 * scores.min(1)).all()


def test_leads_are_the_best_score_less_the_second():
    scores = np.array([[0.1, 0.5, 0.3], [1.0, 1.0, 0.0]], np.float32)
    assert leads(scores) == pytest.approx([0.2, 0.0])


def test_a_closed_key_of_any_schema_is_described_by_its_own_values():
    key = Key(name="weather", description="the weather", values=("heavy rain", "bright sunshine"))
    schema = Schema(name="mine", keys=(key,))
    assert described_keys(schema) == {
        "weather": {"heavy rain": "heavy rain", "bright sunshine": "bright sunshine"}
    }
    texts = ["rain and puddles", "sunshine, how bright", "a storm with rain", "the sun was bright"]
    found = OfflineAnnotator.fit(schema, texts).annotate_batch(texts[:2])
    assert list(map(str, found)) == ["weather: heavy rain", "weather: bright sunshine"]


def test_keys_that_nothing_can_read_are_named_and_left_out():
    stories = OfflineAnnotator.fit(Schema.load("stories"), SAMPLE)
    assert set(stories.unread) == {
        "summary",
        "narrative_structure",
        "cultural_context",
        "worldbuilding",
        "imagery",
    }


def test_a_schema_that_cannot_be_read_at_all_is_refused():
    schema = Schema(name="mine", keys=(Key(name="plot", description="the plot"),))
    with pytest.raises(ConfigError, match="'mine': the offline annotator can read none of its"):
        OfflineAnnotator.fit(schema, SAMPLE)


def test_a_calibration_for_other_labels_is_refused(annotator: OfflineAnnotator):
    key = Key(name="topic", description="topic", values=("war", "peace"))
    with pytest.raises(ConfigError, match="its labels of 'topic' are not the schema's"):
        OfflineAnnotator(Schema(name="mine", keys=(key,)), annotator.calibration)


def test_faulty_calibrations_and_empty_samples_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such calibration"):
        Calibration.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"chunks": 1}')
    with pytest.raises(DataError, match="not a calibration"):
        Calibration.load(tmp_path / "bad.json")
    with pytest.raises(DataError, match="no text to calibrate"):
        OfflineAnnotator.fit(Schema.load("general"), [])


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_gets_a_legal_annotation(annotator: OfflineAnnotator, text: str):
    for annotation in annotator.annotate_batch([text, text.title()]):
        annotator.schema.check(annotation)


def test_lexicons_name_each_label_once_and_labels_are_short():
    for described in labels.descriptions().values():
        assert all(len(label.split()) <= 2 and len(label) <= 16 for label in described)
    assert len(labels.descriptions()["topic"]) == 77
    assert len(labels.descriptions()["domain"]) == 16


def test_names_that_stories_were_asked_for_are_found(shared_data: Path):
    rows = [row for _, row in read_jsonl(shared_data / "stories" / "stories.jsonl.xz")]
    rows = [row for row in rows if row["kind"] == "llama-slice-of-life"][:150]
    texts = [row["text"] for row in rows]
    schema = Schema(name="read", keys=(Key(name="entity", description="who", many=True),))
    found = OfflineAnnotator.fit(schema, texts).annotate_batch(texts)
    asked = [set(row["labels"]["entity"]) for row in rows]
    named = [set(annotation.values("entity")) for annotation in found]
    assert sum(bool(a & b) for a, b in zip(asked, named, strict=True)) >= 0.85 * len(rows)
    right = sum(len(a & b) for a, b in zip(asked, named, strict=True))
    assert right >= 0.78 * sum(map(len, named))


def test_poems_are_verse_and_podcasts_are_scripts(shared_data: Path):
    rows = (row for _, row in read_jsonl(shared_data / "prose" / "mixed.jsonl.xz"))
    wanted = {"poem": "verse", "podcast": "script"}
    right: dict[str, list[bool]] = {"poem": [], "podcast": []}
    for row in rows:
        kind = row["labels"]["style"]
        if kind in wanted and len(right[kind]) < 100:
            right[kind].append(rules.style(Words.of(row["text"])) == wanted[kind])
        if all(len(found) == 100 for found in right.values()):
            break
    assert {kind: sum(found) >= 90 for kind, found in right.items()} == {
        "poem": True,
        "podcast": True,
    }
