"""The estimate of `anchored plan` as a terminal table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from anchored.plan.estimate import Plan
from anchored.plan.hardware import GIB

_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations, peak",
    "gathered": "gathered layers",
    "accumulated": "unsharded gradients",
    "buckets": "gradient buckets",
    "base": "frozen base model",
}


def rich_table(plan: Plan) -> Table:
    """Return a table with one line per figure."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in rows(plan):
        table.add_row(*row)
    return table


def rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the basis of each figure."""
    run, hardware = plan.run, plan.hardware
    yield "run", f"{run['stage']}, {run['objective']}", f"{hardware.devices} x {hardware.device}"
    yield "parameters", f"{plan.parameters['total']:,}", _embeddings(plan)
    yield "tokens", f"{plan.tokens['trained']:.3g}", f"{plan.tokens['with_loss']:.3g} with loss"
    yield "steps", f"{run['steps']:,}", _step(plan)
    yield "FLOPs", f"{plan.flops['total']:.3g}", _shares(plan.flops)
    yield from _memory(plan)
    yield "device hours", f"{plan.hours['device']:,.1f}", _speed(plan)
    yield "wall hours", f"{plan.hours['wall']:,.1f}", ""
    yield from _annotation(plan)
    yield from _disk(plan)
    if plan.cost:
        for name, value in plan.cost.items():
            yield f"cost, {name}", f"{value:,.2f}", ""
    for note in plan.notes:
        yield "note", "", note


def _embeddings(plan: Plan) -> str:
    found = f"{plan.parameters['embeddings']:,} of them in the embeddings"
    trained = plan.parameters["trained"]
    return found if trained == plan.parameters["total"] else f"{found}, {trained:,} trained"


def _step(plan: Plan) -> str:
    return f"{plan.run['rows_a_step']:,} rows, {plan.tokens['a_step']:,.0f} tokens each"


def _shares(flops: Mapping[str, float]) -> str:
    parts = ((name, value / flops["total"]) for name, value in flops.items() if name != "total")
    return ", ".join(f"{name} {share:.0%}" for name, share in parts if share)


def _memory(plan: Plan) -> Iterator[tuple[str, str, str]]:
    has = f"of {plan.hardware.memory_gib:,.0f} GiB"
    # Under FSDP, the trainer's own checkpointing would gather the weights once more.
    inside = "fsdp_config.activation_checkpointing=true"
    ways = inside if plan.run["sharded"] else "fsdp, activation_checkpointing=true"
    way_out = f"trainer.{ways} or a smaller per_device_train_batch_size"
    verdict = f"{has}: fits" if plan.fits else f"{has}: does not fit; try {way_out}"
    yield "memory per device", _gib(plan.memory["total"]), verdict
    for name, label in _PARTS.items():
        if plan.memory[name]:
            yield f"  {label}", _gib(plan.memory[name]), ""


def _speed(plan: Plan) -> str:
    at = f"at {plan.reached:.0%} of {plan.hardware.tflops:,.3g} TFLOP/s"
    return f"{at}; mfu (parameters only) {plan.mfu:.0%}"


def _annotation(plan: Plan) -> Iterator[tuple[str, str, str]]:
    if plan.annotation is not None:
        hours: Any = plan.annotation["device_hours"]
        yield (
            "annotation hours",
            "—" if hours is None else f"{hours:,.1f}",
            plan.annotation["basis"],
        )


def _disk(plan: Plan) -> Iterator[tuple[str, str, str]]:
    parts = ", ".join(f"{n} {_gib(plan.disk[n])}" for n in ("data", "checkpoints", "model"))
    each = _gib(plan.disk["checkpoint"])
    yield "disk", _gib(plan.disk["total"]), f"{parts}; {each} per checkpoint"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
