"""A plan says what a run takes: counted on the model, simulated, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from anchored.cli import main
from anchored.config import load_config, to_yaml
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import ConfigError, DataError
from anchored.models.build import PRESETS, build_model, olmo2_config
from anchored.plan.estimate import plan
from anchored.plan.footprint import Footprint, Step, footprint
from anchored.plan.hardware import Hardware, hardware_named
from anchored.plan.table import rows
from anchored.plan.workload import Layout, data_of, stage_of
from anchored.step.collate import DataCollator
from anchored.step.losses import LossByKind
from anchored.step.muon import muon_for
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig, SFTConfig
from conftest import ROOT

ONE = Hardware("h100", 989.0, 79.0)
DESCRIBED = {
    "sources": [{"path": "not/there/yet"}],
    "tokenizer": {"vocab_size": 1000},
    "max_length": 64,
    "token_budget": 6400,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {
        "out": tmp_path_factory.mktemp("plan") / "data",
        "sources": [{"path": "storyworld://small?seed=0", "limit": 40}],
        "tokenizer": {"vocab_size": 600},
        "max_length": 256,
    }
    return prepare(PrepareConfig.model_validate(config), Console(quiet=True))


@pytest.fixture(scope="module", autouse=True)
def each_step_once() -> Iterator[None]:
    """Many plans here take the same step: it is simulated once."""
    known: dict[str, Footprint] = {}

    def remembered(shape: Any, step: Step, dtype: torch.dtype) -> Footprint:
        key = f"{shape.to_json_string()} {step} {dtype}"
        if key not in known:
            known[key] = footprint(shape, step, dtype)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anchored.plan.estimate.footprint", remembered)
        yield


def config(data: Any, out: Path = Path("not/made"), preset: str = "0.5m", **trainer: Any) -> Any:
    common = {"per_device_train_batch_size": 4, "max_steps": 10}
    fields = {"out": out, "data": data, "model": {"preset": preset}}
    return PretrainConfig.model_validate({**fields, "trainer": {**common, **trainer}})


@pytest.mark.parametrize("preset", ["0.5m", "3m", "6m"])
def test_parameters_are_exact_and_flops_within_a_tenth_of_those_counted(data: Path, preset: str):
    run = config(data, preset=preset)
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    model = build_model(run.model, tokenizer, 0)
    model.loss_function = LossByKind()
    model.set_attn_implementation("eager")  # the counter has no formula for the CPU's own
    dataset: Any = load_prepared(data)[0].with_format("numpy")
    batch = DataCollator(tokenizer.control.pad)([dataset[i] for i in range(4)])
    with FlopCounterMode(display=False) as counter:
        model(**batch, use_cache=False).loss.backward()

    found = plan(run, ONE)
    assert found.parameters["total"] == sum(p.numel() for p in model.parameters())
    counted = counter.get_total_flops() / batch["input_ids"].numel()
    assert found.flops["total"] / found.tokens["trained"] == pytest.approx(counted, rel=0.1)


def test_the_products_of_muon_are_those_counted_and_every_device_takes_them(data: Path):
    run = config(data).model_copy(update={"muon_learning_rate": 0.02})
    model = build_model(run.model, AnchoredTokenizer.load(data / "tokenizer"), 0)
    muon = muon_for(model, TrainingArguments(output_dir="unused", use_cpu=True), 0.02)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert plan(run, ONE).flops["optimizer"] == 10 * counter.get_total_flops() > 0
    assert plan(run, replace(ONE, devices=2)).flops["optimizer"] == 20 * counter.get_total_flops()
    assert plan(config(data), ONE).flops["optimizer"] == 0


def test_tokens_and_steps_are_those_of_the_prepared_data(data: Path):
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    kept, rows = manifest["tokens"]["kept"], manifest["splits"]["train"]["rows"]
    epochs = config(data, max_steps=-1, num_train_epochs=3)
    found = plan(epochs, replace(ONE, devices=2))
    assert found.tokens["trained"] == 3 * kept
    assert found.tokens["with_loss"] == pytest.approx(3 * manifest["tokens"]["supervised"])
    assert found.run["steps"] == 3 * -(-rows // 8)
    assert found.annotation is None, "what is prepared has been annotated"
    assert plan(config(data), ONE).tokens["trained"] == pytest.approx(40 * kept / rows)


def test_hours_are_flops_over_what_the_devices_are_expected_to_do(data: Path):
    found = plan(config(data), Hardware("mine", 2.0, 1.0, devices=4, price_per_hour=3.0))
    hours = found.flops["total"] / (0.4 * 2e12) / 3600
    assert found.hours == pytest.approx({"device": hours, "wall": hours / 4})
    assert found.cost == pytest.approx({"training": 3 * hours, "total": 3 * hours})
    assert found.reached == pytest.approx(0.4)


def test_mfu_is_that_of_metrics_jsonl_so_that_giving_it_back_gives_the_same_hours():
    run = config(DESCRIBED, activation_checkpointing=True)
    found = plan(run, ONE)
    assert found.flops["recomputed"] and found.flops["attention"]
    assert found.mfu == pytest.approx(0.4 * found.flops["model"] / found.flops["total"])
    assert plan(run, replace(ONE, mfu=found.mfu)).hours == pytest.approx(found.hours)


def footprint_of(**fields: Any) -> Footprint:
    shape = olmo2_config("0.5m", 1000, eos_token_id=0)
    return footprint(shape, Step(rows=4, length=128, **fields), torch.float32)


def test_weights_gradients_and_states_are_four_bytes_a_parameter_each():
    found, size = footprint_of(), 4 * plan(config(DESCRIBED), ONE).parameters["total"]
    assert (found.weights, found.gradients) == (size, size)
    tensors = 24  # each has its own count of steps
    assert found.optimizer == 2 * size + 4 * tensors
    assert footprint_of(optimizer="sgd").optimizer == 0
    assert size < footprint_of(optimizer="muon").optimizer < 2 * size


def test_the_peak_of_one_step_is_no_more_than_its_parts_and_no_less_than_what_stays():
    found = footprint_of()
    stays = found.weights + found.optimizer
    assert stays + found.activations <= found.peak <= stays + found.gradients + found.activations


def test_logits_are_held_only_where_there_is_loss():
    whole, half = footprint_of(), footprint_of(supervised=0.5)
    logits = 4 * 128 * 1000 * 4
    assert whole.activations - half.activations >= 2 * logits / 2  # and their gradient


@pytest.mark.parametrize("preset", PRESETS)
def test_heads_of_every_preset_have_kernels_that_take_a_mask(preset: str):
    width, _, _, heads = PRESETS[preset]
    assert width % heads == 0 and width // heads % 8 == 0


def test_an_accelerator_holds_more_rows_of_logits_at_a_time_than_a_cpu():
    shape = olmo2_config("0.5m", 100_000, eos_token_id=0)
    step = Step(rows=8, length=256, deferred=True)
    here = footprint(shape, step, torch.float32).activations
    there = footprint(shape, replace(step, device="cuda"), torch.float32).activations
    assert there - here > ((1 << 27) - (1 << 23)) * 4


def test_each_layer_keeps_a_mask_under_sdpa_on_an_accelerator_and_none_under_flash_attention():
    masked = footprint_of(device="cuda").activations
    flash = footprint_of(device="cuda", attention="flash_attention_2").activations
    assert masked - flash >= 2 * 4 * 128 * 128 * 4  # layers, rows, scores in float32


def test_a_loss_that_projects_a_few_rows_at_a_time_holds_a_few_rows_of_logits():
    shape, step = olmo2_config("0.5m", 100_000, eos_token_id=0), Step(rows=4, length=128)
    logits, chunk = 4 * 128 * 100_000 * 4, (1 << 23) * 4
    whole = footprint(shape, step, torch.float32)
    deferred = footprint(shape, replace(step, deferred=True), torch.float32)
    assert whole.activations - deferred.activations > 2 * (logits - chunk)


def test_logits_lie_there_whole_where_the_trainer_does_not_defer_them():
    assert Layout(config(DESCRIBED, torch_compile=True), 1).deferred
    assert not Layout(config(DESCRIBED, fp16=True), 1).deferred


def test_a_loss_that_is_not_fused_holds_whole_logits_and_what_it_makes_of_them():
    logits = 4 * 128 * 1000 * 4
    plain, gem = footprint_of(), footprint_of(loss="gem")
    assert gem.activations > plain.activations + logits
    described = config({**DESCRIBED, "tokenizer": {"vocab_size": 50_000}})
    fused, whole = (
        plan(described.model_copy(update={"loss": loss}), ONE).memory["activations"]
        for loss in ("cross_entropy", "gem")
    )
    assert whole > 2 * fused


def test_checkpointing_holds_less_and_computes_the_layers_again():
    whole, checkpointed = footprint_of(), footprint_of(checkpointing=True)
    assert checkpointed.activations < whole.activations
    found = plan(config(DESCRIBED, activation_checkpointing=True), ONE)
    before = plan(config(DESCRIBED), ONE)
    body = before.parameters["total"] - before.parameters["embeddings"]
    layers = 6 * body * before.tokens["trained"] + before.flops["attention"]
    assert found.flops["recomputed"] == pytest.approx(layers / 3)
    assert found.flops["total"] - before.flops["total"] == pytest.approx(layers / 3)


def test_checkpointing_is_seen_by_whatever_name_the_trainer_takes_it(tmp_path: Path):
    file = tmp_path / "fsdp.json"
    file.write_text('{"activation_checkpointing": true}', encoding="utf-8")
    assert Layout(config(DESCRIBED, gradient_checkpointing=True), 1).checkpointing
    both = config(DESCRIBED, activation_checkpointing=False, gradient_checkpointing=True)
    assert not Layout(both, 1).checkpointing
    for settings in ({"activation_checkpointing": True}, str(file)):
        assert Layout(config(DESCRIBED, fsdp=True, fsdp_config=settings), 2).checkpointing
    with pytest.raises(
        ConfigError, match=r"^trainer\.fsdp_config: none\.json: .* give a JSON file"
    ):
        plan(config(DESCRIBED, fsdp=True, fsdp_config="none.json"), replace(ONE, devices=2))


def test_sharded_gradients_are_whole_between_the_forward_passes_of_a_step():
    many = replace(ONE, devices=4)
    once, twice = (
        plan(config(DESCRIBED, fsdp=True, bf16=True, gradient_accumulation_steps=n), many)
        for n in (1, 2)
    )
    assert once.memory["accumulated"] == 0
    assert twice.memory["accumulated"] == 4 * once.parameters["total"]
    assert not plan(config(DESCRIBED, gradient_accumulation_steps=2), many).memory["accumulated"]


@pytest.mark.parametrize(
    ("sharded", "says"),
    [
        (True, "try trainer.fsdp_config.activation_checkpointing=true or"),
        (False, "try trainer.fsdp, activation_checkpointing=true or"),
    ],
)
def test_what_does_not_fit_is_told_the_checkpointing_of_its_layout(sharded: bool, says: str):
    small = Hardware("mine", 1.0, 0.001, devices=2)
    run = config(DESCRIBED, fsdp=sharded)
    lines = list(rows(plan(run, small)))
    assert any(says in on for _, _, on in lines)


def test_sharding_divides_what_stays_and_ddp_keeps_buckets():
    whole = plan(config(DESCRIBED, gradient_accumulation_steps=2), ONE).memory
    many = replace(ONE, devices=4)
    sharded = plan(config(DESCRIBED, fsdp=True), many).memory
    copied = plan(config(DESCRIBED), many).memory
    for part in ("weights", "gradients", "optimizer"):
        assert sharded[part] == whole[part] / 4
        assert copied[part] == whole[part]
    assert copied["buckets"] == copied["gradients"] and not sharded["buckets"]
    assert sharded["gathered"] > 0 and not copied["gathered"]


def test_data_that_are_not_there_need_a_budget(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"run `anchored prepare` first, or describe the data to prepare"
    ):
        plan(config(tmp_path / "none"), ONE)
    without = {**DESCRIBED, "token_budget": None}
    with pytest.raises(ConfigError, match=r"^data\.token_budget: missing"):
        plan(config(without), ONE)


def test_annotation_is_billed_by_the_paper_or_by_a_dry_run():
    described = plan(config(DESCRIBED), replace(ONE, price_per_hour=2.0))
    assert described.annotation and described.cost
    assert described.annotation["device_hours"] == pytest.approx(6400 * 576 / 50e9)
    projection = {"sampled": 100, "seconds": 7200.0, "cost": 12.5}
    found = plan(config(DESCRIBED), replace(ONE, price_per_hour=2.0), projection=projection)
    assert found.annotation and found.cost
    assert (found.annotation["device_hours"], found.cost["annotation"]) == (2.0, 12.5)
    assert plan(config({**DESCRIBED, "objective": "plain"}), ONE).annotation is None


def test_disk_counts_the_checkpoints_that_lie_there_at_once():
    def disk(**trainer: Any) -> dict[str, float]:
        return plan(config(DESCRIBED, **trainer), replace(ONE, devices=2)).disk

    weights = plan(config(DESCRIBED), ONE).disk["model"]
    assert disk(save_steps=1)["checkpoints"] == 3 * 3 * weights  # two are kept, one is written
    assert disk(save_steps=1, fsdp=True)["checkpoint"] == 4 * weights
    assert disk(save_steps=100)["checkpoints"] == 3 * weights
    assert disk(save_strategy="no")["checkpoints"] == 0
    assert disk()["data"] == 6400 * 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration of one saved in bfloat16; a plan reads no more."""
    folder = tmp_path_factory.mktemp("plan-init")
    shape = olmo2_config("0.5m", 1000, eos_token_id=0)
    shape.dtype = torch.bfloat16
    shape.save_pretrained(folder)
    return str(folder)


