"""`anchored capability`: run lm-eval's benchmarks on models with and without annotations.

Each model is asked in the format it was trained in; an annotated model answers after an annotation.
Scores, their standard errors and their versions are lm-eval's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator
from rich.console import Console
from rich.progress import Progress
from transformers import AutoConfig

from anchored.annotation import Annotation
from anchored.benchmark.harness import AnchoredLM, AnnotationConfig, Lead
from anchored.benchmark.tasks import Outcome, evaluate_task, expand, items, load_tasks
from anchored.config import Config, versions
from anchored.errors import ConfigError, DataError
from anchored.files import (
    building,
    claim,
    read_jsonl,
    released_if_unused,
    write_json,
    write_jsonl,
)
from anchored.metrics.statistics import holm, paired_difference
from anchored.models.precision import Dtype
from anchored.models.record import find_record
from anchored.sampling.sampler import LocalSampler, load, pinned_tags
from anchored.segments import OBJECTIVES, Kind
from anchored.tokenizer import load_error

RESULT, SAMPLES = "result.json", "samples.jsonl"


class CapabilityConfig(Config):
    """The models, the tasks, and how the tasks are put to the models.

    Args:
        models: folders or hub ids.
        tasks: lm-eval's names, YAML files, or `paper-zero-shot` for the paper's nine tasks.
        include_path: a folder with more task files.
        annotation: what precedes the answers of models that were trained with annotations; other
            models are asked without one. `sampled`: the model writes an annotation after `pins`,
            once per item. `given`: only `pins`. `none`: no annotation.
        pins: key and value of tags that every annotation starts with.
        annotations: how annotations are sampled.
        format: `chat` puts a task as a conversation, `document` as plain text. `auto` uses a
            conversation if the model was fine-tuned on conversations or has a chat template.
        num_fewshot: examples in the prompt; None leaves it to the task.
        limit: use only this many items of each task, for a quick trial.
        batch_size: sequences per batch, or `auto` for as many as fit, as measured by lm-eval.
            Figures do not depend on it.
        dtype: precision to load models in, see `anchored.models.precision.sampling_dtype`.
        device_map: where `transformers` puts the layers (`auto`, `cpu`, `cuda:1`); None uses the
            first GPU if there is one.
        seed: seed of sampled annotations and answers.
        resamples: resamples per interval.
    """

    models: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    include_path: str | None = None
    annotation: Literal["sampled", "given", "none"] = "sampled"
    pins: tuple[tuple[str, str], ...] = ()
    annotations: AnnotationConfig = AnnotationConfig()
    format: Literal["auto", "chat", "document"] = "auto"
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, gt=0)
    batch_size: PositiveInt | Literal["auto"] = 16
    dtype: Dtype = "auto"
    device_map: str | None = None
    seed: int = Field(default=0, ge=0)
    resamples: int = Field(default=2000, ge=100)

    @model_validator(mode="after")
    def _pins_are_used(self) -> CapabilityConfig:
        if self.annotation == "none" and self.pins:
            raise ValueError("pins: annotation none has no tags to pin; remove one of the two")
        if self.annotation == "given" and not self.pins:
            raise ValueError("annotation given: no tags are given; add --pin key=value")
        return self


def run(config: CapabilityConfig, out: Path, console: Console) -> dict[str, Any]:
    """Run every task on every model; `console` shows the number of items.

    Tasks that an interrupted run finished in `out` are kept: `<model>/<task>/result.json` and
    `samples.jsonl` are written whole or not at all. `results.json` is written at the end.

    Returns:
        `models.<name>.capability.<task>.<metric>` with `<metric>_stderr`, `capability_average`,
        `tasks`, `comparisons.<name>.against.<first>.<task>.<metric>`, `config`, `versions`.

    Raises:
        ConfigError: a task or model does not exist or cannot be asked in this way, or `out`
            contains another run.
    """
    names = _named(config.models)
    claim(out, config, free=("device_map",))
    with released_if_unused(out):
        widths = {model: _width(model) for model in config.models}
        _check_annotation(config)
        include = None if config.include_path is None else Path(config.include_path)
        tasks = load_tasks(expand(config.tasks), include)
    _announce(config, tasks, console)
    found = {
        name: _run_model(model, widths[model], tasks, config, out / name)
        for name, model in names.items()
    }
    results = _results(config, found, out)
    write_json(out / "results.json", results)
    return results


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return short names: the last part of each path other than `model`, and more if ambiguous.

    Raises:
        ConfigError: a model is named twice.
    """
    parts = {
        model: [p for p in Path(model).parts if p != "model" and p.strip("/.")] or [model]
        for model in models
    }
    for depth in range(1, max(map(len, parts.values())) + 1):
        names = {"-".join(part[-depth:]): model for model, part in parts.items()}
        if len(names) == len(models):
            return names
    raise ConfigError(f"models {', '.join(models)}: one is given twice; give each model once")


