"""Writes model cards: README.md in a model folder, made only from the model's record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from anchored.annotation import Key, Schema
from anchored.errors import DataError
from anchored.files import atomic_write
from anchored.publish import CARD
from anchored.publish.snippets import Asked, with_anchored, with_transformers, with_vllm
from anchored.report import collapse_table
from anchored.report.collapse_table import columns
from anchored.report.tables import cell, markdown_table
from anchored.segments import OBJECTIVES, Kind, Objective
from anchored.tokenizer import AnchoredTokenizer

_MARK = "\n<!-- written by anchored, {digest}: a card that was changed by hand is kept -->\n"
_LIBRARY, _TASK = "transformers", "text-generation"
_VALUES_SHOWN = 12
_LEARNT = {
    Kind.PROMPT: "prompts",
    Kind.TAG_KEY: "tag keys",
    Kind.TAG_VALUE: "tag values",
    Kind.TEXT: "text",
}


def write_card(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    tokenizer: AnchoredTokenizer,
    results: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the card of the model in `folder` and return its path.

    Args:
        folder: the model folder.
        name: the heading of the card.
        record: the content of `anchored.json`.
        tokenizer: the model's tokenizer.
        results: a `results.json` of `anchored evaluate` or `anchored demo`.
        overwrite: True to replace a card that was edited by hand.

    Raises:
        DataError: the existing card was edited by hand, or `results` are of another kind.
    """
    path = folder / CARD
    if path.is_file() and not overwrite and not _is_ours(path.read_bytes()):
        raise DataError(f"{path}: edited by hand; use --overwrite to replace it")
    atomic_write(path, card(name, record, tokenizer, results))
    return path


