"""lm-eval's tasks: found by name or file, loaded before any model, run on one model at a time."""

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

# The nine behind the paper's average (it counts ARC as one name), by the folder of lm-eval that
# holds each: to search all of its folders takes many seconds.
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
    """One model on one task.

    Args:
        metrics: lm-eval's figures, `acc` and `acc_stderr`; of a filter, `acc,strict-match`.
        task: what the figures rest on: version, hash, shots, items, data.
        rows: lm-eval's log of each item, with the annotations that stood before the answers.
        counts: annotations that could not be read, and contexts that were cut.
    """

    metrics: dict[str, float | None]
    task: dict[str, Any]
    rows: list[dict[str, Any]]
    counts: dict[str, int]


def expand(names: Sequence[str]) -> list[str]:
    """`paper-zero-shot` as its nine tasks; each name once."""
    found = [task for name in names for task in (PAPER_TASKS if name == PAPER else (name,))]
    return list(dict.fromkeys(found))


def load_tasks(names: Sequence[str], include: Path | None = None) -> dict[str, Task]:
    """Load tasks and their data, by name; a group or tag gives its tasks.

    Args:
        names: of lm-eval's tasks, of those in `include`, or YAML files.
        include: a folder with more task files.

    Raises:
        ConfigError: a task does not exist, its data is unavailable, or its kind is not offered.
    """
    manager = _manager(names, include)
    tasks: dict[str, Task] = {}
    for name in names:
        for task in _load(manager, name).values():
            tasks[str(task.task_name)] = _checked(task)
    return tasks


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include-path {include}: no such folder")
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
            f"task {name!r}: not one of lm-eval's, not in --include-path and no YAML file; "
            "`lm-eval ls tasks` lists lm-eval's"
        )
    try:
        _seed()
        with without_notices():
            return manager.load([name])["tasks"]
    except Exception as error:  # its loaders raise whatever datasets, jinja or a task's own code do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise ConfigError(
            f"task {name!r}: could not be loaded: {reason}; lm-eval takes a task's data from the "
            "hub or, where it is there, from the cache of `datasets`"
        ) from error


def _checked(task: Task) -> Task:
    if task.OUTPUT_TYPE not in _OFFERED:
        raise ConfigError(
            f"task {task.task_name!r}: its output_type {task.OUTPUT_TYPE} is not one of "
            f"{', '.join(_OFFERED)}"
        )
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise ConfigError(
            f"task {task.task_name!r}: it runs code that the model writes, or shows it pictures: "
            "neither is offered; use lm-eval itself"
        )
    return task


def items(task: Task, limit: int | None) -> int:
    """How many of a task's items are asked."""
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

    The examples of few-shot prompts are chosen by lm-eval's own seeds.

    Raises:
        ConfigError: the task asks for what cannot be honoured.
        DataError: a text of the task does not fit into the model.
    """
    name = str(task.task_name)
    lm.begin(name, progress)
    _set_shots(task, num_fewshot)
    run: Any = evaluate  # whose decorator hides its parameters
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
    """As `lm_eval.simple_evaluate`: a task that says zero keeps it, one that says nothing gets it.

    That function itself would also gather facts about the machine, for seconds a task.
    """
    known = task.get_config("num_fewshot")
    if num_fewshot is not None and known != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif known is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _seed() -> None:
    """lm-eval's seeds, for tasks that shuffle their choices."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's notices and bars: a run shows its own progress."""
    nowhere = io.StringIO()
    with (
        without_notices(),
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _metrics(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers by `metric` or `metric,filter`; None for a standard error that lm-eval lacks."""
    metrics: dict[str, float | None] = {}
    for key, value in found.items():
        metric, separator, kind = key.partition(",")
        if separator:
            numeric = isinstance(value, int | float) and math.isfinite(value)
            name = metric if kind == "none" else key
            metrics[name] = float(value) if numeric else None
    return metrics


def _hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """Of items, prompts and targets, as lm-eval's tracker computes it."""
    return hash_string(
        "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    )


def _row(sample: Mapping[str, Any], lm: AnchoredLM) -> dict[str, Any]:
    annotations = lm.annotations.get(sample["doc_id"])
    return {**sample, "annotations": annotations and [a.rows() for a in annotations]}
