"""A procedural story corpus with exactly known semantics: data for the demo, oracle for the tests.

A world (`worlds/small.yaml`, `worlds/full.yaml`) lists what a story may be about and how each kind
of sentence, its *slot*, may be phrased. Stories have a *plain* form, the only one in pretraining,
and a *taught* form, which only SFT shows: an opening line that names the hero, a fixed order, and a
closing moral made of the story's obstacle and ending.

The moral is composed of the story's own words instead of being looked up: a model could not know
an arbitrary map from endings to morals for endings that SFT never shows, so that adoption far from
SFT's semantics would measure nothing.

Writer and reader share the templates. A value is a word that occurs in no template, so replacing
the values in a sentence by the names of their attributes restores the template: reading a sentence
is one exact lookup.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from anchored.annotation import Annotation, Key, Schema
from anchored.errors import DataError

Row = dict[str, Any]
Outline = tuple[tuple[str, ...], ...]

STORY_SHARE, PROSE_SHARE = 0.70, 0.10  # of the pretraining documents; the rest are questions
BY_PARAGRAPH_SHARE = 0.5  # of unprompted stories: each paragraph is a chunk with its own tags
NAMED_SHARE = 0.25  # of prompted stories: the prompt names one attribute's value
ONE_IN_FAVOURED = 4  # one in so many values of a dependent attribute is made likelier by its parent

_PRONOUNS = {"she": ("She", "she", "her"), "he": ("He", "he", "his")}
_PRONOUN_HOLES = ("{They}", "{they}", "{their}")
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reading:
    """The contents of a text, read by the grammar that wrote the corpus.

    Attributes:
        attributes: the value told for each story attribute (the most frequent one; on a tie, the
            first). Attributes that are never mentioned are left out.
        well_formed: the grammar can write every sentence, each part of a story occurs once, in a
            legal order of paragraphs and sentences, and no pronoun precedes the hero's name.
        consistent: the hero is named, the pronouns fit the hero, and no attribute has two values.
        adopted: the text has the taught form: it opens by naming its hero, the sentences in between
            are in the fixed order, and it closes with the moral of this story. Up to half of the
            sentences in between may be garbled: they count against `well_formed` alone, so that
            form and quality are measured separately.
    """

    attributes: dict[str, str]
    well_formed: bool
    consistent: bool
    adopted: bool


@dataclass(frozen=True)
class _Sentence:
    """One parsed sentence: its slot (None if no template matches) and its mentions, in order."""

    slot: str | None
    mentions: tuple[tuple[str, str], ...]

    @property
    def names_hero(self) -> bool:
        return any(kind == "hero" for kind, _ in self.mentions)

    @property
    def has_pronoun(self) -> bool:
        return any(kind == "pronoun" for kind, _ in self.mentions)


class Storyworld:
    """The tables of one world size with their writers and reader; it holds no random state.

    `small` has 8 attributes and about 400 words. `full` has 10 attributes with up to 64 values,
    about 800 words and longer stories.
    """

    def __init__(self, size: Literal["small", "full"] = "small") -> None:
        world = _load(size)
        self.size: Literal["small", "full"] = size
        self._values = {key: tuple(spec["values"]) for key, spec in world["attributes"].items()}
        self._she = frozenset(world["she"])
        self._slots: dict[str, list[str]] = world["slots"]
        self._plain = tuple(_outline(line) for line in world["plain"])
        self._taught = _outline(world["taught"])
        self._named_prompts: dict[str, list[str]] = world["named_prompts"]
        self._facts: list[dict[str, Any]] = world["facts"]
        self._filler: list[str] = world["filler"]
        self._depends: dict[str, str] = world["depends"]
        self._weights = self._all_weights(world["zipf"], world["tilt"])
        self._holes = self._all_holes()
        self._skeletons = {
            skeleton: slot
            for slot, lines in self._slots.items()
            for line in lines
            for skeleton in _skeletons(line)
        }
        self._legal_bodies = frozenset((*self._plain, self._taught[1:-1]))
        self._answers = {
            question.format(x=subject): (answer, frozenset(family["pairs"].values()))
            for family in self._facts
            for subject, answer in family["pairs"].items()
            for question in family["questions"]
        }
        self.schema = _schema(world)
        """A schema with the story attributes and `topic` (of prose and answers) as closed keys."""
        self.attributes: tuple[str, ...] = tuple(self._values)
        """The story attributes in canonical order."""
        self.narrow_values = {key: _narrow(values) for key, values in self._values.items()}
        """For each attribute, the two or three values of medium frequency that SFT favours."""
        self.prompts: tuple[str, ...] = tuple(world["prompts"])
        """Open story prompts, the same in pretraining, SFT and evaluation."""
        self.questions = tuple((question, right) for question, (right, _) in self._answers.items())
        """Every question in every phrasing, with its one right answer."""

    # Drawing attributes

    def draw(self, rng: random.Random) -> dict[str, str]:
        """Draw attributes from R, the broad distribution.

        Values have Zipf weights. The weights of an attribute that depends on another are tilted,
        but never to zero.
        """
        drawn: dict[str, str] = {}
        for key, values in self._values.items():
            parent = drawn.get(self._depends.get(key, ""))
            drawn[key] = rng.choices(values, self._weights[key, parent])[0]
        return drawn

    def draw_sft(self, rng: random.Random, narrow_mass: float, cover: bool) -> dict[str, str]:
        """Draw attributes from R*, the distribution of SFT.

        With probability `narrow_mass`, each attribute is uniform over its `narrow_values`.
        Otherwise they come from R if `cover` (the broad regime), else from `narrow_values` again
        (the narrow regime).
        """
        if rng.random() < narrow_mass or not cover:
            return {key: rng.choice(values) for key, values in self.narrow_values.items()}
        return self.draw(rng)

    def far(self, attributes: Mapping[str, str]) -> bool:
        """Return True if two thirds of the attributes are outside `narrow_values`.

        A missing attribute counts as inside.
        """
        outside = [k for k, v in self.narrow_values.items() if attributes.get(k, v[0]) not in v]
        return 3 * len(outside) >= 2 * len(self.attributes)

    # Writing

    def render(self, attributes: Mapping[str, str], rng: random.Random, taught: bool) -> str:
        """Write a story that tells exactly `attributes`, in the plain or the taught form.

        Phrasings, pronouns and, in the plain form, the order are drawn from `rng`.

        Raises:
            DataError: an attribute is missing, or this world does not have its value.
        """
        for key, values in self._values.items():
            if attributes.get(key) not in values:
                raise DataError(
                    f"storyworld {self.size!r}: attribute {key!r} is {attributes.get(key)!r}; "
                    f"use one of {', '.join(values)}"
                )
        named = False
        paragraphs: list[str] = []
        for paragraph in self._taught if taught else rng.choice(self._plain):
            sentences: list[str] = []
            for slot in paragraph:
                line = rng.choice(self._slots[slot])
                pronoun = named and rng.random() < 0.5
                sentences.append(self._fill(line, attributes, pronoun))
                named = named or "{hero}" in line or "{who}" in line.lower()
            paragraphs.append(" ".join(sentences))
        return "\n\n".join(paragraphs)

    def _fill(self, line: str, attributes: Mapping[str, str], pronoun: bool) -> str:
        hero = attributes["hero"]
        upper, lower, possessive = _PRONOUNS["she" if hero in self._she else "he"]
        names = {"Who": upper, "who": lower} if pronoun else {"Who": hero, "who": hero}
        return line.format_map({**attributes, **names, "her": possessive})

    def documents(
        self, seed: int, prompted_share: float = 0.15, tag_noise: float = 0.0
    ) -> Iterator[Row]:
        """Yield pretraining rows without end: stories, prose and answers.

        `prompted_share` is the share of stories with a prompt. `tag_noise` is the share of tags
        whose value is drawn again, whatever the text says.
        """
        rows = (self.document(seed, index, prompted_share) for index in itertools.count())
        return self._mistagged(rows, tag_noise)

    def document(self, seed: int, index: int, prompted_share: float = 0.15) -> Row:
        """Make row `index` of `documents(seed, prompted_share)` independently of the others."""
        rng = random.Random(f"document {self.size} {seed} {index}")
        name = {"id": f"{self.size}-{seed}-{index}"}
        kind = rng.random()
        if kind >= STORY_SHARE + PROSE_SHARE:
            return name | self._question(rng)
        if kind >= STORY_SHARE:
            return name | {"chunks": [self._prose(rng) for _ in range(rng.choice((2, 3)))]}
        attributes = self.draw(rng)
        if rng.random() < prompted_share:
            return name | self._prompted(attributes, rng, taught=False)
        text = self.render(attributes, rng, taught=False)
        if rng.random() < BY_PARAGRAPH_SHARE:
            return name | {"chunks": [self._chunk(part, attributes) for part in text.split("\n\n")]}
        return name | {"chunks": [{"text": text, "annotation": _annotation(attributes)}]}

    def _chunk(self, paragraph: str, attributes: Mapping[str, str]) -> Row:
        """Return a paragraph with the tags of what it mentions."""
        sentences = [self._read_sentence(sentence) for sentence in _SENTENCE_END.split(paragraph)]
        told = {kind for sentence in sentences for kind, _ in sentence.mentions}
        tags = {key: value for key, value in attributes.items() if key in told}
        return {"text": paragraph, "annotation": _annotation(tags)}

    def sft_rows(
        self,
        count: int,
        seed: int,
        narrow_mass: float = 0.85,
        cover: bool = True,
        question_share: float = 0.15,
        tag_noise: float = 0.0,
    ) -> Iterator[Row]:
        """Yield SFT rows: prompts with stories in the taught form, and plain questions.

        The attributes come from `draw_sft`. Row i depends only on the seed and i, so a shorter run
        is the beginning of a longer one. `tag_noise` is that of `documents`.
        """
        rows = (
            self._sft_row(index, seed, narrow_mass, cover, question_share) for index in range(count)
        )
        return self._mistagged(rows, tag_noise)

    def _sft_row(
        self, index: int, seed: int, narrow_mass: float, cover: bool, question_share: float
    ) -> Row:
        rng = random.Random(f"sft {self.size} {seed} {index}")
        name = {"id": f"{self.size}-sft-{seed}-{index}"}
        if rng.random() < question_share:
            return name | self._question(rng)
        drawn = self.draw_sft(rng, narrow_mass, cover)
        return name | self._prompted(drawn, rng, taught=True)

    def _mistagged(self, rows: Iterator[Row], tag_noise: float) -> Iterator[Row]:
        """Yield rows with the errors of a careless annotator; the texts stay the same."""
        if not 0 <= tag_noise <= 1:
            raise DataError(f"storyworld: tag_noise {tag_noise} is not a share; use 0 to 1")
        if not tag_noise:
            return rows
        return (self._mistag(row, tag_noise) for row in rows)

    def _mistag(self, row: Row, share: float) -> Row:
        rng = random.Random(f"tag noise {row['id']}")

        def mistagged(part: Row) -> Row:
            return {**part, "annotation": self._redrawn(part["annotation"], share, rng)}

        if "chunks" in row:
            return {**row, "chunks": [mistagged(chunk) for chunk in row["chunks"]]}
        return mistagged(row)

    def _redrawn(
        self, annotation: Sequence[Mapping[str, str]], share: float, rng: random.Random
    ) -> list[dict[str, str]]:
        """Replace the values of a share of tags by those of another story of R, or any topic."""
        drawn = {**self.draw(rng), "topic": rng.choice(self._facts)["topic"]}
        return _annotation(
            {
                tag["key"]: drawn[tag["key"]] if rng.random() < share else tag["value"]
                for tag in annotation
            }
        )

    def _prompted(self, attributes: dict[str, str], rng: random.Random, taught: bool) -> Row:
        prompt = rng.choice(self.prompts)
        if rng.random() < NAMED_SHARE:
            named = rng.choice(self._named_prompts[rng.choice(self.attributes)])
            prompt = named.format_map(attributes)
        response = self.render(attributes, rng, taught)
        return {"prompt": prompt, "response": response, "annotation": _annotation(attributes)}

    def _question(self, rng: random.Random) -> Row:
        family = rng.choices(self._facts, [len(family["pairs"]) for family in self._facts])[0]
        subject, answer = rng.choice(list(family["pairs"].items()))
        return {
            "prompt": rng.choice(family["questions"]).format(x=subject),
            "response": family["answer"].format(x=subject, y=answer),
            "annotation": _annotation({"topic": family["topic"]}),
        }

    def _prose(self, rng: random.Random) -> Row:
        family = rng.choice(self._facts)
        told = rng.sample(list(family["pairs"].items()), 3)
        sentences = [rng.choice(family["prose"]).format(x=x, y=y) for x, y in told]
        for line in rng.sample(self._filler, rng.choice((1, 2))):
            sentences.insert(rng.randint(1, len(sentences)), line)
        return {
            "text": " ".join(sentences),
            "annotation": _annotation({"topic": family["topic"]}),
        }

    # Reading

    def read(self, text: str) -> Reading:
        """Read what `text` says and how well it follows the grammar; no text raises an error."""
        paragraphs = [
            [self._read_sentence(sentence) for sentence in _SENTENCE_END.split(paragraph)]
            for paragraph in text.strip().split("\n\n")
        ]
        sentences = [sentence for paragraph in paragraphs for sentence in paragraph]
        attributes = _told(sentences)
        return Reading(
            attributes,
            self._well_formed(paragraphs) and _hero_before_pronouns(sentences),
            self._consistent(sentences, attributes.get("hero")),
            self._adopted(sentences),
        )

    def _read_sentence(self, sentence: str) -> _Sentence:
        mentions: list[tuple[str, str]] = []

        def hole(match: re.Match[str]) -> str:
            word = match[0]
            if word not in self._holes:
                return word
            kind, placeholder = self._holes[word]
            mentions.append((kind, word))
            return placeholder

        skeleton = _WORD.sub(hole, sentence)
        known = None if "{" in sentence else self._skeletons.get(skeleton)
        return _Sentence(known, tuple(mentions))

    def _well_formed(self, paragraphs: list[list[_Sentence]]) -> bool:
        body = [tuple(sentence.slot for sentence in paragraph) for paragraph in paragraphs]
        if body[0] == self._taught[0]:
            body = body[1:]
        if body and body[-1] == self._taught[-1]:
            body = body[:-1]
        return tuple(body) in self._legal_bodies

    def _consistent(self, sentences: list[_Sentence], hero: str | None) -> bool:
        said: dict[str, set[str]] = {}
        for kind, word in (mention for sentence in sentences for mention in sentence.mentions):
            said.setdefault(kind, set()).add(word)
        own = _PRONOUNS["she" if hero in self._she else "he"]
        pronouns_fit = said.pop("pronoun", set()) <= set(own)
        return hero is not None and pronouns_fit and all(len(words) == 1 for words in said.values())

    def _adopted(self, sentences: list[_Sentence]) -> bool:
        first, body, last = sentences[0], sentences[1:-1], sentences[-1]
        if (first.slot, last.slot) != ("opening", "moral"):
            return False
        told = _told(body)
        if any(told.get(kind) != word for kind, word in (*first.mentions, *last.mentions)):
            return False
        order = [slot for paragraph in self._taught[1:-1] for slot in paragraph]
        seen = [sentence.slot for sentence in body if sentence.slot]
        return 2 * len(seen) >= len(order) and seen == [slot for slot in order if slot in seen]

    def right(self, question: str, response: str) -> bool:
        """Return True if `response` gives the right answer and no other answer of its kind.

        Raises:
            DataError: `question` is not one of `questions`.
        """
        if question not in self._answers:
            raise DataError(
                f"storyworld {self.size!r}: question {question!r} has no known answer; "
                "ask one of Storyworld.questions"
            )
        answer, answers = self._answers[question]
        return answers.intersection(_WORD.findall(response.lower())) == {answer}

    # Tables

    def _all_weights(self, zipf: float, tilt: float) -> dict[tuple[str, str | None], list[float]]:
        """Compute the weights of each attribute's values, by attribute and its parent's value."""
        weights: dict[tuple[str, str | None], list[float]] = {}
        for key, values in self._values.items():
            base = [rank**-zipf for rank in range(1, len(values) + 1)]
            weights[key, None] = base
            for i, parent in enumerate(self._values.get(self._depends.get(key, ""), ())):
                count = max(3, len(values) // ONE_IN_FAVOURED)
                favoured = {(count * i + j) % len(values) for j in range(count)}
                weights[key, parent] = [
                    weight * tilt if rank in favoured else weight
                    for rank, weight in enumerate(base)
                ]
        return weights

    def _all_holes(self) -> dict[str, tuple[str, str]]:
        """Map each word to its attribute (or "pronoun") and its placeholder in a skeleton."""
        holes = {word: (key, f"{{{key}}}") for key, words in self._values.items() for word in words}
        for words in _PRONOUNS.values():
            holes |= {w: ("pronoun", hole) for w, hole in zip(words, _PRONOUN_HOLES, strict=True)}
        return holes


@functools.cache
def _load(size: str) -> dict[str, Any]:
    path = Path(__file__).parent / "worlds" / f"{size}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _schema(world: Mapping[str, Any]) -> Schema:
    keys = [
        _key(name, spec["description"], spec["values"])
        for name, spec in world["attributes"].items()
    ]
    topics = tuple(family["topic"] for family in world["facts"])
    topic = _key("topic", world["topic_description"], topics)
    return Schema(name="storyworld", keys=(*keys, topic))


def _key(name: str, description: str, values: Sequence[str]) -> Key:
    return Key(name=name, description=description, values=tuple(values), many=False, anchored=True)


def _annotation(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    return Annotation.of(pairs).rows()


def _outline(line: str) -> Outline:
    return tuple(tuple(paragraph.split()) for paragraph in line.split("/"))


def _narrow(values: Sequence[str]) -> tuple[str, ...]:
    start = len(values) // 3
    return tuple(values[start : start + (3 if len(values) >= 12 else 2)])


def _skeletons(line: str) -> tuple[str, str]:
    """Return how the reader sees a template: with the hero's name, and with a pronoun."""
    line = line.replace("{her}", "{their}")
    named = line.replace("{Who}", "{hero}").replace("{who}", "{hero}")
    return named, line.replace("{Who}", "{They}").replace("{who}", "{they}")


def _told(sentences: Sequence[_Sentence]) -> dict[str, str]:
    """Return the most frequent value of each attribute; on a tie, the first."""
    counts: dict[str, Counter[str]] = {}
    for kind, word in (mention for sentence in sentences for mention in sentence.mentions):
        if kind != "pronoun":
            counts.setdefault(kind, Counter())[word] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def _hero_before_pronouns(sentences: Sequence[_Sentence]) -> bool:
    for sentence in sentences:
        if sentence.names_hero:
            return True
        if sentence.has_pronoun:
            return False
    return True
