"""Detect collapse during training: a callback for the trainers of transformers and TRL.

At intervals it samples a few prompts and logs, beside the loss, the diversity of the answers and
the share of the initial diversity that remains. Its cost is limited to a share of the time of the
training steps, and training continues bit for bit as without it.
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
WARM_UP = 10  # maximum number of steps before the first turn is scheduled


class CollapseMonitor(TrainerCallback):
    """A callback that logs the diversity of a model's answers during training.

    `attach` it to a trainer. If it is passed in the trainer's `callbacks` instead, its figures
    appear in the trainer's history and printed lines, but not in the trackers of `report_to`, which
    are called before it.

    It logs under `collapse/`, beside the loss: the figures of `snapshot.compared`; `seconds`, the
    time of this turn; `step_share`, the time of all turns so far divided by that of the training
    steps so far; `run_share`, the same divided by the estimated time of all steps of the run.

    Args:
        prompts: open-ended prompts to sample; see `Probe`.
        tokenizer: the tokenizer of the model.
        annotated: True if the model writes an annotation before its answer.
        schema: the schema of these annotations.
        attributes: function that reads `{attribute: value}` from a text. Without it, semantic
            entropy is that of the classes of `equivalence`.
        equivalence: decides which answers say the same; word overlap by default.
        settings: fields of `CollapseConfig`.

    Raises:
        ConfigError: a setting is wrong; see `Probe` too.

    Examples:
        >>> import anchored
        >>> model = anchored.load("runs/my/model")
        >>> prompts = ["Tell me a story."]
        >>> monitor = anchored.CollapseMonitor(prompts, model.tokenizer, every=50, samples=8)
        >>> monitor.config.every
        50

        Then call `monitor.attach(trainer)`, for any trainer of `transformers` or TRL.
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
        """Add this callback to a trainer, before the callbacks that report to trackers."""
        trainer.callback_handler.callbacks.insert(0, self)
        self._attached = True

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Measure the baseline or, in a resumed run, read it.

        Raises:
            ConfigError: the model's weights are sharded, or the baseline was measured with other
                settings.
        """
        check_whole(model)
        if args.report_to and not self._attached and state.is_world_process_zero:
            warnings.warn(
                f"CollapseMonitor: {', '.join(args.report_to)} will not see its figures; use "
                "monitor.attach(trainer) instead of callbacks=[monitor]",
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
        """Start the timer of the step."""
        self._timer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take a turn if one is due; the trainer logs it with this step."""
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
        """Warn if the run ended before its first turn."""
        steps = state.global_step - self._schedule.first_step
        self._warn_of_no_turn(steps, self._timer.mean, state)

    def on_log(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        """Add the figures of this step's turn to the log and to the trainer's history."""
        if "loss" in logs and self._pending:
            named = {f"{COLLAPSE}{name}": value for name, value in self._pending.items()}
            logs.update(named)
            state.log_history[-1].update(named)
            self._pending = {}

    def _snapshot(self, model: Any, step: int) -> DiversitySnapshot:
        return self._reader.snapshot(self._probe.ask(model, step))

    @contextmanager
    def _paid(self) -> Iterator[None]:
        """Record the seconds of the body, in the slowest process, as the cost of a turn."""
        began = time.perf_counter()
        yield
        self._cost = _longest(time.perf_counter() - began)
        self._schedule.spent += self._cost

    def _schedule_turn(self, step: int, state: Any) -> None:
        """Schedule the next turn by the slowest process, so that all processes take it together."""
        seconds = _longest(self._timer.mean)
        self._next = self._schedule.next_turn(step, self._last, self._cost, seconds)
        if self._next is None:
            self._warn_of_no_turn(state.max_steps - self._schedule.first_step, seconds, state)

    def _warn_of_no_turn(self, steps: int, seconds: float, state: Any) -> None:
        """Warn once if no turn fits into `steps` steps of `seconds` each."""
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
        """Stop or save if the whole interval is below a threshold."""
        high = figures.get("kept_high", float("inf"))
        if high < (self.config.checkpoint_below or 0.0) and not self._saved:
            control.should_save = self._saved = True
        if high < (self.config.stop_below or 0.0):
            control.should_training_stop = True
            Console(stderr=True, quiet=not state.is_world_process_zero).print(
                f"step {step}: training stops: the answers keep {figures['kept']:.0%} "
                f"[{figures['kept_low']:.0%}, {high:.0%}] of their semantic entropy, less than "
                f"stop_below ({self.config.stop_below:.0%})"
            )

    def _baseline(self, path: Path, model: Any, state: Any) -> DiversitySnapshot:
        """Measure the baseline now, or read it with its cost if a resumed run has one."""
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
                    "CollapseMonitor: at the start, all answers to each prompt say the same, so "
                    "there is no diversity to keep and no threshold will act; use more open-ended "
                    "prompts",
                    stacklevel=2,
                )
        return snapshot


def monitor_of(config: MonitorConfig, tokenizer: Any, manifest: dict[str, Any]) -> CollapseMonitor:
    """Build the monitor of a training run on the prepared data that `manifest` describes.

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
    """Read the file in the main process, for all processes: others may have other disks."""
    kept: list[dict[str, Any] | None] = [None]
    if PartialState().is_main_process and path.is_file():
        kept = [json.loads(path.read_text(encoding="utf-8"))]
    return broadcast_object_list(kept)[0]


def _same_settings(path: Path, data: dict[str, Any], stamp: dict[str, Any]) -> DiversitySnapshot:
    for field, value in stamp.items():
        if data[field] != value:
            raise ConfigError(
                f"{path}: the baseline was measured with {field} = {str(data[field])[:80]!r}, but "
                f"now it is {str(value)[:80]!r}; restore that value to resume, or remove the file "
                "for a new baseline"
            )
    return DiversitySnapshot(
        data["readings"], data.get("annotations") or data["plans"], data["dissimilarity"]
    )


def _longest(seconds: float) -> float:
    """Return the maximum over all processes, each of which must call this."""
    if PartialState().num_processes == 1:
        return seconds
    return max(gather_object([seconds]))


def _wait_for(model: Any) -> None:
    """Wait until the device has finished a step, so that its time is not counted as ours."""
    if model is not None and model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