def started_from(init: str, **model: Any) -> PretrainConfig:
    fields = {"out": "not/made", "data": DESCRIBED, "model": {"init": init, **model}}
    return PretrainConfig.model_validate({**fields, "trainer": {"max_steps": 10}})


def test_weights_are_counted_in_the_precision_of_training_not_in_that_of_the_checkpoint(
    checkpoint: str,
):
    found = plan(started_from(checkpoint), ONE)
    assert found.memory["weights"] == 4 * found.parameters["total"]
    half = plan(started_from(checkpoint, dtype="bfloat16"), ONE)
    assert half.memory["weights"] == 2 * found.parameters["total"]


def test_an_adapter_is_billed_for_what_it_trains(checkpoint: str):
    whole, found = (
        plan(started_from(checkpoint), ONE),
        plan(started_from(checkpoint, lora={"r": 4}), ONE),
    )
    layers, hidden, middle = 2, 128, 384
    each = 4 * (4 * 2 * hidden + 3 * (hidden + middle))
    trained = layers * each + 5 * hidden  # and the rows of the control tokens
    assert found.parameters["trained"] == trained
    assert found.parameters["total"] == whole.parameters["total"] + trained
    assert found.memory["gradients"] == 4 * trained
    assert found.memory["weights"] == 4 * found.parameters["total"]
    assert 8 * trained <= found.memory["optimizer"] < 9 * trained
    assert found.flops["model"] / whole.flops["model"] == pytest.approx(4 / 6, rel=0.05)
    assert found.disk["model"] == whole.disk["model"]
    assert found.disk["checkpoint"] == 4 * 3 * trained


