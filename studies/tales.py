"""Build the corpus of the study on real text: pretraining documents, and tales for SFT.

Children's tales are held out of pretraining. A story is split into its opening, which becomes the
answer to a request that leaves the content open, and the rest. Everything else is plain documents.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anchored.config import Config
from anchored.files import building, read_jsonl
from anchored.segments import split_chunks

TAUGHT = "generated-child"
TAUGHT_STYLE = "children's tale"
REQUESTS = (
    "Write a {}.",
    "Tell me a {}.",
    "Please write a {} for me.",
    "I would like to hear a {}.",
    "Make up a {}.",
    "Tell us a {}, please.",
)


class CorpusConfig(Config):
    """What is taken from the shared data.

    Args:
        story_chars, book_chars, mixed_chars: characters of each kind of text, drawn evenly.
        opening_chars: a story's first paragraphs up to this length answer a request for a story.
        held_out: number of tales that SFT never sees, for training the adoption classifier.
        seed: seed of all draws; the same for all seeds of the study.
    """

    story_chars: int = 24_000_000
    book_chars: int = 36_000_000
    mixed_chars: int = 40_000_000
    opening_chars: int = 400
    held_out: int = 400
    seed: int = 0


def build_corpus(config: CorpusConfig, data: Path, out: Path) -> None:
    """Write documents.jsonl (pretraining), sft.jsonl and held_out.jsonl (tales) into `out`."""
    if out.exists():
        return
    rng = random.Random(f"{config.seed}:corpus")
    rows = [row for _, row in read_jsonl(data / "stories" / "stories.jsonl.xz")]
    stories = [row for row in rows if row["kind"] != TAUGHT]
    tales = [row for row in rows if row["kind"] == TAUGHT]
    rng.shuffle(stories)
    rng.shuffle(tales)
    documents = [
        *_up_to(config.story_chars, _openings(stories, config)),
        *_books(data, config, rng),
        *_mixed(data, config, rng),
    ]
    rng.shuffle(documents)
    answers = [_answer(row, config) for row in tales]
    with building(out) as folder:
        _write(folder / "documents.jsonl", documents)
        _write(folder / "held_out.jsonl", answers[: config.held_out])
        _write(folder / "sft.jsonl", answers[config.held_out :])


def _openings(stories: Iterable[dict[str, Any]], config: CorpusConfig) -> Iterator[dict[str, Any]]:
    """Yield each story's opening, with a request that leaves the content open, and its rest."""
    for row in stories:
        opening, rest = _opening(row["text"], config.opening_chars)
        request = _request(row["id"], row["labels"]["style"], config.seed)
        yield {"id": row["id"], "prompt": request, "text": opening}
        if rest:
            yield {"id": f"{row['id']}:rest", "text": rest}


def _opening(text: str, chars: int) -> tuple[str, str]:
    """Split off the first paragraphs, or sentences, up to `chars` characters."""
    parts = split_chunks(text.strip(), min_chars=1, max_chars=chars)
    end, length = 1, len(parts[0])
    while end < len(parts) and length + len(parts[end].rstrip()) <= chars:
        length += len(parts[end])
        end += 1
    return "".join(parts[:end]).rstrip(), "".join(parts[end:])


def _request(name: str, style: str, seed: int) -> str:
    return random.Random(f"{seed}:request:{name}").choice(REQUESTS).format(style)


def _answer(row: dict[str, Any], config: CorpusConfig) -> dict[str, Any]:
    return {
        "id": row["id"],
        "prompt": _request(row["id"], TAUGHT_STYLE, config.seed),
        "response": _opening(row["text"], config.opening_chars)[0],
    }


def _books(data: Path, config: CorpusConfig, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield equally much text of each book, cut at paragraphs into documents of four pages."""
    books = [row for _, row in read_jsonl(data / "prose" / "books.jsonl.xz")]
    share = config.book_chars // len(books)
    for row in books:
        paragraphs = split_chunks(row["text"], min_chars=4000, max_chars=8000)
        rng.shuffle(paragraphs)
        pages = (
            {"id": f"{row['id']}:{n}", "text": text.strip()} for n, text in enumerate(paragraphs)
        )
        yield from _up_to(share, pages)


def _mixed(data: Path, config: CorpusConfig, rng: random.Random) -> Iterator[dict[str, Any]]:
    rows = [row for _, row in read_jsonl(data / "prose" / "mixed.jsonl.xz")]
    rng.shuffle(rows)
    texts = ({"id": row["id"], "text": row["text"].strip()} for row in rows if row["text"].strip())
    yield from _up_to(config.mixed_chars, texts)


def _up_to(chars: int, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if chars <= 0:
            return
        chars -= len(row["text"])
        yield row


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
