"""`anchored sample`: sample a model on prompts with pinned tags, to the terminal or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from anchored.annotation import Annotation
from anchored.errors import ConfigError
from anchored.files import write_jsonl
from anchored.models.precision import DeviceMap, Dtype
from anchored.sampling.engine import Request, Sample, SampleConfig
from anchored.sampling.sampler import Sampler, load, pinned_tags
from anchored.segments import Message


def run(
    model: str,
    *,
    prompts: Sequence[str] = (),
    n: int = 1,
    pins: Sequence[tuple[str, str]] = (),
    prefill: str = "",
    annotated: bool = True,
    config: SampleConfig = SampleConfig(),  # noqa: B008 (frozen)
    out: Path | None = None,
    as_json: bool = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap | None = None,
) -> list[dict[str, Any]]:
    """Sample `n` answers per prompt, or `n` documents without one, and show or write them.

    Args:
        model: a folder made by `anchored pretrain` or `sft`, any other model folder, or a hub id.
        prompts: user messages; each starts its own conversation.
        n: samples per prompt.
        pins: keys and values of the tags that every annotation starts with.
        prefill: text that every response starts with.
        config: settings for sampling.
        annotated: False to skip the annotation of a model that was trained with annotations.
        out: a file for JSON lines `{prompt, annotation, response, attempts, malformed, finished}`.
        as_json: print the same rows as a JSON list.
        dtype: precision to sample in, see `sampling_dtype`.
        device_map: where the model goes, see `anchored.sampling.sampler.load`.

    Raises:
        ConfigError: the model cannot be loaded, does not take prompts, or does not take these pins.
    """
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    source = load(model, dtype, device_map)
    pinned = pinned_tags(source, pins, annotated)
    asked = [prompt for prompt in prompts or [None] for _ in range(n)]
    requests = [_request(source, prompt, pinned, prefill, annotated) for prompt in asked]
    samples = with_progress(source, requests, config)
    rows = [result.as_row(prompt) for prompt, result in zip(asked, samples, strict=True)]
    if out is not None:
        write_jsonl(out, rows)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    elif out is None:
        _show(rows, Console(highlight=False))
    return rows


def _request(
    source: Sampler, prompt: str | None, pinned: Annotation, prefill: str, annotated: bool
) -> Request:
    messages = () if prompt is None else (Message("user", prompt),)
    if messages and source.chat == "none":
        raise ConfigError(
            f"--prompt: {source.name} has no chat format; give it a text to continue with --prefill"
        )
    return Request(messages, source.annotated and annotated, pinned, prefill)


def with_progress(
    source: Sampler, requests: Sequence[Request], config: SampleConfig
) -> list[Sample]:
    """Call `Sampler.sample` with a progress bar on a terminal, which names the precision."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        precision = f" in {source.dtype}" if source.dtype else ""
        task = bar.add_task(f"sampling{precision}", total=len(requests))
        return source.sample(requests, config, lambda done: bar.advance(task, done))


def _show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print each prompt once, in bold, then the annotation (dim) and response of each sample."""
    prompt = None
    for row in rows:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            console.print(Text(f"> {prompt}\n", "bold"))
        if row["malformed"]:
            console.print(Text(f"(no readable annotation in {row['attempts']} attempts)", "dim"))
        elif row["annotation"]:
            console.print(Text(str(Annotation.from_rows(row["annotation"])), "dim"))
        cut = "" if row["finished"] else " [...]"
        console.print(Text(f"{row['response']}{cut}\n"), soft_wrap=True)