def _width(model: str) -> int:
    """Return the model's vocabulary size before this package adds control tokens to it."""
    try:
        return (
            AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().vocab_size
        )
    except (OSError, ValueError) as error:
        raise load_error("model", model, error) from None


def _check_annotation(config: CapabilityConfig) -> None:
    """Check, before any model is loaded, that at least one of them follows the user's tags."""
    if config.pins and not any(
        (find_record(model) or {}).get("annotated") for model in config.models
    ):
        raise ConfigError(
            f"--pin: none of {', '.join(config.models)} was trained with annotations, so none "
            "follows tags; remove --pin and --annotation given"
        )


def _announce(config: CapabilityConfig, tasks: Mapping[str, Any], console: Console) -> None:
    counts = {name: items(task, config.limit) for name, task in tasks.items()}
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    total = sum(counts.values()) * len(config.models)
    console.print(f"{total} items for {len(config.models)} models: {each}", highlight=False)


def _run_model(
    model: str, width: int, tasks: Mapping[str, Any], config: CapabilityConfig, out: Path
) -> dict[str, Any]:
    """Return the results of each task; load the model only if one is missing."""
    stamp = _stamp(model)
    missing = [name for name in tasks if not (out / name / RESULT).is_file()]
    if missing:
        lm = _model(load(model, config.dtype, config.device_map), width, config)
        with _progress() as bar:
            for name in missing:
                _run_task(lm, tasks[name], config, out / name, stamp, bar)
    return {name: _kept(out / name, model, stamp) for name in tasks}


def _stamp(model: str) -> dict[str, list[int]]:
    """Return size and modification time of each weight file; empty for a hub id."""
    files = sorted(Path(model).glob("*.safetensors"))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _run_task(
    lm: AnchoredLM,
    task: Any,
    config: CapabilityConfig,
    out: Path,
    stamp: dict[str, list[int]],
    bar: Progress,
) -> None:
    line = bar.add_task(f"{out.parent.name}: {out.name}", total=None)
    found = evaluate_task(
        lm,
        task,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        progress=lambda done, total: bar.update(line, advance=done, total=total),
    )
    bar.remove_task(line)
    with building(out) as partial:
        write_jsonl(partial / SAMPLES, found.rows)
        write_json(partial / RESULT, _result(lm, found, stamp))


def _result(lm: AnchoredLM, found: Outcome, stamp: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "path": lm.source.name,
        "weights": stamp,
        "format": "chat" if lm.chat else "document",
        "annotation": lm.lead.mode,
        "pins": lm.lead.pinned.rows(),
        "task": found.task,
        "metrics": found.metrics,
        "counts": found.counts,
        "versions": versions() | {"lm_eval": metadata.version("lm_eval")},
    }


def _kept(folder: Path, model: str, stamp: dict[str, list[int]]) -> dict[str, Any]:
    found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if found["weights"] != stamp:
        raise DataError(
            f"{folder}: the weights of {model} have changed since this was made; remove it, or "
            "choose another output folder"
        )
    return found