def test_an_adapter_on_no_layer_is_refused_as_by_the_run(checkpoint: str):
    with pytest.raises(ConfigError, match=r"^model\.lora\.target_modules: 'c_attn': no layer has"):
        plan(started_from(checkpoint, lora={"target_modules": ["c_attn"]}), ONE)


def test_four_bits_a_weight_are_counted_for_all_linear_layers_but_the_projection(checkpoint: str):
    whole = plan(started_from(checkpoint, lora={"r": 4}), ONE).memory["weights"]
    found = plan(started_from(checkpoint, lora={"r": 4}, quantize="nf4"), ONE).memory["weights"]
    linear = 2 * (4 * 128 * 128 + 3 * 128 * 384)
    assert whole - found == pytest.approx(linear * (4 - 0.5159), rel=1e-4)


@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "adamw_torch_4bit", "lion_32bit"])
def test_optimizers_whose_states_are_not_known_are_noted(optim: str):
    note = f"trainer.optim: {optim} is counted as AdamW in the weights' precision"
    assert note in plan(config(DESCRIBED, optim=optim), ONE).notes
    assert note not in plan(config(DESCRIBED, optim="adamw_torch_fused"), ONE).notes


def sft_config(**replay: Any) -> SFTConfig:
    fields = {
        "out": "not/made",
        "objective": "anchored-replay",
        "model": {"preset": "0.5m"},
        "data": DESCRIBED,
        "replay": replay,
        "trainer": {"max_steps": 10},
    }
    return SFTConfig.model_validate(fields)