def card(
    name: str,
    record: Mapping[str, Any],
    tokenizer: AnchoredTokenizer,
    results: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a card: front matter, training, schema, tokens, sampling, results."""
    schema = Schema.model_validate(record["schema"]) if record["schema"] else None
    chat = Kind.PROMPT not in OBJECTIVES[record["objective"]].loss  # fine-tuning masks prompts
    asked = Asked(chat, record["annotated"], schema, tokenizer.control)
    sections = [
        f"# {name}",
        *_training(record),
        *(_annotations(schema) if record["annotated"] else ()),
        *_control_tokens(tokenizer),
        *_sampling(asked),
        *_results(results),
        *_limits(record["annotated"], results),
        *_versions(record["versions"]),
    ]
    front = front_matter(record, name, results)
    body = f"---\n{front}\n---\n\n" + "\n\n".join(sections) + "\n"
    return body + _MARK.format(digest=_digest(body))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _is_ours(data: bytes) -> bool:
    """Return True if the card is as it was written."""
    text = data.decode(errors="replace")
    body, found, _ = text.rpartition(_MARK.partition("{")[0])
    return bool(found) and text == body + _MARK.format(digest=_digest(body))


def front_matter(record: Mapping[str, Any], name: str, results: Mapping[str, Any] | None) -> str:
    """Return the card's metadata as YAML, with figures for the hub if `results` has the model."""
    figures = [*_figures(results, name)] if results else []
    data = ModelCardData(
        base_model=record.get("base_model") or None,
        datasets=record.get("datasets") or None,
        library_name=_LIBRARY,
        pipeline_tag=_TASK,
        tags=["anchored", f"objective-{record['objective']}", *_trainers(record)],
        model_name=name if figures else None,
        eval_results=figures or None,
    )
    return data.to_yaml(original_order=["library_name", "pipeline_tag"])


def _figures(results: Mapping[str, Any], name: str) -> Iterator[EvalResult]:
    """Yield the figures of the model called `name` in each benchmark of `anchored evaluate`."""
    for benchmark, found in results.get("benchmarks", {}).items():
        if name not in found["models"]:
            continue
        for metric in columns(found):
            figure = cell(found, name, metric)  # empty for a gap without adoption
            if figure.exact is not None:
                bound = figure.value.startswith("≥")
                yield EvalResult(
                    task_type=_TASK,
                    dataset_type=benchmark,
                    dataset_name=benchmark,
                    metric_type=metric,
                    metric_value=figure.value if bound else figure.exact,
                )


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    objective = OBJECTIVES[record["objective"]]
    lines = [_start(record), f"Objective `{objective.name}`: {_losses(objective)}."]
    if share := _format_share(record, objective):
        lines.append(f"In {100 * share:g} % of the examples tag keys carry loss too.")
    if tokens := record.get("tokens"):
        lines.append(
            f"{tokens['kept']:,} tokens of training data, {tokens['supervised']:,} with loss."
        )
    lines += map(_preferences, record.get("preferences", ()))
    yield "\n".join(f"- {line}" for line in lines)


def _trainers(record: Mapping[str, Any]) -> list[str]:
    """Return those of `dpo` and `grpo` that the model was trained with afterwards."""
    made = record.get("preferences", ())
    return list(dict.fromkeys(manifest["config"]["trainer"] for manifest in made))


def _preferences(manifest: Mapping[str, Any]) -> str:
    config = manifest["config"]
    reward = manifest.get("reward", config["reward"])
    return (
        f"Then {config['trainer'].upper()} on {manifest['rows']:,} rows of `anchored preferences`, "
        f"the annotation in the {config['annotation']}{f', reward `{reward}`' if reward else ''}."
    )


def _start(record: Mapping[str, Any]) -> str:
    model, base = record["config"].get("model"), record.get("base_model")
    if model is None:
        start = f", from {base}," if base else ""
        return f"Trained by another trainer{start} on data that `anchored` prepared."
    if model["init"]:
        return f"Started from {base}." if base else "Started from a checkpoint trained before."
    if model["preset"]:
        return f"Trained from scratch: OLMo-2 in the preset `{model['preset']}`."
    return f"Trained from scratch: a `{model['config'].get('model_type')}` configuration."


def _losses(objective: Objective) -> str:
    shown = {
        kind: name
        for kind, name in _LEARNT.items()
        if objective.annotated or kind in (Kind.PROMPT, Kind.TEXT)
    }
    learnt = ", ".join(name for kind, name in shown.items() if kind in objective.loss)
    masked = ", ".join(name for kind, name in shown.items() if kind not in objective.loss)
    return f"loss on {learnt}" + (f"; none on {masked}" if masked else "")


def _format_share(record: Mapping[str, Any], objective: Objective) -> float:
    data = record["config"].get("data")
    given = data.get("format_share") if isinstance(data, dict) else None
    return objective.format_share if given is None else given


def _annotations(schema: Schema | None) -> Iterator[str]:
    yield "## Annotations"
    yield "Before each text stand `key: value` tags that say what it is about, one a line."
    if schema is None:
        yield "No schema was given: keys and values are free."
        return
    yield f"Schema `{schema.name}`:"
    rows = [(key.name, _values(key), _most(key), "yes" if key.anchored else "no")
            for key in schema.keys]  # fmt: skip
    yield _table(("key", "values", "tags of it", "anchored"), rows)
    yield "The values of anchored keys are what fine-tuning is kept from narrowing."


def _values(key: Key) -> str:
    if key.values is None:
        return "open"
    more = len(key.values) - _VALUES_SHOWN
    return ", ".join(key.values[:_VALUES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _most(key: Key) -> str:
    return "any number" if key.limit is None else f"up to {key.limit}"


def _control_tokens(tokenizer: AnchoredTokenizer) -> Iterator[str]:
    yield "## Control tokens"
    ids = {role: i for role, i in asdict(tokenizer.control).items() if i is not None}
    rows = [(role, f"`{tokenizer.hf.convert_ids_to_tokens(i)}`", str(i)) for role, i in ids.items()]
    yield _table(("role", "token", "id"), rows)


def _sampling(asked: Asked) -> Iterator[str]:
    yield "## Sampling"
    if asked.annotated:
        yield "The opening token is put; the model writes tags, closes them and goes on."
    yield f"With `anchored`:\n\n```sh\n{with_anchored(asked)}\n```"
    yield f"With transformers 5:\n\n```python\n{with_transformers(asked)}\n```"
    yield f"With vLLM:\n\n```python\n{with_vllm(asked)}\n```"


def _results(results: Mapping[str, Any] | None) -> Iterator[str]:
    if results is None:
        return
    if not isinstance(results.get("models"), dict) or "comparisons" not in results:
        raise DataError(
            "--results: has no `models` and `comparisons`; name the results.json of "
            "`anchored evaluate` or `anchored demo`"
        )
    yield "## Results"
    if "benchmarks" not in results:
        yield markdown_table(results)
    for name, found in results.get("benchmarks", {}).items():
        yield f"### {name}\n\n{collapse_table.markdown(found)}"


def _limits(annotated: bool, results: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Limits"
    lines = []
    if annotated:
        lines.append("It was trained to write behind an annotation, not without one.")
        lines.append(
            "Breadth comes from the annotation being sampled: greedy decoding, and temperatures "
            "below 1 while tags are written, narrow it."
        )
        lines.append("What a text says is led by its tags; that it keeps them is not certain.")
    if results is None:
        lines.append("Nothing was measured for this card.")
    lines.append("It has the biases and errors of the data that it was trained on.")
    yield "\n".join(f"- {line}" for line in lines)


def _versions(versions: Mapping[str, str]) -> Iterator[str]:
    yield "## Versions"
    yield ", ".join(f"{name} {version}" for name, version in versions.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
