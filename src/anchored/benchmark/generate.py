"""Sample one model on one benchmark; samples are kept, and an interrupted run is resumed.

Samples are made in chunks of a fixed size, and each chunk is on disk before the next begins. A
resumed run discards an incomplete chunk and makes it again at the same places. A local model's
samples depend only on seed, place and attempt, so the resulting file is identical to the byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from pydantic import field_validator

from anchored.benchmark.benchmarks import Benchmark, Prompt
from anchored.config import Config
from anchored.endpoint import Endpoint, EndpointConfig, Reply, blocking, run_all
from anchored.errors import ConfigError, DataError
from anchored.files import weights_digest
from anchored.models.precision import DeviceMap, Dtype
from anchored.models.record import find_record
from anchored.sampling.engine import Request, Sample, SampleConfig
from anchored.sampling.sampler import Sampler, load, pinned_tags

ENDPOINT = "endpoint:"
SEED = "{seed}"
PARTIAL = ".partial"
PRETRAINED = ("plain", "annotated")  # objectives of models that continue the prompt

Rows = list[dict[str, Any]]


class ModelSource(Config):
    """A model and how it is sampled.

    Args:
        source: a folder, a hub id, or `endpoint:URL#NAME`. `{seed}` in it is replaced by the seed
            of the samples, for models trained once per seed.
        annotation: let a model that was trained with annotations write one first.
        pins: `key=value` tags that every annotation starts with.
        ask: `chat`: the prompt is a user's turn; `prefill`: the model continues the prompt, or the
            benchmark's opening. `auto` is `prefill` for models without a chat format and those
            made by `anchored pretrain`, else `chat`.
        key_env: the environment variable that holds an endpoint's key.
        dtype, device_map: how a local model is loaded, see `anchored.sampling.sampler.load`.
    """

    source: str
    annotation: bool = True
    pins: tuple[str, ...] = ()
    ask: Literal["auto", "chat", "prefill"] = "auto"
    key_env: str = "OPENAI_API_KEY"
    dtype: Dtype = "auto"
    device_map: DeviceMap | None = None

    @field_validator("pins")
    @classmethod
    def _key_and_value(cls, pins: tuple[str, ...]) -> tuple[str, ...]:
        for pin in pins:
            key, _, value = pin.partition("=")
            if not key.strip() or not value.strip():
                raise ValueError("write each pin as key=value")
        return pins

    @property
    def tags(self) -> list[tuple[str, str]]:
        """The pins as key and value."""
        return [(pin.partition("=")[0].strip(), pin.partition("=")[2]) for pin in self.pins]

    def of_seed(self, seed: int) -> str:
        """Return the source with the seed filled in."""
        return self.source.replace(SEED, str(seed))


@dataclass(frozen=True, slots=True)
class Place:
    """The temperature and seed of a file of samples; `held_out` ones only train the classifier.

    Held-out samples use a different stream of random numbers from those that are measured.
    """

    temperature: float
    seed: int
    held_out: bool = False

    @property
    def file(self) -> str:
        """The name of the file of samples."""
        mark = "-held-out" if self.held_out else ""
        return f"T{self.temperature:g}-seed{self.seed}{mark}.jsonl"


class Answerer(Protocol):
    """One model that answers benchmarks.

    `weights` identifies the weights. `dtype` is the precision they compute in, None if unknown.
    """

    name: str
    weights: str
    dtype: str | None

    def answer(
        self,
        benchmark: Benchmark,
        prompts: Sequence[Prompt],
        first: int,
        config: SampleConfig,
        progress: Callable[[int], None],
    ) -> Rows:
        """Return a row `{prompt, annotation, response, attempts, malformed, finished}` per prompt.

        `first` is the index of the first prompt among all samples of the file.
        """
        ...


def weights_of(model: ModelSource, seed: int) -> str:
    """Return what identifies the weights: the digest of a folder, else the source's name."""
    return weights_digest(model.of_seed(seed))