def test_replay_against_the_base_holds_it_and_asks_it():
    soft, hard = plan(sft_config(share=0.5), ONE), plan(sft_config(targets="token"), ONE)
    assert soft.memory["base"] == 4 * soft.parameters["total"] and not hard.memory["base"]
    once = soft.flops["model"] + soft.flops["attention"]
    assert soft.flops["base"] == pytest.approx(0.5 * once / 3) and not hard.flops["base"]
    assert soft.run["objective"] == "anchored-replay"


SIZES = ("0.6b", "1b", "2.5b", "sft")
# What stands in for the base and the data of SFT, which are not there.
AS_PLANNED = (
    "model.init=null",
    "model.preset=2.5b",
    "data.tokenizer.vocab_size=100352",
    "data.token_budget=1000000000",
)


def shipped(name: str, devices: int) -> Any:
    file = ROOT / "configs" / "scale" / f"{name}.yaml"
    if stage_of(file) == "sft":
        return load_config(SFTConfig, file, [*AS_PLANNED, *line_of(name, devices)[0]])
    return load_config(PretrainConfig, file, line_of(name, devices)[0])


def line_of(name: str, devices: int) -> tuple[list[str], str, str]:
    """What docs/scale.md says to add on so many devices, the memory of one, and the hours."""
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} | {devices} |")]
    _, _, _, add, memory, hours, _ = line.split("|")
    return ([] if "—" in add else add.strip(" `").split()), memory.strip(), hours.strip()


