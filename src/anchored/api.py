"""The public functions of `import anchored`, for notebooks and scripts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import pandas as pd
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anchored.annotation import Annotation, Schema
from anchored.config import validated
from anchored.data.generations import Generations, generations_of, side_by_side
from anchored.data.rows import Conversation, canonical_row, prompt_turns
from anchored.errors import ConfigError, DataError
from anchored.escape import escape
from anchored.models.precision import DeviceMap, Dtype
from anchored.report.plots import entropy_plot, top_values_plot, trade_off_plot
from anchored.report.score_table import caption, figures, rich_tables, short_name, verdicts
from anchored.sampling.engine import Request, Sample, SampleConfig
from anchored.sampling.run import with_progress
from anchored.sampling.sampler import LocalSampler, pinned_tags
from anchored.sampling.sampler import load as load_sampler
from anchored.scoring.backends import load_readers
from anchored.scoring.score import ComparisonConfig, compared
from anchored.segments import (
    OBJECTIVES,
    Chunk,
    Message,
    Segment,
    assemble,
    conversation_segments,
    document_segments,
)
from anchored.tokenizer import AnchoredTokenizer, tokenizer_record

Messages = Sequence[Mapping[str, Any]]
Tags = Annotation | Mapping[str, str | Sequence[str]]
Texts = Sequence[str | Sample]
OneModel = Texts | Sequence[Mapping[str, Any]] | Mapping[str, Texts]

_FIELDS = {  # the field of SampleConfig that each keyword sets
    "temperature": "response.temperature",
    "top_p": "response.top_p",
    "min_p": "response.min_p",
    "annotation_temperature": "annotation.temperature",
    "annotation_top_p": "annotation.top_p",
    "annotation_min_p": "annotation.min_p",
    "max_new_tokens": "max_response_tokens",
    "max_annotation_tokens": "max_annotation_tokens",
    "batch_size": "batch_size",
    "seed": "seed",
}


class SamplingOptions(TypedDict, total=False):
    """Keywords of `Model.sample` and `sample`.

    Attributes:
        pin: tags that every annotation starts with; the model samples the others after them.
        prefill: text that every response starts with; not counted in `max_new_tokens`.
        annotated: True to write an annotation first; by default as the model was trained.
        temperature, top_p, min_p: how the response is sampled; temperature 1 by default.
        annotation_temperature, annotation_top_p, annotation_min_p: how the annotation is sampled;
            temperature 1 by default, which keeps the pretrained model's distribution.
        max_new_tokens: length limit of the response; 256 by default.
        max_annotation_tokens: length limit of the annotation; 160 by default.
        batch_size: sequences decoded together; samples do not depend on it.
        seed: the same seed gives the same samples; 0 by default.
    """

    pin: Mapping[str, str | Sequence[str]]
    prefill: str
    annotated: bool
    temperature: float
    top_p: float
    min_p: float
    annotation_temperature: float
    annotation_top_p: float
    annotation_min_p: float
    max_new_tokens: int
    max_annotation_tokens: int
    batch_size: int
    seed: int


def load(path: str | Path, dtype: Dtype = "auto", device_map: DeviceMap | None = None) -> Model:
    """Load a model to sample from it.

    Args:
        path: a folder made by `anchored pretrain` or `anchored sft`, any other folder with a causal
            language model, or a hub id.
        dtype: precision to load it in: `float32`, `bfloat16` or `float16`. `auto` uses the
            precision of the model's training or, for other models, the one it was saved in.
        device_map: see `from_pretrained` of `transformers`; None uses the GPU if there is one.

    Raises:
        ConfigError: `path` holds no model that can be loaded.
        TokenizerMismatch: the model's tokenizer is not the one it was trained with.

    Examples:
        >>> import anchored
        >>> model = anchored.load("runs/my/model", dtype="float32")
        >>> model.annotated, model.dtype
        (True, 'float32')
        >>> model.schema.names
        ('mood', 'topic')
    """
    return Model(load_sampler(str(path), dtype, device_map))


class Model:
    """A model to sample from, with its tokenizer and the record of its training; see `load`.

    Attributes:
        name: the folder or hub id that it was loaded from.
        model: the `transformers` model, which you can train further or use like any other.
        tokenizer: a tokenizer with which text can never spell a control token; `tokenizer.hf` is
            the tokenizer of `transformers`.
        annotated: True if the model was trained with annotations before its answers.
        schema: schema of its annotations; None if any key was allowed.
        dtype: the precision it computes in.
    """

    def __init__(self, sampler: LocalSampler) -> None:
        self._sampler = sampler
        self.name: str = sampler.name
        self.model: PreTrainedModel = sampler.model
        self.tokenizer: AnchoredTokenizer = sampler.tokenizer
        self.annotated: bool = sampler.annotated
        self.schema: Schema | None = sampler.schema

    @property
    def dtype(self) -> str:
        """The precision it computes in."""
        return self._sampler.dtype

    def __repr__(self) -> str:
        written = "annotated" if self.annotated else "not annotated"
        return f"Model({self.name!r}, {written}, {self.dtype})"

    def sample(
        self,
        prompts: str | Sequence[str | Messages] | None,
        n: int = 1,
        **options: Unpack[SamplingOptions],
    ) -> list[list[Sample]]:
        """Sample `n` answers to each prompt, with a progress bar on a terminal.

        Args:
            prompts: one prompt, or a list of prompts. A prompt is what the user says, or a list of
                messages `{"role", "content"}`. None samples documents without a prompt.
            n: number of answers to each prompt.
            options: see `SamplingOptions`.

        Returns:
            For each prompt its `n` samples, with `.response`, `.annotation` (None without one),
            `.finished` and `.malformed`.

        Raises:
            ConfigError: an option is wrong, or the model does not accept prompts or these pins.
            DataError: a message is malformed, or the model's logits are not finite.

        Examples:
            >>> import anchored
            >>> model = anchored.load("runs/my/model")
            >>> prompts = ["Tell me a story.", "Where were you?"]
            >>> answers = model.sample(prompts, n=3, pin={"mood": "calm"}, max_new_tokens=8)
            >>> [len(samples) for samples in answers]
            [3, 3]
            >>> first = answers[0][0]
            >>> isinstance(first.response, str)
            True
        """
        sampler, config = self._sampler, _sample_config(options)
        if (annotated := options.get("annotated")) is not None:
            sampler = replace(sampler, annotated=annotated)
        pins = Annotation.of(options.get("pin") or {})
        pairs = [(tag.key, tag.value) for tag in pins]
        pinned = pinned_tags(sampler, pairs, annotated=True, field="pin")
        conversations = _conversations(prompts)
        if any(conversations) and sampler.chat == "none":
            raise ConfigError(
                f"prompts: {self.name} has no chat format; use prompts=None, and give the "
                "beginning of the text with prefill"
            )
        requests = [
            Request(turns, sampler.annotated, pinned, options.get("prefill", ""))
            for turns in conversations
            for _ in range(n)
        ]
        found = with_progress(sampler, requests, config)
        return [found[at : at + n] for at in range(0, len(found), n)]


def sample(
    model: Model | str | Path,
    prompts: str | Sequence[str | Messages] | None,
    n: int = 1,
    **options: Unpack[SamplingOptions],
) -> list[list[Sample]]:
    """Sample `n` answers to each prompt: `load` and `Model.sample` in one call.

    Args:
        model: a `Model` from `load`, or a path or hub id for `load`.
        prompts: see `Model.sample`.
        n: number of answers to each prompt.
        options: see `SamplingOptions`.

    Raises:
        ConfigError: see `load` and `Model.sample`.
        DataError: see `Model.sample`.

    Examples:
        >>> import anchored
        >>> ((one,),) = anchored.sample("runs/my/model", "Tell me a story.", temperature=0.7)
        >>> isinstance(one.response, str)
        True
    """
    loaded = model if isinstance(model, Model) else load(model)
    return loaded.sample(prompts, n, **options)


def _sample_config(options: Mapping[str, Any]) -> SampleConfig:
    unknown = options.keys() - SamplingOptions.__annotations__.keys()
    if unknown:
        raise ConfigError(
            f"sample: option {min(unknown)!r} is unknown; use one of "
            f"{', '.join(SamplingOptions.__annotations__)}"
        )
    given: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        part, _, rest = field.rpartition(".")
        if name in options:
            (given.setdefault(part, {}) if part else given)[rest] = options[name]
    flags = {field: name for name, field in _FIELDS.items()}
    return validated(SampleConfig, given, source="sample", flags=flags)


def _conversations(
    prompts: str | Sequence[str | Messages] | None,
) -> list[tuple[Message, ...]]:
    if prompts is None:
        return [()]
    if isinstance(prompts, str) or (prompts and all(isinstance(p, Mapping) for p in prompts)):
        prompts = [cast("str | Messages", prompts)]
    return [
        prompt_turns({"prompt" if isinstance(prompt, str) else "messages": prompt}, f"prompts[{i}]")
        for i, prompt in enumerate(prompts)
    ]


def annotate(
    texts: str | Sequence[str],
    schema: str | Schema = "general",
    calibration: str | Path | None = None,
) -> list[Annotation]:
    """Annotate texts with the offline annotator, which downloads nothing.

    The annotator uses rules, lexicons and static vectors.

    Args:
        texts: one text or several; it is better to cut a long document into paragraphs.
        schema: the keys to write: `general`, `stories`, `code`, `math`, a YAML file, or a
            `Schema`.
        calibration: a `calibration.json` from `anchored annotate`; use the same file for all texts
            of a project, so that they are tagged alike. Without it the annotator calibrates itself
            on `texts`.

    Returns:
        One annotation per text; a key is left out if nothing in the text supports a value.

    Raises:
        ConfigError: the schema is unknown, or the annotator can read none of its keys.
        DataError: there is no text, or the file has no calibration.

    Examples:
        >>> import anchored
        >>> found = anchored.annotate(["Mara sailed home to Lisbon.", "Otto slept in Lisbon."])
        >>> found[0].values("location")
        ('Lisbon',)
    """
    try:
        from anchored.annotators.offline import OfflineAnnotator
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"annotate: {error.name} is not installed; pip install 'anchored[annotate]'"
        ) from None
    given = [texts] if isinstance(texts, str) else list(texts)
    keys = schema if isinstance(schema, Schema) else Schema.load(schema)
    if calibration is None:
        return OfflineAnnotator.fit(keys, given).annotate_batch(given)
    return OfflineAnnotator.load(keys, Path(calibration)).annotate_batch(given)


def build_example(
    source: str | Messages,
    annotation: Tags | None = None,
    *,
    tokenizer: AnchoredTokenizer | PreTrainedTokenizerBase | str | Path,
    objective: str = "anchored",
) -> dict[str, list[int]]:
    """Build one training example: token ids, labels and token kinds.

    Args:
        source: the messages of a conversation that ends with the assistant's answer, or the text
            of a document.
        annotation: the annotation of the answer or document, as an `Annotation` or `{key: value}`.
            None uses the `annotation` of the last message.
        tokenizer: the tokenizer of a `Model`, one of `transformers`, a folder or a hub id. A
            `transformers` tokenizer is not modified; if it lacks the annotation tokens, they get
            the ids that `load` would assign.
        objective: what carries loss: `anchored`, `anchored-replay`, `standard`, `tagged` or
            `replay` for conversations, `annotated` or `plain` for documents.

    Returns:
        `input_ids`; `labels`, unshifted and -100 where there is no loss; `kinds`, see
        `anchored.segments.Kind`. `DataCollator` makes batches of such rows.

    Raises:
        ConfigError: the objective is unknown, or the tokenizer cannot be used.
        DataError: a message is malformed, or the annotation that the objective needs is missing.

    Examples:
        >>> import anchored
        >>> chat = [
        ...     {"role": "user", "content": "Tell me"},
        ...     {"role": "assistant", "content": "sea"},
        ... ]
        >>> model = anchored.load("runs/my/model")
        >>> example = anchored.build_example(chat, {"topic": "sea"}, tokenizer=model.tokenizer)
        >>> kept = [i for i in example["labels"] if i != -100]
        >>> model.tokenizer.decode(kept)
        'sea<|endoftext|>'
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective {objective!r}: unknown; use one of {', '.join(OBJECTIVES)}")
    form, ours = OBJECTIVES[objective], _tokenizer(tokenizer)
    tags = annotation if isinstance(annotation, Annotation | None) else Annotation.of(annotation)
    if isinstance(source, str):
        _check_annotation(tags, objective)
        chunk = Chunk(source, tags or Annotation())
        return _columns(document_segments([chunk], ours, form))
    row: dict[str, Any] = {"messages": [dict(turn) for turn in source]}
    item = canonical_row(row, "source")
    assert isinstance(item, Conversation)
    *prompt, answer = item.messages
    if tags is not None:
        answer = replace(answer, annotation=tags)
    _check_annotation(answer.annotation, objective)
    return _columns(conversation_segments([*prompt, answer], ours, form))


