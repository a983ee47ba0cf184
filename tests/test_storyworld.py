"""The storyworld: writer and reader agree exactly; the corpus has the statistics it promises."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchored.annotation import Annotation
from anchored.errors import DataError
from anchored.storyworld import Reading, Storyworld, _skeletons

WORLDS = {world.size: world for world in (Storyworld("small"), Storyworld("full"))}


@pytest.fixture(params=["small", "full"])
def world(request: pytest.FixtureRequest) -> Storyworld:
    return WORLDS[request.param]


def drawn(world: Storyworld, count: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    return [world.draw(rng) for _ in range(count)]


def entropy(values: list[object]) -> float:
    counts = Counter(values)
    return -sum(n / len(values) * math.log(n / len(values)) for n in counts.values())


def story(world: Storyworld, seed: int, taught: bool) -> tuple[dict[str, str], str]:
    rng = random.Random(seed)
    attributes = world.draw(rng)
    return attributes, world.render(attributes, rng, taught)


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def flat(plan: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(itertools.chain.from_iterable(plan))


def with_sentence(text: str, index: int, *instead: str) -> str:
    """`text` with the sentences `instead` in the place of sentence `index`, paragraphs kept."""
    parts = re.split(r"((?<=[.!?])\s+)", text)
    parts[2 * index] = " ".join(instead)
    if not instead:
        del parts[2 * index : 2 * index + 2]
    return "".join(parts)


# Writer and reader


@given(st.sampled_from(["small", "full"]), st.integers(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_rendered_story_reads_back_exactly(
    size: Literal["small", "full"], seed: int, taught: bool
) -> None:
    world = WORLDS[size]
    attributes, text = story(world, seed, taught)
    assert world.read(text) == Reading(attributes, True, True, taught)


def test_every_value_reads_back_in_both_forms(world: Storyworld) -> None:
    base = world.draw(random.Random(1))
    rng = random.Random(2)
    for key in world.schema.keys[:-1]:
        for value, taught in itertools.product(key.values or (), (False, True)):
            attributes = base | {key.name: value}
            text = world.render(attributes, rng, taught)
            assert world.read(text) == Reading(attributes, True, True, taught)


def test_every_phrasing_and_every_plan_is_written(world: Storyworld) -> None:
    read = [
        [world._read_sentence(line).slot for line in sentences_of(story(world, seed, False)[1])]
        for seed in range(1500)
    ]
    assert {tuple(slots) for slots in read} == {flat(plan) for plan in world._plain}
    phrasings = {
        re.sub(r"\w+", lambda match: world._holes.get(match[0], ("", match[0]))[1], line)
        for seed in range(1500)
        for line in sentences_of(story(world, seed, seed % 2 == 0)[1])
    }
    assert phrasings == set(world._skeletons)


def test_a_story_begun_before_its_hero_is_named_uses_no_pronoun_until_then(
    world: Storyworld,
) -> None:
    late = 0
    for seed in range(300):
        _, text = story(world, seed, taught=False)
        for line in sentences_of(text):
            sentence = world._read_sentence(line)
            if sentence.names_hero:
                break
            late += 1
            assert not sentence.has_pronoun
    assert late > 100


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_reading_never_raises_and_no_arbitrary_text_is_a_story(text: str) -> None:
    for world in WORLDS.values():
        reading = world.read(text)
        assert not reading.well_formed and not reading.adopted


@given(st.integers(0, 50), st.integers(0), st.integers(0), st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_reading_never_raises_on_stories_with_a_piece_replaced(
    seed: int, start: int, length: int, piece: str
) -> None:
    attributes, text = story(WORLDS["small"], seed, taught=True)
    start %= len(text)
    reading = WORLDS["small"].read(text[:start] + piece + text[start + length % 80 :])
    assert set(reading.attributes) <= set(attributes)


def test_braces_are_no_way_round_the_grammar(world: Storyworld) -> None:
    skeleton = "\n\n".join(
        " ".join(_skeletons(world._slots[slot][0])[0] for slot in paragraph)
        for paragraph in world._plain[0]
    )
    assert world.read(skeleton) == Reading({}, False, False, False)


def test_a_thousand_stories_are_read_in_less_than_a_second() -> None:
    texts = [story(WORLDS["full"], seed, seed % 2 == 0)[1] for seed in range(1000)]
    began = time.process_time()
    for text in texts:
        WORLDS["full"].read(text)
    assert time.process_time() - began < 1.0


# Corrupted stories


@pytest.mark.parametrize("taught", [False, True])
def test_a_dropped_repeated_or_garbled_sentence_is_not_well_formed(
    world: Storyworld, taught: bool
) -> None:
    for seed in range(50):
        attributes, text = story(world, seed, taught)
        lines = sentences_of(text)
        index = 1 + seed % (len(lines) - 2)
        line = lines[index]
        twice = world.read(with_sentence(text, index, line, line))
        assert twice == Reading(attributes, False, True, False)
        garbled = world.read(with_sentence(text, index, line[:-1] + " indeed."))
        assert garbled == Reading(attributes, False, True, taught)
        dropped = world.read(with_sentence(text, index))
        optional = world._read_sentence(line).slot in ("talk", "weather")
        assert not dropped.well_formed or (optional and not taught)


@pytest.mark.parametrize("seed", range(20))
def test_a_hero_or_companion_renamed_midway_is_inconsistent(world: Storyworld, seed: int) -> None:
    attributes, text = story(world, seed, taught=False)
    for key, other in (("hero", "Ulla" if world.size == "full" else "Zora"), ("companion", "mule")):
        own = attributes[key]
        *before, last = re.finditer(rf"\b{own}\b", text)
        if own == other or not before:
            continue
        reading = world.read(text[: last.start()] + other + text[last.end() :])
        assert reading.well_formed and not reading.consistent and not reading.adopted
        assert reading.attributes == attributes


def test_a_pronoun_that_is_not_the_heros_is_inconsistent(world: Storyworld) -> None:
    texts = (story(world, seed, taught=True)[1] for seed in range(200))
    text = next(text for text in texts if " she " in text)
    reading = world.read(text.replace(" she ", " he "))
    assert reading.well_formed and reading.adopted and not reading.consistent


def test_a_pronoun_before_the_name_is_not_well_formed(world: Storyworld) -> None:
    texts = (story(world, seed, taught=False)[1] for seed in range(500))
    text = next(t for t in texts if re.match(r"\w+ travelled with", t))
    name = text.split()[0]
    pronoun = "She" if name in world._she else "He"
    reading = world.read(pronoun + text.removeprefix(name))
    assert not reading.well_formed and reading.consistent


@pytest.mark.parametrize("seed", range(20))
def test_the_moral_of_another_story_is_not_adopted(world: Storyworld, seed: int) -> None:
    attributes, text = story(world, seed, taught=True)
    body, _, moral = text.rpartition("\n\n")
    for key in ("obstacle", "ending"):
        spec = world.schema.key(key)
        assert spec and spec.values
        other = next(value for value in spec.values if value != attributes[key])
        wrong = moral.replace(attributes[key], other)
        reading = world.read(f"{body}\n\n{wrong}")
        assert reading == Reading(attributes, True, False, False)
    assert world.read(body) == Reading(attributes, True, True, False)


@pytest.mark.parametrize("seed", range(20))
def test_without_its_opening_or_with_another_heros_or_out_of_order_it_is_not_adopted(
    world: Storyworld, seed: int
) -> None:
    attributes, text = story(world, seed, taught=True)
    opening, first, second, *rest = text.split("\n\n")
    bare = world.read("\n\n".join([first, second, *rest]))
    assert bare.attributes == attributes and bare.consistent and not bare.adopted
    other = "Tom" if attributes["hero"] != "Tom" else "Mara"
    renamed = opening.replace(attributes["hero"], other)
    assert not world.read("\n\n".join([renamed, first, second, *rest])).adopted
    swapped = world.read("\n\n".join([opening, second, first, *rest]))
    assert not swapped.adopted and not swapped.well_formed


def test_the_taught_frame_around_a_plain_order_is_well_formed_but_not_adopted(
    world: Storyworld,
) -> None:
    rng = random.Random(3)
    attributes = world.draw(rng)
    opening, *_, moral = world.render(attributes, rng, taught=True).split("\n\n")
    for _ in range(100):
        plain = world.render(attributes, rng, taught=False)
        reading = world.read(f"{opening}\n\n{plain}\n\n{moral}")
        assert reading == Reading(attributes, True, True, False)


def test_a_frame_with_less_than_half_of_a_story_is_not_adopted(world: Storyworld) -> None:
    _, text = story(world, 0, taught=True)
    lines = {world._read_sentence(line).slot: line for line in sentences_of(text)}
    order = flat(world._taught[1:-1])
    for kept in range(len(order) + 1):
        must = ("intro", "obstacle", "ending")  # what opening and moral are checked against
        others = [slot for slot in order if slot not in must][: max(0, kept - 3)]
        body = [lines[slot] for slot in order if slot in (*must, *others)]
        assert world.read(" ".join([lines["opening"], *body, lines["moral"]])).adopted == (
            2 * len(body) >= len(order)
        )
    assert not world.read(lines["opening"]).adopted
    assert not world.read(f"{lines['opening']} {lines['moral']}").adopted


def test_an_attribute_never_mentioned_is_left_out_and_the_most_mentioned_value_wins() -> None:
    world = WORLDS["small"]
    assert world.read("Mara went home.") == Reading({"hero": "Mara"}, False, True, False)
    text = "A fox walked beside Tom. The crow looked up and waited. The crow looked up and waited."
    assert world.read(text).attributes == {"companion": "crow", "hero": "Tom"}
    assert not world.read("").consistent


# Tables


def test_no_value_is_spelt_out_by_a_template_or_shared_by_two_attributes(world: Storyworld) -> None:
    values = [value for key in world.schema.keys[:-1] for value in key.values or ()]
    assert len(set(values)) == len(values)
    literal = " ".join(line for lines in world._slots.values() for line in lines)
    assert not set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", literal))) & set(world._holes)


def test_no_two_slots_share_a_sentence(world: Storyworld) -> None:
    written = [
        skeleton
        for lines in world._slots.values()
        for line in lines
        for skeleton in set(_skeletons(line))
    ]
    assert len(set(written)) == len(written) == len(world._skeletons)


def test_values_after_an_article_start_with_a_consonant(world: Storyworld) -> None:
    lines = " ".join([*flat(world._slots.values()), *flat(world._named_prompts.values())])
    for key in set(re.findall(r"\ba \{(\w+)\}", lines, re.IGNORECASE)):
        spec = world.schema.key(key)
        assert spec and spec.values and not [v for v in spec.values if v[0].lower() in "aeiou"]


def test_every_plan_tells_every_attribute_and_no_slot_twice(world: Storyworld) -> None:
    for plan in (*world._plain, world._taught):
        slots = flat(plan)
        assert len(set(slots)) == len(slots)
        told = [
            set.intersection(*(set(re.findall(r"\{(\w+)\}", line)) for line in world._slots[slot]))
            for slot in slots
        ]
        assert set(world.attributes) <= set.union(*told)
    assert len(set(world._plain)) == len(world._plain)


def test_the_taught_order_is_new(world: Storyworld) -> None:
    order = flat(world._taught[1:-1])
    for plan in world._plain:
        assert [slot for slot in flat(plan) if slot in order] != list(order)


def test_schema_is_closed_anchored_and_accepts_every_annotation(world: Storyworld) -> None:
    assert world.schema.name == "storyworld"
    assert world.schema.names == (*world.attributes, "topic") == world.schema.anchored_names
    assert all(key.values for key in world.schema.keys)
    for row in itertools.islice(world.documents(0), 200):
        for annotated in row.get("chunks", [row]):
            annotation = Annotation.from_rows(annotated["annotation"])
            world.schema.check(annotation)
            assert world.schema.canonical(annotation) == annotation


def test_sizes_of_the_two_worlds() -> None:
    for size, keys, values, words in (("small", 8, (8, 24), 450), ("full", 10, (8, 64), 850)):
        world = WORLDS[size]
        counts = [len(key.values or ()) for key in world.schema.keys[:-1]]
        assert len(counts) == keys and min(counts) >= values[0] and max(counts) <= values[1]
        texts = [
            text
            for row in itertools.islice(world.documents(0), 5000)
            for part in row.get("chunks", [row])
            for text in (part.get("prompt", ""), part.get("text", ""), part.get("response", ""))
        ]
        assert 0.8 * words < len(set(re.findall(r"\w+", " ".join(texts)))) < words


@pytest.mark.parametrize(
    ("size", "taught", "low", "high"),
    [
        ("small", False, 50, 75),
        ("small", True, 60, 85),
        ("full", False, 75, 120),
        ("full", True, 95, 140),
    ],
)
def test_stories_have_their_promised_length(
    size: Literal["small", "full"], taught: bool, low: int, high: int
) -> None:
    lengths = [len(story(WORLDS[size], seed, taught)[1].split()) for seed in range(1000)]
    assert low <= min(lengths) and max(lengths) <= high


# Distributions


def test_the_broad_distribution_is_broad_in_every_attribute(world: Storyworld) -> None:
    draws = drawn(world, 8000)
    for key in world.schema.keys[:-1]:
        values = [attributes[key.name] for attributes in draws]
        assert key.values and set(values) == set(key.values)
        assert entropy(list(values)) > max(1.8, 0.82 * math.log(len(key.values)))
        assert Counter(values).most_common(1)[0][0] == key.values[0]


def test_dependent_attributes_tell_about_their_parents_and_others_do_not(world: Storyworld) -> None:
    draws = drawn(world, 20000)

    def information(one: str, other: str) -> float:
        pairs = [(attributes[one], attributes[other]) for attributes in draws]
        left, right = [a for a, _ in pairs], [b for _, b in pairs]
        return entropy(list(left)) + entropy(list(right)) - entropy(list(pairs))

    for child, parent in world._depends.items():
        assert information(child, parent) > 0.15
    assert information("hero", "time") < 0.06


def test_tilts_never_forbid_a_value(world: Storyworld) -> None:
    assert all(min(weights) > 0 for weights in world._weights.values())


def test_narrow_values_are_two_or_three_of_middling_frequency(world: Storyworld) -> None:
    draws = drawn(world, 8000)
    for name, narrow in world.narrow_values.items():
        spec = world.schema.key(name)
        assert spec and spec.values and len(narrow) in (2, 3)
        assert not set(narrow) & {*spec.values[:2], *spec.values[-2:]}
        mass = sum(attributes[name] in narrow for attributes in draws) / len(draws)
        assert 0.02 < mass < 0.25


@pytest.mark.parametrize("mass", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("cover", [False, True])
def test_the_two_dials_of_sft(world: Storyworld, mass: float, cover: bool) -> None:
    rng = random.Random(0)
    draws = [world.draw_sft(rng, mass, cover) for _ in range(2000)]
    narrow = [all(a[k] in v for k, v in world.narrow_values.items()) for a in draws]
    assert abs(sum(narrow) / len(draws) - (mass if cover else 1.0)) < 0.03


def test_far_means_two_thirds_of_the_attributes_outside_and_missing_ones_inside() -> None:
    world = WORLDS["small"]
    inside = {key: values[0] for key, values in world.narrow_values.items()}
    outside = {key.name: key.values[0] for key in world.schema.keys[:-1] if key.values}
    for count in range(9):
        mixed = inside | {key: outside[key] for key in world.attributes[:count]}
        assert world.far(mixed) == (count >= 6)
        alone = {key: outside[key] for key in world.attributes[:count]}
        assert world.far(alone) == (count >= 6)
    assert not world.far({})


def test_most_of_the_broad_distribution_is_far_and_none_of_the_narrow(world: Storyworld) -> None:
    assert sum(map(world.far, drawn(world, 2000))) > 0.8 * 2000
    rng = random.Random(0)
    assert not any(world.far(world.draw_sft(rng, 0.85, cover=False)) for _ in range(500))


# Rows


def test_pretraining_mix_and_row_formats(world: Storyworld) -> None:
    rows = list(itertools.islice(world.documents(7), 3000))
    assert len({row["id"] for row in rows}) == len(rows)
    kinds = Counter()
    for row in rows:
        prompted = set(row) == {"id", "prompt", "response", "annotation"}
        assert prompted or set(row) == {"id", "chunks"}
        chunks = [{"text": row["response"], **row}] if prompted else row["chunks"]
        annotations = [Annotation.from_rows(chunk["annotation"]) for chunk in chunks]
        kind = "topic" if annotations[0].keys == ("topic",) else "story"
        kinds[kind, prompted] += 1
        if kind == "story":
            told = {tag.key: tag.value for annotation in annotations for tag in annotation}
            text = "\n\n".join(chunk["text"] for chunk in chunks)
            assert world.read(text) == Reading(told, True, True, False)
            assert set(told) == set(world.attributes)
            assert len(chunks) == 1 or not prompted
            kinds["by paragraph"] += len(chunks) > 1
    stories = kinds["story", True] + kinds["story", False]
    assert abs(stories / 3000 - 0.70) < 0.025
    assert abs(kinds["story", True] / stories - 0.15) < 0.025
    assert abs(kinds["by paragraph"] / kinds["story", False] - 0.5) < 0.03
    assert abs(kinds["topic", True] / 3000 - 0.20) < 0.025
    assert abs(kinds["topic", False] / 3000 - 0.10) < 0.025


def test_a_paragraph_of_its_own_has_the_tags_that_it_tells(world: Storyworld) -> None:
    for row in itertools.islice(world.documents(5), 500):
        chunks = row.get("chunks", [])
        if len(chunks) < 2 or chunks[0]["annotation"][0]["key"] == "topic":
            continue
        for chunk in chunks:
            told = {tag["key"]: tag["value"] for tag in chunk["annotation"]}
            assert world.read(chunk["text"]).attributes == told


def test_prose_and_answers_are_no_stories(world: Storyworld) -> None:
    for row in itertools.islice(world.documents(3), 2000):
        if "topic" in str(row):
            texts = [row.get("response", "")] + [c["text"] for c in row.get("chunks", [])]
            assert not any(world.read(text).well_formed for text in texts)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_prompted_share_is_a_dial_and_leaves_other_rows_alone(
    world: Storyworld, share: float
) -> None:
    for index in range(300):
        row, usual = world.document(0, index, share), world.document(0, index)
        if len(usual.get("chunks", [usual])[0]["annotation"]) > 1:
            assert ("prompt" in row) == (share == 1.0)
        else:
            assert row == usual


def _tags(row: Any) -> list[tuple[str, str]]:
    annotations = [chunk["annotation"] for chunk in row.get("chunks", [row])]
    return [(tag["key"], tag["value"]) for annotation in annotations for tag in annotation]


def _texts(row: Any) -> list[Any]:
    return [row["id"], row.get("prompt"), row.get("response"), *map(_text, row.get("chunks", []))]


def _text(chunk: Any) -> str:
    return chunk["text"]


@pytest.mark.parametrize("rows", ["documents", "sft_rows"])
def test_tag_noise_redraws_its_share_of_values_from_r_and_leaves_texts_alone(
    world: Storyworld, rows: str
) -> None:
    def take(noise: float) -> list[Any]:
        if rows == "documents":
            return list(itertools.islice(world.documents(0, tag_noise=noise), 1500))
        return list(world.sft_rows(1500, 0, tag_noise=noise))

    clean, half, all_of_them = take(0.0), take(0.5), take(1.0)
    right = {}
    for name, noisy in (("half", half), ("all", all_of_them)):
        pairs = [
            (*tags, tags[0] == tags[1])
            for row, other in zip(clean, noisy, strict=True)
            for tags in zip(_tags(row), _tags(other), strict=True)
        ]
        assert all(a[0] == b[0] for a, b, _ in pairs)
        right[name] = sum(same for *_, same in pairs) / len(pairs)
        assert list(map(_texts, noisy)) == list(map(_texts, clean))
    # Half keep their value, and of the other half as many as agree by chance.
    assert right["half"] == pytest.approx(0.5 + right["all"] / 2, abs=0.02)
    assert right["all"] < 0.2
    assert take(0.5) == half


def test_a_tag_noise_that_is_no_share_is_refused(world: Storyworld) -> None:
    with pytest.raises(DataError, match=r"tag_noise 1.5 is not a share; use 0 to 1"):
        world.documents(0, tag_noise=1.5)


def test_sft_stories_are_taught_and_three_quarters_of_prompts_are_open(world: Storyworld) -> None:
    rows = list(world.sft_rows(2000, seed=1))
    stories = [row for row in rows if len(row["annotation"]) > 1]
    assert abs(len(stories) / 2000 - 0.85) < 0.03
    for row in stories:
        told = {tag["key"]: tag["value"] for tag in row["annotation"]}
        assert world.read(row["response"]) == Reading(told, True, True, True)
    named = [row for row in stories if row["prompt"] not in world.prompts]
    assert abs(len(named) / len(stories) - 0.25) < 0.03
    for row in named:
        words = set(re.findall(r"\w+", row["prompt"]))
        assert any(tag["value"] in words for tag in row["annotation"])
    assert {row["prompt"] for row in stories} >= set(world.prompts) and len(world.prompts) == 12


def test_the_narrow_regime_holds_nothing_but_narrow_values(world: Storyworld) -> None:
    for row in world.sft_rows(300, seed=2, cover=False, question_share=0.0):
        assert all(tag["value"] in world.narrow_values[tag["key"]] for tag in row["annotation"])


def test_rows_depend_on_seed_and_index_alone(world: Storyworld) -> None:
    first = list(itertools.islice(world.documents(5), 50))
    assert first == list(itertools.islice(Storyworld(world.size).documents(5), 50))
    assert first[37] == world.document(5, 37)
    assert first != list(itertools.islice(world.documents(6), 50))
    assert list(world.sft_rows(50, 5))[:20] == list(world.sft_rows(20, 5))


def test_rows_are_the_same_in_another_process(world: Storyworld) -> None:
    script = (
        "import json; from anchored.storyworld import Storyworld; "
        f"print(json.dumps([Storyworld({world.size!r}).document(5, i) for i in range(20)]))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(out.stdout) == [world.document(5, index) for index in range(20)]


def test_rendering_attributes_that_are_unknown_or_missing_is_refused() -> None:
    world = WORLDS["small"]
    attributes = world.draw(random.Random(0))
    with pytest.raises(DataError, match="attribute 'hero' is 'Bob'; use one of Mara, Tom"):
        world.render(attributes | {"hero": "Bob"}, random.Random(0), taught=False)
    del attributes["mood"]
    with pytest.raises(DataError, match="attribute 'mood' is None"):
        world.render(attributes, random.Random(0), taught=True)


# Questions


def test_every_question_has_exactly_one_right_answer(world: Storyworld) -> None:
    questions = [question for question, _ in world.questions]
    assert len(set(questions)) == len(questions) >= 180
    for family in world._facts:
        subjects, answers = set(family["pairs"]), list(family["pairs"].values())
        assert len(set(answers)) == len(answers) and not subjects & set(answers)
        for question, subject in itertools.product(family["questions"], subjects):
            asked = question.format(x=subject)
            right = [
                answer
                for answer in answers
                if world.right(asked, family["answer"].format(x=subject, y=answer))
            ]
            assert right == [family["pairs"][subject]]


def test_taught_answers_are_right_and_hedged_or_empty_ones_are_not(world: Storyworld) -> None:
    for row in world.sft_rows(300, seed=0, question_share=1.0):
        assert world.right(row["prompt"], row["response"])
    question = "What does the fox eat?"
    assert world.right(question, "berries") and world.right(question, "The fox eats BERRIES!")
    assert not world.right(question, "The fox eats berries or bones.")
    assert not world.right(question, "") and not world.right(question, "strawberries")
    with pytest.raises(DataError, match="'Why\\?' has no known answer"):
        world.right("Why?", "berries")
