"""Annotation replay (ours, not in the paper): hold R(z|x) by rehearsing what it was before SFT.

Masking takes the annotation out of the loss, but the weights that make R still move with the
response's gradient. Rehearsing what the pretrained model itself would have planned for the SFT
prompts keeps R where it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track

from anchored.annotation import Annotation
from anchored.config import Config
from anchored.data.prepare import PrepareConfig, SourceConfig
from anchored.data.readers import load_schema, read_items
from anchored.data.rows import Conversation
from anchored.data.sequences import is_pretraining
from anchored.errors import DataError
from anchored.files import write_jsonl
from anchored.models.build import load_model
from anchored.sampling.engine import Request, SampleConfig, sample
from anchored.segments import OBJECTIVES, Message, split_chunks, turns_to_learn
from anchored.tokenizer import AnchoredTokenizer

REPLAY_NAME = "replay.jsonl"


class ReplayConfig(Config):
    """How annotations are sampled, and how many.

    Args:
        share: share of the training examples that are replay; 0 is the paper's method.
        targets: what is learnt at each place of an annotation: the base model's `distribution`, for
            which its weights are held a second time, or the sampled `token`.
        counterfactual: share of the SFT answers retold about sampled values, see
            `train.counterfactual`; for SFT data that covers few values.
        candidates: retellings of each such answer to choose from.
        max_annotation_tokens, batch_size: see `SampleConfig`.
    """

    share: float = Field(default=0.4, ge=0, lt=1)
    targets: Literal["distribution", "token"] = "distribution"
    counterfactual: float = Field(default=0.0, ge=0, le=1)
    candidates: int = Field(default=4, gt=0)
    max_annotation_tokens: int = Field(default=160, gt=0)
    batch_size: int = Field(default=64, gt=0)


def write_replay(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    out: Path,
    seed: int,
    quiet: bool = False,
) -> SourceConfig:
    """Samples annotations for SFT prompts from `model` into `out`/replay.jsonl, if not yet there.

    Returns:
        The source to add to the SFT data: `config.share` of all examples, under objective `replay`.

    Raises:
        DataError: the model writes no readable annotation: it was not pretrained with annotations.
    """
    path = out / REPLAY_NAME
    if not path.is_file():
        contexts = [turns for turns in _contexts(data) if turns]
        if not contexts:
            raise DataError(
                f"{data.sources[0].path}: no answer stands behind a prompt, so there is nothing to "
                "replay; use objective anchored, or replay.share: 0"
            )
        count = max(1, round(len(contexts) * config.share / (1 - config.share)))
        rng = random.Random(f"{seed}:replay")
        chosen = [rng.choice(contexts) for _ in range(count)]
        found = zip(
            chosen, sample_annotations(config, model, data, chosen, seed, quiet), strict=True
        )
        known = ((turns, plan) for turns, plan in found if plan is not None)
        rows = [_row(n, turns, plan.rows()) for n, (turns, plan) in enumerate(known)]
        write_jsonl(path, rows)
    return SourceConfig(path=str(path), objective="replay")


def is_learnt_as_sft(source: SourceConfig) -> bool:
    """Not so pretraining documents that a user adds to SFT under their own objective."""
    return source.objective is None or not is_pretraining(OBJECTIVES[source.objective])


def _contexts(data: PrepareConfig) -> Iterator[tuple[Message, ...]]:
    """What comes before each assistant turn that SFT learns."""
    split = partial(split_chunks, min_chars=data.min_chunk_chars, max_chars=data.max_chunk_chars)
    for source in filter(is_learnt_as_sft, data.sources):
        for _, item in read_items(source, split):
            if isinstance(item, Conversation):
                for turns in turns_to_learn(item.messages):
                    yield tuple(turns[:-1])
            elif item.prompt is not None:
                yield (Message("user", item.prompt),)


def sample_annotations(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    contexts: Sequence[Sequence[Message]],
    seed: int | str,
    quiet: bool,
) -> list[Annotation | None]:
    """What `model` plans for each context, drawn by `seed`; None where it cannot be read.

    Raises:
        DataError: it never can: the model was not pretrained with annotations.
    """
    if not contexts:
        return []
    tokenizer = AnchoredTokenizer.load(model)
    schema = load_schema(data.schema_name) if data.schema_name else None
    requests = [Request(tuple(turns), annotated=True, plan_only=True) for turns in contexts]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = load_model(model, tokenizer)
    loaded, found = loaded.to(device), list[Annotation | None]()
    starts = range(0, len(requests), 16 * config.batch_size)
    console = Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": quiet or not console.is_interactive}
    for start in track(starts, "replay annotations", **bar):
        settings = SampleConfig(
            max_annotation_tokens=config.max_annotation_tokens,
            batch_size=config.batch_size,
            seed=random.Random(f"{seed}:{start}").getrandbits(32),
        )
        part = requests[start : start + 16 * config.batch_size]
        found += [one.annotation for one in sample(loaded, tokenizer, part, settings, schema)]
    if not any(annotation is not None for annotation in found):
        raise DataError(
            f"{model}: none of {len(requests)} annotations sampled for replay could be read; "
            "use a model pretrained under objective `annotated`"
        )
    return found


def _row(
    number: int, messages: Sequence[Message], annotation: list[dict[str, str]]
) -> dict[str, Any]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"id": f"replay-{number}", "messages": turns, "annotation": annotation}