def _columns(segments: Sequence[Segment]) -> dict[str, list[int]]:
    example = assemble(segments)
    return {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "kinds": example.kinds,
    }


def _check_annotation(annotation: Annotation | None, objective: str) -> None:
    if annotation is None and OBJECTIVES[objective].annotated:
        raise DataError(
            f"annotation: missing, but objective {objective!r} puts one before the text; give one "
            "(Annotation() if there are no tags), or use objective standard or plain"
        )


def _tokenizer(
    tokenizer: AnchoredTokenizer | PreTrainedTokenizerBase | str | Path,
) -> AnchoredTokenizer:
    if isinstance(tokenizer, AnchoredTokenizer):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        return AnchoredTokenizer.load(tokenizer)
    record = tokenizer_record(tokenizer.name_or_path) if tokenizer.name_or_path else None
    return AnchoredTokenizer.adopt(cast(Any, copy.deepcopy(tokenizer)), record)


def score(texts: OneModel | Mapping[str, OneModel], n: int | None = None, **settings: Any) -> Score:
    """Measure how diverse texts are, and compare the diversity of several models.

    Args:
        texts: for one model, a list of texts or samples (answers to one prompt),
            `{prompt: [texts]}`, or rows `{"prompt", "generations": [...]}` or `{"prompt",
            "response"}`; for several models, `{name: {prompt: [texts]}}` or `{name: rows}`, all
            with the same prompts. Every prompt needs the same number of texts, at least two. A
            mapping is `{name: ...}` if none of its values is a list of texts, else `{prompt:
            [texts]}`: `{"before": [texts], "after": [texts]}` is one model with two prompts.
        n: use only the first `n` texts of each prompt.
        settings: fields of `anchored.scoring.score.ComparisonConfig`: `embedder`, `equivalence`,
            `quality`, `attributes`, `schema_name`, `compare="pairwise"`, `seed` and so on, as for
            `anchored score`.

    Raises:
        ConfigError: a setting is wrong, or a backend cannot be loaded.
        DataError: the texts are in none of these forms, or cannot be compared.
        EndpointError: a judge's server does not answer.

    Examples:
        >>> import anchored
        >>> before = {"Name a tree.": ["An oak.", "The elm!", "Birch.", "A willow?"]}
        >>> after = {"Name a tree.": ["An oak.", "An oak.", "An oak.", "The elm!"]}
        >>> found = anchored.score({"before": before, "after": after}, attributes="none")
        >>> found.results["models"]["after"]["distinct_k"]
        2.0
        >>> print(found.verdict)
        after gives 2.00 different answers in 4, before 4.00, to this prompt.
    """
    config = validated(ComparisonConfig, {"n": n, **settings}, source="score")
    if config.judged and config.journal is None:
        raise ConfigError("journal: a judge's paid answers need a file to be kept in; name a file")
    sets = side_by_side(_sets(texts), config.n, config.seed)
    console = Console(stderr=True)
    journal = config.journal and Path(config.journal)
    readers = load_readers(config, sets, journal or None, console)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("scoring", total=None)
        found = compared(
            config,
            sets,
            readers,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    return Score(found.results)


def _sets(texts: Any) -> list[Generations]:
    """Tell `{name: ...}` from `{prompt: [texts]}` by its values, which are not lists of texts."""
    if isinstance(texts, Mapping) and texts and not any(map(_are_texts, texts.values())):
        return [_set(str(name), one) for name, one in texts.items()]
    return [_set("texts", texts)]


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(isinstance(item, str | Sample) for item in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _set(name: str, given: Any) -> Generations:
    if _are_texts(given):
        given = {"": given}
    if isinstance(given, Mapping) and all(map(_are_texts, given.values())):
        rows = [_row(prompt, one) for prompt, texts in given.items() for one in texts]
    elif _is_list(given) and all(isinstance(row, Mapping) for row in given):
        rows = given
    else:
        raise DataError(
            f"{name}: {str(given)[:80]!r} is neither a list of texts, nor {{prompt: [texts]}}, nor "
            "a list of rows; give one of these, the rows with prompt and generations"
        )
    return generations_of(name, [(f"{name}[{i}]", row) for i, row in enumerate(rows)])


def _row(prompt: str, text: str | Sample) -> dict[str, Any]:
    return text.as_row(prompt) if isinstance(text, Sample) else {"prompt": prompt, "response": text}


@dataclass(frozen=True, repr=False)
class Score:
    """The result of `score`; a notebook shows it as a table.

    Attributes:
        results: the same dictionary that `anchored score` writes to `results.json`.

    Examples:
        >>> import anchored
        >>> texts = {"Name a tree.": ["An oak.", "The elm!"], "And a bird?": ["A wren.", "A wren."]}
        >>> found = anchored.score(texts, attributes="none")
        >>> list(found.by_prompt["distinct_k"])
        [2.0, 1.0]
        >>> print(found.verdict)
        texts gives 1.50 different answers in 2.
    """

    results: dict[str, Any]

    @property
    def table(self) -> str:
        """Each metric of each model with its interval, then each difference, as plain text."""
        console = Console(file=StringIO(), width=100, no_color=True)
        for part in rich_tables(self.results, console.width):
            console.print(part)
        return cast(StringIO, console.file).getvalue()

    @property
    def verdict(self) -> str:
        """The findings of the comparison: one sentence per pair of models, one per line."""
        return "\n".join(verdicts(self.results))

    @property
    def by_prompt(self) -> pd.DataFrame:
        """A `pandas.DataFrame` with one row per model and prompt."""
        return pd.DataFrame(
            {"model": name, **row}
            for name, model in self.results["models"].items()
            for row in model["by_prompt"]
        )

    def plot(self) -> Plots:
        """Draw the entropies, the most frequent values and, with a quality, the trade-off."""
        width = 760
        drawn = [
            entropy_plot(self.results, width),
            top_values_plot(self.results, width),
            trade_off_plot(self.results, width, "quality", "distinct_k"),
        ]
        return Plots(tuple(filter(None, drawn)))

    def __repr__(self) -> str:
        return f"{self.table}\n{self.verdict}"

    def _repr_html_(self) -> str:
        names = [short_name(name) for name in self.results["models"]]
        head = _html_row("th", ["", *names])
        rows = (_html_row("td", [name, *map(str, cells)]) for name, cells in figures(self.results))
        said = "".join(f"<p>{escape(line)}</p>" for line in verdicts(self.results))
        note = f"<p>{escape(caption(self.results))}</p>"
        return f"{said}<table>{head}{''.join(rows)}</table>{note}"


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


@dataclass(frozen=True)
class Plots:
    """Plots that a notebook shows; each of `svgs` is one plot as an SVG element."""

    svgs: tuple[str, ...]

    def _repr_html_(self) -> str:
        return "".join(f"<div>{svg}</div>" for svg in self.svgs)
