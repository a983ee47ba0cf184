"""Run the stages of a study: resumable pieces of work in separate processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from anchored.processes import end_with_parent
from anchored.train.metrics_log import read_metrics


@dataclass(frozen=True)
class Stage:
    """One resumable piece of work: `work(*arguments)` in another process, once `needs` are done.

    `steps` is its number of training steps, 0 without training; progress is read from
    `folder`/metrics.jsonl.
    """

    name: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder: Path
    needs: tuple[str, ...] = ()
    steps: int = 0


def execute(stages: list[Stage], workers: int, console: Console) -> None:
    """Run each stage once its needs are done, at most `workers` at a time, with a progress bar.

    The first failure is raised, and no further stage is started.
    """
    waiting, done = list(stages), set[str]()
    running: dict[Future[Any], Stage] = {}
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("TQDM_DISABLE", "1")  # hides libraries' bars in the workers
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_interactive
        ) as progress,
        ProcessPoolExecutor(workers, context, initializer=_become_worker) as pool,
    ):
        overall = progress.add_task("all stages", total=len(stages))
        bars: dict[str, TaskID] = {}
        while waiting or running:
            for stage in [s for s in waiting if done.issuperset(s.needs)]:
                if len(running) < workers:
                    waiting.remove(stage)
                    running[pool.submit(stage.work, *stage.arguments)] = stage
                    bars[stage.name] = progress.add_task(stage.name, total=stage.steps or None)
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            _show(progress, bars, running)
            for future in finished:
                future.result()
                stage = running.pop(future)
                done.add(stage.name)
                progress.remove_task(bars.pop(stage.name))
                progress.advance(overall)


def _become_worker() -> None:
    torch.set_num_threads(1)
    end_with_parent()


def _show(
    progress: Progress, bars: Mapping[str, TaskID], running: Mapping[Future[Any], Stage]
) -> None:
    for stage in running.values():
        rows = read_metrics(stage.folder) if stage.steps else []
        progress.update(bars[stage.name], completed=rows[-1]["step"] if rows else 0)
