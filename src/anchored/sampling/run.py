"""`anchored sample`: a model, prompts and pinned tags in, samples on the terminal or in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedModel

from anchored.annotation import Annotation, Schema, Tag
from anchored.errors import ConfigError
from anchored.files import write_jsonl
from anchored.models.build import load_model
from anchored.models.record import find_record
from anchored.sampling.engine import Request, Sample, SampleConfig, sample
from anchored.segments import Message
from anchored.tokenizer import CONTROL_TOKENS, AnchoredTokenizer, loading, tokenizer_record


@dataclass(frozen=True)
class Source:
    """A model and what is known of it.

    Args:
        annotated: it was trained with annotations before its answers.
        schema: of these annotations; None where they were free.
        chat: how it is given a prompt: as this package trained it, by the template it came with,
            or not at all.
    """

    name: str
    model: PreTrainedModel
    tokenizer: AnchoredTokenizer
    annotated: bool = False
    schema: Schema | None = None
    chat: Literal["anchored", "template", "none"] = "anchored"


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
) -> list[dict[str, Any]]:
    """Samples `n` answers a prompt, or `n` documents without one, and shows or writes them.

    Args:
        model: a folder made by `anchored pretrain` or `sft`, any other model folder, or a hub id.
        prompts: what the user says; each makes a conversation of its own.
        n: samples a prompt.
        pins: key and value of tags that every annotation starts with.
        prefill: text that every response starts with.
        config: how the two parts are sampled.
        annotated: False leaves the annotation out of a model that was trained with annotations.
        out: JSON lines `{prompt, annotation, response, attempts, malformed, finished}`.
        as_json: print the same rows as a JSON list.

    Raises:
        ConfigError: the model cannot be loaded, does not take prompts, or does not take these pins.
    """
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    source = load(model)
    pinned = pinned_tags(source, pins, annotated)
    asked = [prompt for prompt in prompts or [None] for _ in range(n)]
    requests = [_request(source, prompt, pinned, prefill, annotated) for prompt in asked]
    samples = _with_progress(source, requests, config)
    rows = [result.as_row(prompt) for prompt, result in zip(asked, samples, strict=True)]
    if out is not None:
        write_jsonl(out, rows)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    elif out is None:
        _show(rows, Console(highlight=False))
    return rows


def load(name: str, dtype: str = "auto", device_map: str | None = None) -> Source:
    """The model and what its record says.

    Args:
        name: folder or hub id.
        dtype: of the weights; `auto` is the one they were saved in.
        device_map: goes to `transformers`; without one the model is put on the GPU if there is one.

    Raises:
        ConfigError: nothing there that can be loaded.
        TokenizerMismatch: the tokenizer beside the model is not the one it was trained with.
    """
    known: dict[str, Any] = {}
    if not Path(name).exists():
        _foreign_tokenizer(name)  # a hub that cannot be reached is asked once, not for each file
    if record := find_record(name):
        tokenizer = AnchoredTokenizer.load(name)
        tokenizer.check(record["tokenizer"], name)
        schema = record["schema"] and Schema.model_validate(record["schema"])
        known = {"annotated": record["annotated"], "schema": schema}
    elif tokenizer_record(name):
        tokenizer = AnchoredTokenizer.load(name)
    else:
        hf = _foreign_tokenizer(name)
        known = {"chat": _chat(hf)}
        tokenizer = AnchoredTokenizer.adopt(hf)
    model: Any = load_model(name, tokenizer, dtype=dtype, device_map=device_map)
    if device_map is None:
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Source(name, model, tokenizer, **known)


def _foreign_tokenizer(name: str) -> Any:
    with loading("model", name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _chat(hf: Any) -> str:
    if hf.get_vocab().keys() >= set(CONTROL_TOKENS.values()):
        return "anchored"
    return "none" if hf.chat_template is None else "template"


def pinned_tags(source: Source, pins: Sequence[tuple[str, str]], annotated: bool) -> Annotation:
    """The tags of `--pin`, values in the schema's spelling.

    Raises:
        ConfigError: there is no annotation to pin them in, or the schema does not have them.
    """
    if pins and not annotated:
        raise ConfigError("--pin: there is nothing to pin under --no-annotation; drop one of them")
    if pins and not source.annotated:
        raise ConfigError(
            f"--pin: {source.name} was not trained with annotations, so it follows no tags; "
            "use a model from `anchored pretrain` with objective annotated, or from `anchored sft` "
            "with objective anchored"
        )
    return Annotation(tuple(_tag(source.schema, key, value, pins) for key, value in pins))


def _tag(schema: Schema | None, key: str, value: str, pins: Sequence[tuple[str, str]]) -> Tag:
    if schema is None:
        return Tag(key, value)
    spec = schema.key(key)
    if spec is None:
        known = ", ".join(schema.names)
        raise ConfigError(f"--pin {key}={value}: schema {schema.name!r} has the keys {known}")
    if spec.full(sum(name == key for name, _ in pins) - 1):
        most = f"schema {schema.name!r} takes at most {spec.limit}"
        raise ConfigError(f"--pin {key}={value}: {most}; pin no more")
    stored = spec.accept(value)
    if stored is None:
        known = ", ".join(spec.values or ())
        raise ConfigError(f"--pin {key}={value}: schema {schema.name!r} has {key} = {known}")
    return Tag(key, stored)


def _request(
    source: Source, prompt: str | None, pinned: Annotation, prefill: str, annotated: bool
) -> Request:
    messages = () if prompt is None else (Message("user", prompt),)
    if messages and source.chat == "none":
        raise ConfigError(
            f"--prompt: {source.name} has no chat format; give it a beginning with --prefill"
        )
    return Request(messages, source.annotated and annotated, pinned, prefill)


def _with_progress(
    source: Source, requests: Sequence[Request], config: SampleConfig
) -> list[Sample]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("sampling", total=len(requests))
        return sample(
            source.model,
            source.tokenizer,
            requests,
            config,
            source.schema,
            lambda done: bar.advance(task, done),
        )


def _show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Each prompt once, in bold; then annotation (dim) and response of its samples."""
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