def _progress() -> Progress:
    # Bound to the current stderr, because lm-eval's own progress bars are redirected away from it.
    console = Console(file=sys.stderr)
    return Progress(
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _model(source: LocalSampler, width: int, config: CapabilityConfig) -> AnchoredLM:
    pinned = Annotation()
    mode: Literal["sampled", "given", "none"] = config.annotation if source.annotated else "none"
    if mode != "none":
        pinned = pinned_tags(source, config.pins, annotated=True)
    return AnchoredLM(
        source,
        chat=_is_chat(source, config),
        lead=Lead(mode, pinned, config.annotations),
        width=width,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _is_chat(source: LocalSampler, config: CapabilityConfig) -> bool:
    if config.format == "chat" and source.chat == "none":
        raise ConfigError(
            f"--format chat: {source.name} has no chat format; use --format auto or document"
        )
    if config.format != "auto":
        return config.format == "chat"
    objective = OBJECTIVES.get((find_record(source.name) or {}).get("objective", ""))
    pretrained = objective is not None and Kind.PROMPT in objective.loss
    return source.chat != "none" and not pretrained


def headline(metrics: Mapping[str, float | None]) -> str:
    """Return the metric that represents a task: `acc_norm`, else `acc`, else its first.

    The paper does not say which metric it averages: this is our choice.
    """
    return next((name for name in ("acc_norm", "acc") if name in metrics), next(iter(metrics)))


def _results(
    config: CapabilityConfig, found: Mapping[str, dict[str, Any]], out: Path
) -> dict[str, Any]:
    first, *others = found
    return {
        "command": "capability",
        "config": config.model_dump(mode="json"),
        "versions": versions() | {"lm_eval": metadata.version("lm_eval")},
        "seeds": [config.seed],
        "tasks": {
            name: {**one["task"], "headline": headline(one["metrics"])}
            for name, one in found[first].items()
        },
        "models": {name: _model_figures(tasks) for name, tasks in found.items()},
        "comparisons": {
            name: {"against": {first: _differences(config, found[first], out / first, out / name)}}
            for name in others
        },
        "notes": _notes(config, found),
    }


def _model_figures(tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    one = next(iter(tasks.values()))
    return {
        **{name: one[name] for name in ("path", "format", "annotation", "pins")},
        "capability": {name: task["metrics"] for name, task in tasks.items()},
        "capability_average": average([task["metrics"] for task in tasks.values()]),
        "counts": {name: task["counts"] for name, task in tasks.items()},
    }


def average(tasks: Sequence[Mapping[str, float | None]]) -> float | None:
    """Return the mean of the tasks' headline metrics; None if a task has no number."""
    values = [metrics[headline(metrics)] for metrics in tasks]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(values) if len(known) == len(values) else None


def _differences(
    config: CapabilityConfig, tasks: Mapping[str, dict[str, Any]], first: Path, other: Path
) -> dict[str, dict[str, Any]]:
    """Return the other model minus the first, item by item; Holm over all tasks and metrics."""
    found = {
        (task, metric): paired_difference(*values, config.resamples, seed=config.seed).as_json()
        for task in tasks
        for metric, values in _paired(other / task, first / task).items()
    }
    adjusted = holm([one["p"] for one in found.values()])
    for one, p in zip(found.values(), adjusted, strict=True):
        one["p_holm"] = p
    return {
        task: {metric: one for (of, metric), one in found.items() if of == task} for task in tasks
    }


def _paired(one: Path, other: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Return both models' values of each item, for each metric with at least two items."""
    ours, theirs = item_values(one), item_values(other)
    for metric in ours:
        if ours[metric].keys() != theirs.get(metric, {}).keys():
            raise DataError(
                f"{one} and {other}: they have answers to different items; remove one of them to "
                "run it again"
            )
    return {
        metric: (list(values.values()), [theirs[metric][item] for item in values])
        for metric, values in ours.items()
        if len(values) > 1
    }


def item_values(folder: Path) -> dict[str, dict[str, float]]:
    """Return the value of each item by metric, for the metrics that are means over items."""
    means = json.loads((folder / RESULT).read_text(encoding="utf-8"))["metrics"]
    found: dict[str, dict[str, float]] = {}
    for _, row in read_jsonl(folder / SAMPLES):
        for metric in row["metrics"]:
            name = metric if row["filter"] == "none" else f"{metric},{row['filter']}"
            if isinstance(row[metric], int | float):
                item = f"{row['doc_id']}:{row['doc_hash']}"
                found.setdefault(name, {})[item] = float(row[metric])
    return {
        name: values
        for name, values in found.items()
        if means.get(name) is not None
        and math.isclose(math.fsum(values.values()) / len(values), means[name], abs_tol=1e-9)
    }


def _notes(config: CapabilityConfig, found: Mapping[str, dict[str, Any]]) -> list[str]:
    notes = ["Averages are over acc_norm where a task has it, else acc, else its first metric."]
    if config.limit is not None:
        notes.append(f"Only the first {config.limit} items of each task: no benchmark figures.")
    for name, tasks in found.items():
        for task, one in tasks.items():
            for what, count in one["counts"].items():
                if count:
                    notes.append(f"{name}, {task}: {count} {what.replace('_', ' ')}.")
    return notes