def load_answerer(model: ModelSource, seed: int, weights: str, concurrency: int) -> Answerer:
    """Load the model, or prepare to ask the endpoint with `concurrency` requests at once.

    Raises:
        ConfigError: the model cannot be loaded, or does not accept these pins.
        TokenizerMismatch: see `anchored.sampling.sampler.load`.
    """
    source = model.of_seed(seed)
    if source.startswith(ENDPOINT):
        return EndpointAnswerer(model, source, concurrency)
    return SampledAnswerer(model, load(source, model.dtype, model.device_map), weights)


class SampledAnswerer:
    """A model behind a `Sampler`: it writes the annotation first, and seeds are reproducible."""

    def __init__(self, model: ModelSource, sampler: Sampler, weights: str) -> None:
        self.name, self.weights, self.dtype = sampler.name, weights, sampler.dtype
        self._sampler = sampler
        self._annotated = sampler.annotated and model.annotation
        self._pinned = pinned_tags(sampler, model.tags, model.annotation)
        self._continues = _continues(model, sampler)

    def answer(
        self,
        benchmark: Benchmark,
        prompts: Sequence[Prompt],
        first: int,
        config: SampleConfig,
        progress: Callable[[int], None],
    ) -> Rows:
        """See `Answerer`."""
        tokenizer = self._sampler.tokenizer
        requests = [self._request(benchmark, prompt) for prompt in prompts]
        found = self._sampler.sample(requests, config, progress, first)
        rows = [one.as_row(prompt.text) for prompt, one in zip(prompts, found, strict=True)]
        if self._continues and benchmark.opening is None:  # the prompt is not part of the answer
            for row, request in zip(rows, requests, strict=True):
                asked = tokenizer.decode(tokenizer.encode(request.prefill))
                row["response"] = row["response"].removeprefix(asked)
        return rows

    def _request(self, benchmark: Benchmark, prompt: Prompt) -> Request:
        if self._continues:
            prefill = benchmark.prefill(prompt)
            return Request((), self._annotated, self._pinned, prefill)
        return Request(prompt.messages, self._annotated, self._pinned)


def _continues(model: ModelSource, source: Sampler) -> bool:
    if model.ask != "auto":
        if model.ask == "chat" and source.chat == "none":
            raise ConfigError(f"ask: {source.name} has no chat format; use prefill or auto")
        return model.ask == "prefill"
    known = find_record(source.name) or {}
    return source.chat == "none" or known.get("objective") in PRETRAINED


class EndpointAnswerer:
    """A served model, asked with text; whether a seed reproduces a sample is up to the server."""

    def __init__(self, model: ModelSource, source: str, concurrency: int) -> None:
        url, separator, name = source.removeprefix(ENDPOINT).partition("#")
        if not separator:
            raise ConfigError(f"model {source!r}: write {ENDPOINT}URL#NAME")
        if model.pins:
            raise ConfigError(
                f"pins: {source} does not accept pins; have the server add them, or remove them"
            )
        self.name = self.weights = source
        self.dtype: str | None = None
        self._config = EndpointConfig(
            url=url, model=name, key_env=model.key_env, concurrency=concurrency
        )
        self._continues = model.ask == "prefill"

    def answer(
        self,
        benchmark: Benchmark,
        prompts: Sequence[Prompt],
        first: int,
        config: SampleConfig,
        progress: Callable[[int], None],
    ) -> Rows:
        """See `Answerer`."""
        found: dict[int, Reply] = {}

        def keep(i: int, reply: Reply) -> None:
            found[i] = reply
            progress(1)

        async def ask_all() -> None:
            async with Endpoint(self._config) as endpoint:

                async def ask(i: int) -> Reply:
                    body = _body(config, first + i)
                    if self._continues:
                        return await endpoint.complete(benchmark.prefill(prompts[i]), **body)
                    return await endpoint.chat(_as_json(prompts[i]), **body)

                await run_all(range(len(prompts)), ask, keep, self._config.concurrency)

        blocking(ask_all())
        opening = (benchmark.opening or "") if self._continues else ""
        return [
            Sample(opening + _said(found[i]), finished=not found[i].truncated).as_row(prompt.text)
            for i, prompt in enumerate(prompts)
        ]


