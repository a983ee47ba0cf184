"""The monitor under TRL's trainers of preferences and rewards: it logs, and changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from anchored.monitor.callback import CollapseMonitor
from anchored.tokenizer import AnchoredTokenizer
from test_collapse_monitor import PROMPTS, QUICK, TEXTS, letters, tiny

__all__ = ["letters"]  # a fixture

COMMON: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(TEXTS, 300)


@pytest.fixture(scope="module")
def base(tokenizer: AnchoredTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, for DPO loads its reference from there."""
    folder = tmp_path_factory.mktemp("base")
    tiny(tokenizer).save_pretrained(folder)
    return folder


def reward(completions: list[str], **_: Any) -> list[float | None]:
    return [float(len(set(text))) for text in completions]


def dpo(base: Path, tokenizer: AnchoredTokenizer, out: Path, lora: LoraConfig | None) -> Trainer:
    row = {"prompt": "Who?", "chosen": " Mara went.", "rejected": " No."}
    return DPOTrainer(
        model=LlamaForCausalLM.from_pretrained(base),
        args=DPOConfig(output_dir=str(out), **COMMON),
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=tokenizer.hf,
        peft_config=lora,
    )


def grpo(base: Path, tokenizer: AnchoredTokenizer, out: Path, lora: LoraConfig | None) -> Trainer:
    short = {"num_generations": 2, "max_completion_length": 4}
    return GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(base),
        reward_funcs=[reward],
        args=GRPOConfig(output_dir=str(out), **short, **COMMON),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 2]),
        processing_class=tokenizer.hf,
        peft_config=lora,
    )


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("make", "own"), [(dpo, "rewards/chosen"), (grpo, "reward")])
def test_it_logs_beside_the_trainers_own_figures_and_leaves_the_result_bit_identical(
    base: Path, tokenizer: AnchoredTokenizer, tmp_path: Path, make: Any, own: str, adapted: bool
):
    ends = []
    for watches in (False, True):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if adapted else None
        trainer: Any = make(base, tokenizer, tmp_path / str(watches), lora)
        start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        if watches:
            CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(trainer)
        trainer.train()
        ends.append((trainer.model.state_dict(), random.getstate(), torch.get_rng_state()))
    (plain, *states), (watched, *same) = ends
    assert any(not torch.equal(start[name], plain[name]) for name in plain)
    assert all(torch.equal(watched[name], plain[name]) for name in plain)
    assert states[0] == same[0]
    assert torch.equal(states[1], same[1])
    lines = [row for row in trainer.state.log_history if "collapse/semantic_entropy" in row]
    assert [row["step"] for row in lines] == [2]
    assert {"loss", own, "collapse/kept", "collapse/step_share"} <= lines[0].keys()
