"""The resource estimate of a training run: parameters, FLOPs, memory, hours, disk and money.

Parameters are counted on the model itself, built on the meta device; memory is that of a simulated
step (`plan.footprint`); hours follow from a stated utilisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from anchored.models.build import model_configuration
from anchored.models.lora import check_lora, without_adapter
from anchored.plan.footprint import Step, adapted, footprint
from anchored.plan.hardware import GIB, REACHED, Hardware
from anchored.plan.workload import Data, Layout, data_of
from anchored.segments import OBJECTIVES
from anchored.step.losses import CROSS_ENTROPY
from anchored.step.muon import hidden_matrices, orthogonalising_flops
from anchored.tokenizer import loading
from anchored.train.config import (
    SFTConfig,
    TrainConfig,
    check_trainer_fields,
    learns_base_distribution,
)
from anchored.train.metrics_log import attention_flops, head_size, training_flops

# "About three days on 8 x H100", given once for all sizes; taken as the 50B tokens of the largest.
PAPER_ANNOTATION_HOURS_A_TOKEN = 3 * 24 * 8 / 50e9
_KNOWN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


@dataclass(frozen=True)
class Plan:
    """The estimate in plain numbers (FLOPs, bytes, hours): parts by name, including `total`.

    `memory` is that of one device. Its parts need not peak at the same time, so on a single device
    the total can be less than their sum.
    """

    run: dict[str, Any]
    parameters: dict[str, int]
    tokens: dict[str, float]
    flops: dict[str, float]
    memory: dict[str, float]
    hours: dict[str, float]
    annotation: dict[str, Any] | None
    disk: dict[str, float]
    cost: dict[str, float] | None
    hardware: Hardware
    notes: list[str] = field(default_factory=list)

    @property
    def mfu(self) -> float:
        """The `mfu` that `metrics.jsonl` will show at this speed, relative to this peak."""
        return self.flops["model"] / self._peak_flops

    @property
    def reached(self) -> float:
        """Share of the peak that all FLOPs reach, including attention and recomputation."""
        return self.flops["total"] / self._peak_flops

    @property
    def _peak_flops(self) -> float:
        return self.hours["device"] * 3600 * self.hardware.tflops * 1e12

    @property
    def fits(self) -> bool:
        """True if the run fits into the memory of a device."""
        return self.memory["total"] <= self.hardware.memory_gib * GIB

    def to_json(self) -> dict[str, Any]:
        """Return all fields and properties, for other programs."""
        return {**asdict(self), "fits": self.fits, "mfu": self.mfu, "reached": self.reached}


def plan(
    config: TrainConfig,
    hardware: Hardware,
    supervised: float | None = None,
    projection: Mapping[str, Any] | None = None,
) -> Plan:
    """Estimate what the run that `config` describes takes on `hardware`.

    Args:
        config: configuration of pretraining or SFT; its data need not be prepared yet.
        hardware: the devices.
        supervised: share of the tokens with loss, if the data is not prepared; 1 by default.
        projection: output of `anchored annotate --dry-run N --json`, to replace the paper's figure.

    Raises:
        ConfigError: a field is wrong or missing; see `workload.data_of`.
        DataError: the folder of the data is not a prepared dataset.
    """
    check_trainer_fields(config)
    data, layout = data_of(config, supervised), Layout(config, hardware.devices)
    model = _model(config, data)
    steps, trained = layout.steps(data), layout.trained_tokens(data)
    flops = _flops(config, model, data, trained, layout, steps)
    memory = _memory(config, model, data, layout, hardware)
    hours = _device_hours(flops, hardware)
    annotation = None if data.prepared or not data.annotated else _annotation(data, projection)
    return Plan(
        run=_run(config, data, layout, steps),
        parameters=_parameters(model),
        tokens={
            "data": data.tokens,
            "trained": trained,
            "with_loss": trained * data.supervised,
            "a_step": trained / steps,
        },
        flops=flops,
        memory=memory,
        hours={"device": hours, "wall": hours / hardware.devices},
        annotation=annotation,
        disk=_disk(data, model, layout, steps),
        cost=_cost(hours, annotation, hardware.price_per_hour),
        hardware=hardware,
        notes=_notes(config, model, data, layout),
    )


def _model(config: TrainConfig, data: Data) -> Any:
    """Build the model on the meta device, with its adapter if it has one."""
    shape = model_configuration(config.model, data.vocab_size, eos_token_id=0)
    if config.model.lora is not None:
        check_lora(quantize=False)  # an estimate quantizes nothing
    init = config.model.init
    with torch.device("meta"):
        with loading("model", init) if init else nullcontext():
            model = AutoModelForCausalLM.from_config(
                shape, dtype=config.model.torch_dtype, trust_remote_code=False
            )
        return adapted(model, config.model.lora) if config.model.lora else model


def _device_hours(flops: Mapping[str, float], hardware: Hardware) -> float:
    """Convert FLOPs to hours; `mfu` refers to `model` only, `REACHED` to all FLOPs."""
    counted = flops["total"] / REACHED if hardware.mfu is None else flops["model"] / hardware.mfu
    return counted / (hardware.tflops * 1e12) / 3600


def _run(config: TrainConfig, data: Data, layout: Layout, steps: int) -> dict[str, Any]:
    return {
        "stage": "sft" if isinstance(config, SFTConfig) else "pretrain",
        "objective": data.objective,
        "steps": steps,
        "rows_a_step": layout.rows_a_step,
        "tokens_a_row": data.tokens / data.rows,
        "sharded": layout.sharded,
        "activation_checkpointing": layout.checkpointing,
        "optimizer": layout.optimizer,
    }


def _parameters(model: PreTrainedModel) -> dict[str, int]:
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {id(end.weight): end.weight.numel() for end in ends}
    total = sum(p.numel() for p in model.parameters())
    return {"total": total, "embeddings": sum(found.values()), "trained": _trained(model)}


def _trained(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _flops(
    config: TrainConfig,
    model: PreTrainedModel,
    data: Data,
    trained: float,
    layout: Layout,
    steps: int,
) -> dict[str, float]:
    """Return the FLOPs by purpose.

    A forward pass is a third of `attention`, and two of the six FLOPs in `model` (of four with an
    adapter). For the optimizer, only Muon's products count, which every device computes.
    """
    share = 1 / 2 if config.model.lora else 1 / 3
    once = training_flops(model, trained, trained * data.supervised)
    attention = attention_flops(model.config, trained, data.tokens / data.rows)
    layers = training_flops(model, trained, 0) * share + attention / 3
    parts = {
        "model": once,
        "attention": attention,
        "recomputed": layers if layout.checkpointing else 0.0,
        "base": _replayed(config) * (once * share + attention / 3),
        "optimizer": _muon_flops(config, model) * steps * layout.devices,
    }
    return {**parts, "total": sum(parts.values())}


def _muon_flops(config: TrainConfig, model: PreTrainedModel) -> float:
    """Return the FLOPs of Muon in one step on one device."""
    if config.muon_learning_rate is None:
        return 0.0
    return orthogonalising_flops(hidden_matrices(model))


def _replayed(config: TrainConfig) -> float:
    """Return the share of the rows that a frozen copy of the base model processes too."""
    if isinstance(config, SFTConfig) and learns_base_distribution(config):
        return config.replay.share
    return 0.0


def _memory(
    config: TrainConfig, model: PreTrainedModel, data: Data, layout: Layout, hardware: Hardware
) -> dict[str, float]:
    step = _step(config, data, layout, hardware)
    # Sharded weights are kept in float32 and gathered in bfloat16.
    mixed = layout.autocast and layout.sharded
    kept = torch.float32 if mixed else config.model.torch_dtype
    used = torch.bfloat16 if mixed else kept
    found = footprint(without_adapter(model).config, step, used)
    share = kept.itemsize / used.itemsize / (layout.devices if layout.sharded else 1)
    parts = {
        "weights": found.weights * share,
        "gradients": found.gradients * share,
        "optimizer": found.optimizer * share,
        "activations": float(found.activations),
        "gathered": _gathered(model, used) if layout.sharded else 0.0,
        "accumulated": _accumulated(model, kept, layout),
        "buckets": 0.0 if layout.sharded or layout.devices == 1 else float(found.gradients),
        "base": float(found.weights) if learns_base_distribution(config) else 0.0,
    }
    alone = layout.devices == 1 and layout.accumulation == 1
    total = found.peak + parts["base"] if alone else sum(parts.values())
    return {**parts, "total": total}


def _step(config: TrainConfig, data: Data, layout: Layout, hardware: Hardware) -> Step:
    return Step(
        rows=layout.rows,
        length=data.longest,
        supervised=data.supervised,
        autocast=layout.autocast and not layout.sharded,
        checkpointing=layout.checkpointing,
        deferred=layout.deferred and config.loss == CROSS_ENTROPY and not _replayed(config),
        loss=config.loss,
        optimizer=layout.optimizer,
        device="cpu" if hardware.device == "cpu" else "cuda",
        attention=layout.attention,
        lora=config.model.lora,
        four_bits=config.model.quantize is not None,
    )


def _accumulated(model: PreTrainedModel, kept: torch.dtype, layout: Layout) -> float:
    """Return the bytes of gradients that FSDP2 keeps whole between the forward passes of a step.

    They are sharded only when they are summed over devices, in the precision of that sum.
    """
    whole = layout.sharded and layout.accumulation > 1
    return float(_trained(model) * kept.itemsize) if whole else 0.0


def _gathered(model: PreTrainedModel, used: torch.dtype) -> float:
    """Return the bytes that a device gathers: the weights of two units and the gradient of one.

    A unit is a layer, the embedding or the projection; its gradient is summed in float32.
    """
    layers: Any = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    units: list[Any] = [*layers, model.get_input_embeddings(), model.get_output_embeddings()]
    largest = max(sum(p.numel() for p in unit.parameters()) for unit in units)
    return largest * (2 * used.itemsize + used.itemsize + torch.float32.itemsize)


def _annotation(data: Data, projection: Mapping[str, Any] | None) -> dict[str, Any]:
    if projection is not None:
        seconds = projection["seconds"]
        return {
            "basis": f"a dry run of {projection['sampled']:,} chunks",
            "device_hours": None if seconds is None else seconds / 3600,
            "cost": projection["cost"],
        }
    return {
        "basis": "the paper: about three days on 8 H100, read as for 50B tokens",
        "device_hours": data.tokens * PAPER_ANNOTATION_HOURS_A_TOKEN,
        "cost": None,
    }


def _disk(data: Data, model: PreTrainedModel, layout: Layout, steps: int) -> dict[str, float]:
    size, trained = layout.config.model.torch_dtype.itemsize, _trained(model)
    added = trained if layout.config.model.lora else 0  # merged at the end
    weights = (_parameters(model)["total"] - added) * size
    states = {"adamw": 2.0, "muon": 1.0, "sgd": 0.0}[layout.optimizer]
    # If sharded, Trainer saves two copies of the weights; with an adapter, only the adapter.
    checkpoint = trained * size * (1 + states + layout.sharded)
    count = layout.checkpoints(steps)
    parts = {"data": float(data.bytes), "checkpoints": checkpoint * count, "model": float(weights)}
    return {**parts, "checkpoint": checkpoint, "total": sum(parts.values())}


def _cost(
    hours: float, annotation: Mapping[str, Any] | None, price: float | None
) -> dict[str, float] | None:
    if price is None:
        return None
    found = {"training": hours * price}
    if annotation is not None and annotation["cost"] is not None:
        found["annotation"] = annotation["cost"]
    elif annotation is not None and annotation["device_hours"] is not None:
        found["annotation"] = annotation["device_hours"] * price
    return {**found, "total": sum(found.values())}


def _notes(config: TrainConfig, model: PreTrainedModel, data: Data, layout: Layout) -> list[str]:
    optim = str(layout.setting("optim"))
    known = optim in _KNOWN_OPTIMIZERS or layout.optimizer == "muon"
    head = head_size(model.config)
    found = {
        "data are not prepared: rows are taken to be full": not data.prepared,
        f"run `anchored prepare` on this file first: to prepare {data.tokens:,} tokens takes no "
        "device, and is not in the hours": (
            not data.prepared and layout.devices > 1 and not OBJECTIVES[data.objective].replay
        ),
        f"heads of {head}, no multiple of 8: attention under a mask would keep all its scores, "
        "which are not counted": layout.attention == "sdpa" and head % 8 != 0,
        "weights in four bits are put together layer by layer, which is not counted": (
            config.model.quantize is not None
        ),
        "weights are trained in float32, where a device is slower than its bf16 peak": (
            not layout.autocast
        ),
        f"trainer.optim: {optim} is counted as AdamW in the weights' precision": not known,
        "sampling the annotations to replay is not counted": _replayed(config) > 0,
    }
    return [note for note, applies in found.items() if applies]
