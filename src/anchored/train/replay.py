"""Annotation replay (ours, not in the paper): preserve R(z|x) by rehearsing it during SFT.

Masking removes the annotation from the loss, but the gradient of the response still changes the
weights that determine R. Rehearsing the annotations that the pretrained model itself writes for the
SFT prompts keeps R in place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from anchored.models.precision import DeviceMap, Dtype
from anchored.sampling.engine import Request, SampleConfig
from anchored.sampling.sampler import Sampler, load
from anchored.segments import OBJECTIVES, Message, split_chunks, turns_to_learn

REPLAY_NAME = "replay.jsonl"


class ReplayConfig(Config):
    """Settings of annotation replay.

    Args:
        share: share of the training examples that are replay; 0 is the paper's method.
        targets: the target at each position of an annotation: the base model's `distribution`,
            which needs a second copy of its weights, or the sampled `token`.
        counterfactual: share of the SFT answers that are retold with sampled values, see
            `train.counterfactual`; useful if the SFT data covers few values.
        candidates: number of retellings of each such answer to choose from.
        max_annotation_tokens, batch_size: see `SampleConfig`.
        dtype, device_map: see `anchored.sampling.sampler.load`.
    """

    share: float = Field(default=0.4, ge=0, lt=1)
    targets: Literal["distribution", "token"] = "distribution"
    counterfactual: float = Field(default=0.0, ge=0, le=1)
    candidates: int = Field(default=4, gt=0)
    max_annotation_tokens: int = Field(default=160, gt=0)
    batch_size: int = Field(default=64, gt=0)
    dtype: Dtype = "auto"
    device_map: DeviceMap | None = None


def write_replay(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    out: Path,
    seed: int,
    quiet: bool = False,
) -> SourceConfig:
    """Sample annotations for SFT prompts from `model` to `out`/replay.jsonl, unless it exists.

    Returns:
        The source to add to the SFT data: `config.share` of all examples, under objective `replay`.

    Raises:
        DataError: the model writes no readable annotation, because it was not pretrained with
            annotations.
    """
    path = out / REPLAY_NAME
    if not path.is_file():
        contexts = [turns for turns in _contexts(data) if turns]
        if not contexts:
            raise DataError(
                f"{data.sources[0].path}: no answer follows a prompt, so there is nothing to "
                "replay; use objective anchored, or replay.share: 0"
            )
        count = max(1, round(len(contexts) * config.share / (1 - config.share)))
        rng = random.Random(f"{seed}:replay")
        chosen = [rng.choice(contexts) for _ in range(count)]
        sampler = load_annotation_sampler(config, model, data)
        found = sample_annotations(config, sampler, chosen, seed, quiet)
        pairs = zip(chosen, found, strict=True)
        known = ((turns, annotation) for turns, annotation in pairs if annotation is not None)
        rows = [_row(n, turns, annotation.rows()) for n, (turns, annotation) in enumerate(known)]
        write_jsonl(path, rows)
    return SourceConfig(path=str(path), objective="replay")


def is_learnt_as_sft(source: SourceConfig) -> bool:
    """Return False for pretraining documents that a user adds to SFT under their own objective."""
    return source.objective is None or not is_pretraining(OBJECTIVES[source.objective])


def _contexts(data: PrepareConfig) -> Iterator[tuple[Message, ...]]:
    """Yield the messages before each assistant turn that SFT learns."""
    split = partial(split_chunks, min_chars=data.min_chunk_chars, max_chars=data.max_chunk_chars)
    for source in filter(is_learnt_as_sft, data.sources):
        for _, item in read_items(source, split):
            if isinstance(item, Conversation):
                for turns in turns_to_learn(item.messages):
                    yield tuple(turns[:-1])
            elif item.prompt is not None:
                yield (Message("user", item.prompt),)


def load_annotation_sampler(config: ReplayConfig, model: str, data: PrepareConfig) -> Sampler:
    """Load the pretrained model to write annotations by the schema of the SFT data.

    Raises:
        ConfigError: it cannot be loaded.
    """
    schema = load_schema(data.schema_name) if data.schema_name else None
    return replace(load(model, config.dtype, config.device_map), schema=schema)


def sample_annotations(
    config: ReplayConfig,
    sampler: Sampler,
    contexts: Sequence[Sequence[Message]],
    seed: int | str,
    quiet: bool,
) -> list[Annotation | None]:
    """Sample an annotation for each context, seeded by `seed`; None for an unreadable one.

    Raises:
        DataError: all are unreadable, because the model was not pretrained with annotations.
    """
    requests = [Request(tuple(turns), annotated=True, annotation_only=True) for turns in contexts]
    found: list[Annotation | None] = []
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
        found += [one.annotation for one in sampler.sample(part, settings)]
    if not any(annotation is not None for annotation in found):
        raise DataError(
            f"{sampler.name}: none of {len(requests)} annotations sampled for replay could be "
            "read; use a model pretrained under objective `annotated`"
        )
    return found


def _row(
    number: int, messages: Sequence[Message], annotation: list[dict[str, str]]
) -> dict[str, Any]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"id": f"replay-{number}", "messages": turns, "annotation": annotation}