@pytest.mark.parametrize("devices", [1, 8, 64])
@pytest.mark.parametrize("name", SIZES)
def test_shipped_configurations_keep_their_rows_a_step_on_any_number_of_devices(
    name: str, devices: int
):
    run = shipped(name, devices)
    assert Layout(run, devices).rows_a_step == (128 if name == "sft" else 256)
    assert data_of(run).tokens == {"0.6b": 12e9, "1b": 20e9, "2.5b": 50e9, "sft": 1e9}[name]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8, 64])
@pytest.mark.parametrize("name", SIZES)
def test_shipped_configurations_fit_and_the_page_says_what_the_plan_says(name: str, devices: int):
    found = plan(shipped(name, devices), hardware_named("h100", devices=devices))
    sizes = {"0.6b": 732_255_552, "1b": 1_484_916_736}
    assert found.parameters["total"] == sizes.get(name, 2_417_216_000)
    assert found.fits
    memory, hours = found.memory["total"] / 2**30, found.hours["wall"]
    assert line_of(name, devices)[1:] == (f"{memory:.0f} GiB", f"{hours:.1f}")


def written(tmp_path: Path, run: Any) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    return str(file)


def test_the_command_prints_a_table_and_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = written(tmp_path, config(DESCRIBED))
    assert main(["plan", file, "--devices", "2", "--json", "trainer.max_steps=20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"]["steps"], found["hardware"]["devices"], found["fits"]) == (20, 2, True)
    assert main(["plan", file]) == 0
    assert f"{found['parameters']['total']:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "abacus"], "--device 'abacus': not one of h100"),
        (["trainer.learning_rat=1"], "trainer.learning_rat: unknown field; did you mean"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    assert main(["plan", written(tmp_path, config(DESCRIBED)), *arguments]) == 2
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1


def test_a_device_by_its_figures_and_this_cpu_by_measuring(
    monkeypatch: pytest.MonkeyPatch,
):
    assert hardware_named("abacus", 1.5, 2.0) == Hardware("abacus", 1.5, 2.0)
    assert hardware_named("h100", memory_gib=40.0) == Hardware("h100", 989.0, 40.0)
    measured: Callable[..., float] = lambda *_: 3e12  # noqa: E731
    monkeypatch.setattr("anchored.plan.hardware.measure_matmul_peak", measured)
    assert hardware_named("cpu").tflops == 3.0