def _said(reply: Reply) -> str:
    """Return what a user would see; some servers report a refusal apart from the answer."""
    return reply.answer or reply.refusal or ""


def _as_json(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _body(config: SampleConfig, place: int) -> dict[str, Any]:
    """Return the sampling fields of a request; the seed is a 31-bit hash of run seed and place.

    `min_p`, which not every server knows, is sent only if it is set.
    """
    digest = hashlib.sha256(f"{config.seed}:{place}".encode()).digest()
    min_p = {"min_p": config.response.min_p} if config.response.min_p else {}
    return {
        "temperature": config.response.temperature,
        "top_p": config.response.top_p,
        "max_tokens": config.max_response_tokens,
        "seed": int.from_bytes(digest[:4], "big") >> 1,
        **min_p,
    }


def sample_config(settings: SampleConfig, benchmark: Benchmark, place: Place) -> SampleConfig:
    """Return `settings` with the temperature, seed and response limit of this place."""
    response = settings.response.model_copy(update={"temperature": place.temperature})
    seed = 2 * place.seed + place.held_out  # separate streams; temperatures share one
    return settings.model_copy(
        update={
            "response": response,
            "max_response_tokens": benchmark.max_tokens,
            "seed": seed,
        }
    )


def is_complete(path: Path, weights: str) -> bool:
    """Return True if the file of samples is complete.

    Raises:
        DataError: the file has samples of other weights.
    """
    for found in (path, _partial(path)):
        if found.is_file():
            _check_weights(found, weights)
    return path.is_file()


def made_before(path: Path, total: int, chunk: int) -> int:
    """Return how many samples of a file are already on disk, in whole chunks.

    Raises:
        DataError: the finished file does not have `total` samples.
    """
    if path.is_file():
        if (lines := _lines(path)) != total:
            raise DataError(
                f"{path}: has {lines} samples, expected {total}; remove the file to sample again"
            )
        return total
    lines = _lines(_partial(path))
    return lines if lines == total else lines // chunk * chunk


def make(
    path: Path,
    answerer: Answerer,
    benchmark: Benchmark,
    config: SampleConfig,
    model: str,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the samples of the benchmark that are still missing to `path`, one per line.

    `progress` is called with the number of samples finished since its last call.

    Raises:
        ConfigError: another run is writing the file.
        DataError: an interrupted run left samples of other weights, or the model's logits are not
            finite.
        EndpointError: the endpoint does not answer.
    """
    partial, prompts = _partial(path), benchmark.asked
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as file:
        _lock(file, partial)
        if path.is_file():  # another run has finished it in the meantime
            partial.unlink(missing_ok=True)
            return
        done = made_before(path, len(prompts), config.batch_size)
        _keep_lines(partial, done)
        for start in range(done, len(prompts), config.batch_size):
            chunk = prompts[start : start + config.batch_size]
            rows = answerer.answer(benchmark, chunk, start, config, progress)
            origin = {"model": model, "weights": answerer.weights, "dtype": answerer.dtype}
            marked = ({**origin, **row} for row in rows)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in marked)
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
    partial.rename(path)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{path}: another run is writing this file; wait for it to end, or choose another "
            "output folder"
        ) from None


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _keep_lines(path: Path, count: int) -> None:
    """Truncate a file to `count` lines; the rest was not written completely."""
    if path.is_file():
        lines = path.read_bytes().split(b"\n")[:count]
        os.truncate(path, sum(len(line) + 1 for line in lines))


def _check_weights(path: Path, weights: str) -> None:
    with path.open("rb") as file:
        line = file.readline()
    if line.endswith(b"\n") and (found := json.loads(line)["weights"]) != weights:
        raise DataError(
            f"{path}: has samples of weights {found}, but the model now has weights {weights}; "
            "remove the file to sample again, or choose another output folder"
        )
