"""Sees a model collapse while it trains: a callback for the trainers of transformers and TRL.

Every so many steps it samples a few prompts and logs, beside the loss, how diverse the answers are
and what share of the diversity at the start is kept. Its cost is bounded by a share of the time of
the training steps, and training goes on bit for bit as it would have without it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from transformers import TrainerCallback

from anchored.annotation import Schema
from anchored.config import load_function, validated
from anchored.errors import ConfigError
from anchored.files import write_json
from anchored.metrics.equivalence import Equivalence, WordOverlap
from anchored.models.embedders import load_embedder
from anchored.monitor.probe import Probe, Prompt, check_whole
from anchored.monitor.schedule import StepTimer, TurnScheduler
from anchored.monitor.snapshot import Attributes, DiversitySnapshot, Reader, compared
from anchored.segments import OBJECTIVES
from anchored.train.config import CollapseConfig, MonitorConfig
from anchored.train.metrics_log import COLLAPSE

BASELINE = "collapse_baseline.json"
WARM_UP = 10  # steps at most before the first turn is scheduled


class CollapseMonitor(TrainerCallback):
    """Logs the diversity of a model's answers while it trains.

    `attach` it to a trainer. Given among a trainer's `callbacks`, it reaches the trainer's history
    and printed lines, but not the trackers of `report_to`, which are called before it.

    Logged under `collapse/` beside the loss: the figures of `snapshot.compared`; `seconds` of this
    turn; `step_share`, seconds spent here so far over those of training steps so far; `run_share`,
    the same over those of all steps of the run, as far as can be told.

    Args:
        prompts: what is asked; see `Probe`. They should leave open what to say.
        tokenizer: that of the model.
        annotated: the model writes an annotation before its answer.
        schema: of these annotations.
        attributes: reads `{attribute: value}` off a text. Without it, semantic entropy is that of
            the classes of `equivalence`.
        equivalence: which answers say the same; word overlap by default.
        settings: fields of `CollapseConfig`.

    Raises:
        ConfigError: a setting is wrong, or see `Probe`.

    Examples:
        >>> import anchored
        >>> model = anchored.load("runs/my/model")
        >>> prompts = ["Tell me a story."]
        >>> monitor = anchored.CollapseMonitor(prompts, model.tokenizer, every=50, samples=8)
        >>> monitor.config.every
        50

        `monitor.attach(trainer)` then has every trainer of `transformers` and TRL watched.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        *,
        annotated: bool = False,
        schema: Schema | None = None,
        attributes: Attributes | None = None,
        equivalence: Equivalence | None = None,
        **settings: Any,
    ) -> None:
        self.config = config = validated(CollapseConfig, settings, "CollapseMonitor")
        size = (config.samples, config.max_new_tokens)
        how = (annotated, schema, config.seed, config.batch_size)
        self._probe = Probe(prompts, tokenizer, *size, *how)
        self._equivalence, self._attributes = equivalence or WordOverlap(), attributes
        self._attached = False

    def attach(self, trainer: Any) -> None:
        """Joins a trainer, before the callbacks that report to trackers."""
        trainer.callback_handler.callbacks.insert(0, self)
        self._attached = True

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Takes the baseline or, on a resumed run, reads it.

        Raises:
            ConfigError: the model's weights are sharded, or the baseline was taken with other
                settings.
        """
        check_whole(model)
        if args.report_to and not self._attached and state.is_world_process_zero:
            warnings.warn(
                f"CollapseMonitor: {', '.join(args.report_to)} will not see its figures; use "
                "monitor.attach(trainer) in place of callbacks=[monitor]",
                stacklevel=2,
            )
        config = self.config
        embedder = load_embedder(config.embedder)
        self._reader = Reader(embedder, self._equivalence, self._attributes)
        self._schedule = TurnScheduler(
            config.every, config.budget, state.global_step, state.max_steps
        )
        self._timer = StepTimer()
        self._last, self._next = state.global_step, None
        self._saved = self._warned = False
        self._pending: dict[str, float] = {}
        self._before = self._baseline(Path(args.output_dir) / BASELINE, model, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the step's clock."""
        self._timer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Takes a turn where one is due; the trainer logs it with this step."""
        step = state.global_step
        first_turn = step == self._schedule.first_step + min(self.config.every, WARM_UP)
        if first_turn or step == self._next:
            _wait_for(model)
        self._timer.end()
        if first_turn:
            self._schedule_turn(step, state)
        if step != self._next:
            return
        with self._paid():
            figures = compared(self._before, self._snapshot(model, step))
        self._last = step
        self._pending = {**figures, "seconds": self._cost, **self._shares()}
        control.should_log = True
        self._act(figures, step, state, control)
        self._schedule_turn(step + 1, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Says so where the run was over before its first turn."""
        steps = state.global_step - self._schedule.first_step
        self._warn_of_no_turn(steps, self._timer.mean, state)

    def on_log(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        """Adds the figures of this step's turn to what is logged, and to the trainer's history."""
        if "loss" in logs and self._pending:
            named = {f"{COLLAPSE}{name}": value for name, value in self._pending.items()}
            logs.update(named)
            state.log_history[-1].update(named)
            self._pending = {}

    def _snapshot(self, model: Any, step: int) -> DiversitySnapshot:
        return self._reader.snapshot(self._probe.ask(model, step))

    @contextmanager
    def _paid(self) -> Iterator[None]:
        """Counts the seconds of the body, in the slowest process, as a turn's cost."""
        began = time.perf_counter()
        yield
        self._cost = _longest(time.perf_counter() - began)
        self._schedule.spent += self._cost

    def _schedule_turn(self, step: int, state: Any) -> None:
        """Sets the next turn, by the slowest process, so that all take it together."""
        seconds = _longest(self._timer.mean)
        self._next = self._schedule.next_turn(step, self._last, self._cost, seconds)
        if self._next is None:
            self._warn_of_no_turn(state.max_steps - self._schedule.first_step, seconds, state)

    def _warn_of_no_turn(self, steps: int, seconds: float, state: Any) -> None:
        """Once, where there was none in `steps` of `seconds` each."""
        if (
            self._warned
            or self._last > self._schedule.first_step
            or not state.is_world_process_zero
        ):
            return
        self._warned = True
        warnings.warn(
            f"CollapseMonitor: no turn in {steps} steps: one takes {self._cost:.2g} s and a "
            f"training step {seconds:.2g} s; lower every ({self.config.every}), samples or "
            f"max_new_tokens, or raise budget ({self.config.budget})",
            stacklevel=2,
        )

    def _shares(self) -> dict[str, float]:
        steps = self._schedule.last_step - self._schedule.first_step
        spent = self._schedule.spent
        return {
            "step_share": spent / self._timer.total,
            "run_share": spent / (steps * self._timer.mean),
        }

    def _act(self, figures: dict[str, float], step: int, state: Any, control: Any) -> None:
        """Stops or saves where the whole interval lies below a threshold."""
        high = figures.get("kept_high", float("inf"))
        if high < (self.config.checkpoint_below or 0.0) and not self._saved:
            control.should_save = self._saved = True
        if high < (self.config.stop_below or 0.0):
            control.should_training_stop = True
            Console(stderr=True, quiet=not state.is_world_process_zero).print(
                f"step {step}: training is stopped, for the answers keep {figures['kept']:.0%} "
                f"[{figures['kept_low']:.0%}, {high:.0%}] of their semantic entropy, less than "
                f"stop_below ({self.config.stop_below:.0%})"
            )

    def _baseline(self, path: Path, model: Any, state: Any) -> DiversitySnapshot:
        """Taken now; or read, with what it took, where the run is resumed and has one."""
        stamp = {
            "prompts": self._probe.prompts,
            "samples": self.config.samples,
            "max_new_tokens": self.config.max_new_tokens,
            "readers": self._reader.name,
        }
        kept = _kept_by_main(path) if state.global_step else None
        if kept is not None:
            self._cost = kept["seconds"]
            return _same_settings(path, kept, stamp)
        with self._paid():
            snapshot = self._snapshot(model, state.global_step)
        if state.is_world_process_zero:
            taken = {"step": state.global_step, "seconds": self._cost}
            write_json(path, {**taken, **stamp, **snapshot.as_json()})
            if not snapshot.semantic_entropy:
                warnings.warn(
                    "CollapseMonitor: each prompt's answers all say the same at the start, so "
                    "there is nothing to keep, and no threshold will act; ask prompts that leave "
                    "more open",
                    stacklevel=2,
                )
        return snapshot


def monitor_of(config: MonitorConfig, tokenizer: Any, manifest: dict[str, Any]) -> CollapseMonitor:
    """The monitor of a training run on the prepared data that `manifest` describes.

    Raises:
        ConfigError: `config.attributes` names no function.
    """
    schema = manifest["schema"] and Schema.model_validate(manifest["schema"])
    read: Any = config.attributes and load_function(config.attributes, "monitor.attributes")
    settings = config.model_dump(exclude={"prompts", "attributes"})
    return CollapseMonitor(
        config.prompts,
        tokenizer,
        annotated=OBJECTIVES[manifest["objective"]].annotated,
        schema=schema or None,
        attributes=read or None,
        **settings,
    )


def _kept_by_main(path: Path) -> dict[str, Any] | None:
    """What the main process has in the file, for all: the others may have other disks."""
    kept: list[dict[str, Any] | None] = [None]
    if PartialState().is_main_process and path.is_file():
        kept = [json.loads(path.read_text(encoding="utf-8"))]
    return broadcast_object_list(kept)[0]


def _same_settings(path: Path, data: dict[str, Any], stamp: dict[str, Any]) -> DiversitySnapshot:
    for field, value in stamp.items():
        if data[field] != value:
            raise ConfigError(
                f"{path}: the baseline was taken with {field} = {str(data[field])[:80]!r}, now it "
                f"is {str(value)[:80]!r}; take that value to resume, or remove the file for a new "
                "baseline"
            )
    return DiversitySnapshot(
        data["readings"], data.get("annotations") or data["plans"], data["dissimilarity"]
    )


def _longest(seconds: float) -> float:
    """Of all processes, each of which has to call."""
    if PartialState().num_processes == 1:
        return seconds
    return max(gather_object([seconds]))


def _wait_for(model: Any) -> None:
    """Until the device has done what a step asked of it, which is the step's time and not ours."""
    if model is not None and model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
