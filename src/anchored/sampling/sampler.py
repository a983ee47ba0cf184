"""`Sampler`: what all code that samples takes; `LocalSampler` is a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import AutoTokenizer, PreTrainedModel

from anchored.annotation import Annotation, Schema, Tag
from anchored.errors import ConfigError
from anchored.files import weights_digest
from anchored.models.build import load_model
from anchored.models.precision import DeviceMap, Dtype, sampling_dtype
from anchored.models.record import find_record
from anchored.sampling.engine import Request, Sample, SampleConfig, sample
from anchored.tokenizer import CONTROL_TOKENS, AnchoredTokenizer, loading, tokenizer_record

Chat = Literal["anchored", "template", "none"]


class Sampler(Protocol):
    """A model that can be sampled, wherever it runs."""

    @property
    def name(self) -> str:
        """The folder, hub id or address it was loaded from."""
        ...

    @property
    def weights(self) -> str:
        """An identifier of the weights: a digest of the files, else the model's name."""
        ...

    @property
    def dtype(self) -> str | None:
        """The precision of its computation, such as `bfloat16`; None if unknown."""
        ...

    @property
    def tokenizer(self) -> AnchoredTokenizer:
        """The tokenizer that requests are encoded with."""
        ...

    @property
    def annotated(self) -> bool:
        """True if the model was trained with annotations before its answers."""
        ...

    @property
    def schema(self) -> Schema | None:
        """The schema of its annotations; None if any key is allowed."""
        ...

    @property
    def chat(self) -> Chat:
        """The format of prompts: this package's, the model's own template, or none."""
        ...

    def sample(
        self,
        requests: Sequence[Request],
        config: SampleConfig = SampleConfig(),  # noqa: B008 (frozen)
        progress: Callable[[int], None] = lambda done: None,
        first: int = 0,
    ) -> list[Sample]:
        """Return one sample per request, in order.

        Args:
            requests: the sequences to sample.
            config: settings for sampling.
            progress: called with the number of sequences finished since the last call.
            first: position of the first request in the whole list, if `requests` is a part of it:
                seeds depend on the position.

        Raises:
            ConfigError: the model cannot take these requests.
            DataError: the model's logits are not finite numbers.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """A model in this process, sampled by `anchored.sampling.engine`; see `Sampler`."""

    name: str
    model: PreTrainedModel
    tokenizer: AnchoredTokenizer
    annotated: bool = False
    schema: Schema | None = None
    chat: Chat = "anchored"

    @property
    def weights(self) -> str:
        """See `Sampler`."""
        return weights_digest(self.name)

    @property
    def dtype(self) -> str:
        """See `Sampler`."""
        return str(self.model.dtype).removeprefix("torch.")

    def sample(
        self,
        requests: Sequence[Request],
        config: SampleConfig = SampleConfig(),  # noqa: B008 (frozen)
        progress: Callable[[int], None] = lambda done: None,
        first: int = 0,
    ) -> list[Sample]:
        """See `Sampler`."""
        return sample(self.model, self.tokenizer, requests, config, self.schema, progress, first)


def load(name: str, dtype: Dtype = "auto", device_map: DeviceMap | None = None) -> LocalSampler:
    """Load a model for sampling, as the record of its training (`anchored.json`) describes it.

    Args:
        name: folder or hub id.
        dtype: see `sampling_dtype`.
        device_map: see `from_pretrained`; None uses the GPU if there is one, else the CPU.

    Raises:
        ConfigError: `name` holds no model that can be loaded.
        TokenizerMismatch: the tokenizer beside the model is not the one it was trained with.
    """
    known: dict[str, Any] = {}
    if not Path(name).exists():
        _foreign_tokenizer(name)  # an unreachable hub is tried once, instead of once per file
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
    options: dict[str, Any] = {"dtype": sampling_dtype(name, dtype, device_map)}
    if device_map is not None:
        options["device_map"] = device_map
    model: Any = load_model(name, tokenizer, **options)
    if device_map is None:
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return LocalSampler(name, model, tokenizer, **known)


def _foreign_tokenizer(name: str) -> Any:
    with loading("model", name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _chat(hf: Any) -> str:
    if hf.get_vocab().keys() >= set(CONTROL_TOKENS.values()):
        return "anchored"
    return "none" if hf.chat_template is None else "template"


def pinned_tags(
    source: Sampler, pins: Sequence[tuple[str, str]], annotated: bool, field: str = "--pin"
) -> Annotation:
    """Return the pinned tags, which every annotation starts with, as the schema spells them.

    Args:
        source: the model to sample from.
        pins: key and value of each tag.
        annotated: False if no annotation will be written.
        field: name of the pins in errors.

    Raises:
        ConfigError: no annotation is written, or the schema does not allow a pinned tag.
    """
    if pins and not annotated:
        raise ConfigError(
            f"{field}: there is nothing to pin under --no-annotation; drop one of them"
        )
    if pins and not source.annotated:
        raise ConfigError(
            f"{field}: {source.name} was not trained with annotations and ignores tags; "
            "use a model from `anchored pretrain` with objective annotated, or from `anchored sft` "
            "with objective anchored"
        )
    return Annotation(tuple(_tag(source.schema, key, value, pins, field) for key, value in pins))


def _tag(
    schema: Schema | None, key: str, value: str, pins: Sequence[tuple[str, str]], field: str
) -> Tag:
    if schema is None:
        return Tag(key, value)
    spec, where = schema.key(key), f"{field} {key}={value}: schema {schema.name!r}"
    if spec is None:
        raise ConfigError(f"{where} has the keys {', '.join(schema.names)}")
    if spec.full(sum(name == key for name, _ in pins) - 1):
        raise ConfigError(f"{where} takes at most {spec.limit}; pin no more")
    stored = spec.accept(value)
    if stored is None:
        raise ConfigError(f"{where} has {key} = {', '.join(spec.values or ())}")
    return Tag(key, stored)
