"""Find lm-eval's tasks by name or file, load them before any model, and run them on a model."""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
import numpy as np
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string, set_torch_seed

from anchored.benchmark.harness import AnchoredLM, without_notices
from anchored.errors import ConfigError

# The nine tasks of the paper's average (the paper counts ARC as one name), with the folder of
# lm-eval that has each: searching all of its folders takes many seconds.
PAPER_TASKS = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "boolq": "super_glue/boolq",
    "copa": "super_glue/copa",
    "hellaswag": "hellaswag",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "sciq": "sciq",
    "winogrande": "winogrande",
}
PAPER = "paper-zero-shot"
_FOLDERS = {**PAPER_TASKS, "gsm8k": "gsm8k"}
_OFFERED = ("multiple_choice", "loglikelihood", "generate_until")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one model on one task.

    Args:
        metrics: lm-eval's figures, such as `acc` and `acc_stderr`; `acc,strict-match` for a filter.
        task: what the figures depend on: version, hash, shots, items, data.
        rows: lm-eval's log of each item, with the annotations that preceded the answers.
        counts: numbers of malformed annotations and of truncated contexts.
    """

    metrics: dict[str, float | None]
    task: dict[str, Any]
    rows: list[dict[str, Any]]
    counts: dict[str, int]


def expand(names: Sequence[str]) -> list[str]:
    """Replace `paper-zero-shot` by its nine tasks, and drop repeated names."""
    found = [task for name in names for task in (PAPER_TASKS if name == PAPER else (name,))]
    return list(dict.fromkeys(found))


def load_tasks(names: Sequence[str], include: Path | None = None) -> dict[str, Task]:
    """Load tasks and their data by name; a group or tag is expanded into its tasks.

    Args:
        names: names of lm-eval's tasks or of those in `include`, or YAML files.
        include: a folder with more task files.

    Raises:
        ConfigError: a task does not exist, its data is unavailable, or its kind is not supported.
    """
    manager = _manager(names, include)
    tasks: dict[str, Task] = {}
    for name in names:
        for task in _load(manager, name).values():
            tasks[str(task.task_name)] = _checked(task)
    return tasks


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include-path {include}: no such folder; give one with task files")
    home = Path(lm_eval.tasks.__file__).parent
    folders = {home / _FOLDERS[name] for name in names if name in _FOLDERS}
    known = TaskManager(
        include_path=[*sorted(folders), *([include] if include else [])], include_defaults=False
    )
    if all(name in known.all_tasks or _is_file(name) for name in names):
        return known
    return TaskManager(include_path=include)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _load(manager: TaskManager, name: str) -> Mapping[str, Task]:
    if name not in manager.all_tasks and not _is_file(name):
        raise ConfigError(
            f"task {name!r}: unknown to lm-eval, not in --include-path and not a YAML file; "
            "`lm-eval ls tasks` lists lm-eval's tasks"
        )
    try:
        _seed()
        with without_notices():
            return manager.load([name])["tasks"]
    except Exception as error:  # loaders raise whatever datasets, jinja or a task's own code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise ConfigError(
            f"task {name!r}: could not be loaded: {reason}; lm-eval loads a task's data from the "
            "hub, or from the cache of `datasets` if it is there"
        ) from error


def _checked(task: Task) -> Task:
    if task.OUTPUT_TYPE not in _OFFERED:
        raise ConfigError(
            f"task {task.task_name!r}: its output_type {task.OUTPUT_TYPE} is not one of "
            f"{', '.join(_OFFERED)}"
        )
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise ConfigError(
            f"task {task.task_name!r}: it runs code that the model writes, or shows it pictures; "
            "neither is supported here, so use lm-eval itself"
        )
    return task


def items(task: Task, limit: int | None) -> int:
    """Return how many of a task's items are used."""
    return min(len(task.eval_docs), limit or len(task.eval_docs))


def evaluate_task(
    lm: AnchoredLM,
    task: Task,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Run one task with lm-eval's prompts, filters, metrics and standard errors.

    The examples of few-shot prompts are chosen with lm-eval's own seeds.

    Raises:
        ConfigError: the task asks for something that is not supported.
        DataError: a text of the task does not fit into the model's context.
    """
    name = str(task.task_name)
    lm.begin(name, progress)
    _set_shots(task, num_fewshot)
    run: Any = evaluate  # its decorator hides its parameters
    with _quiet():
        _seed()
        found = run(
            lm=lm,
            task_dict={"tasks": {name: task}},
            limit=limit,
            apply_chat_template=lm.chat,
            fewshot_as_multiturn=lm.chat,
        )
    samples = found["samples"][name]
    return Outcome(
        metrics=_metrics(found["results"][name]),
        task={
            "version": found["versions"].get(name),
            "hash": _hash(samples),
            "num_fewshot": found["n-shot"][name],
            "items": found["n-samples"][name]["effective"],
            "output_type": task.OUTPUT_TYPE,
            "data": [task.get_config("dataset_path"), task.get_config("dataset_name")],
        },
        rows=[_row(sample, lm) for sample in samples],
        counts={"malformed_annotations": lm.malformed, "truncated": lm.truncated},
    )


def _set_shots(task: Task, num_fewshot: int | None) -> None:
    """Set the number of examples as `lm_eval.simple_evaluate` does.

    A task that states zero keeps it, and one that states nothing gets zero by default. Calling that
    function itself would also collect facts about the machine, for seconds per task.
    """
    known = task.get_config("num_fewshot")
    if num_fewshot is not None and known != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif known is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _seed() -> None:
    """Set lm-eval's seeds, for tasks that shuffle their choices."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress lm-eval's notices and progress bars: a run shows its own progress."""
    nowhere = io.StringIO()
    with (
        without_notices(),
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _metrics(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return numbers by `metric` or `metric,filter`; None for a missing standard error."""
    metrics: dict[str, float | None] = {}
    for key, value in found.items():
        metric, separator, kind = key.partition(",")
        if separator:
            numeric = isinstance(value, int | float) and math.isfinite(value)
            name = metric if kind == "none" else key
            metrics[name] = float(value) if numeric else None
    return metrics


def _hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """Hash items, prompts and targets as lm-eval's tracker does."""
    return hash_string(
        "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    )


def _row(sample: Mapping[str, Any], lm: AnchoredLM) -> dict[str, Any]:
    annotations = lm.annotations.get(sample["doc_id"])
    return {**sample, "annotations": annotations and [a.rows() for a in annotations]}
