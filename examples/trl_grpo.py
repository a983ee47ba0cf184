"""Train an anchored model on rewards with TRL's GRPOTrainer: Q changes, R is kept.

    anchored preferences preferences.yaml         # trainer: grpo, out: runs/my/prompts
    python examples/trl_grpo.py MODEL runs/my/prompts/data --reward mine:reward --out runs/my/grpo

All answers of a group follow the same annotation, so an answer is only compared with others of the
same annotation: the reward cannot favour an annotation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers.trainer import TRAINING_ARGS_NAME
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from anchored.config import load_function
from anchored.models.build import load_model
from anchored.models.record import read_preferences
from anchored.preferences.conversation_tokenizer import ConversationTokenizer


def grpo_trainer(
    model: str, prompts: Path, reward: str, out: Path, **arguments: Any
) -> GRPOTrainer:
    """Build a stock GRPOTrainer.

    Args:
        model: folder of an anchored model.
        prompts: dataset that `anchored preferences` wrote, each prompt with its annotation.
        reward: `module:function`, with the signature of a TRL reward function.
        out: folder of the run.
        arguments: other fields of `trl.GRPOConfig`.
    """
    learnt = {**read_preferences(prompts, "grpo"), "reward": reward}
    settings = GRPOConfig(output_dir=str(out), **arguments)
    tokenizer = ConversationTokenizer.load(model, learnt, settings)
    dataset: Any = load_from_disk(str(prompts))
    rewards: Any = [load_function(reward, "--reward")]
    return GRPOTrainer(
        model=load_model(model, tokenizer.stock),
        reward_funcs=rewards,
        args=settings,
        train_dataset=dataset,
        processing_class=tokenizer,
    )


def save(trainer: GRPOTrainer, folder: Path) -> None:
    """Save the model with the tokenizer and the record by which `anchored` recognises it."""
    trainer.save_model(str(folder))
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which `anchored push` refuses


def main() -> None:
    """Train for one epoch with TRL's defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of an anchored model")
    parser.add_argument("prompts", type=Path, help="dataset that `anchored preferences` wrote")
    parser.add_argument("--reward", required=True, metavar="MODULE:FUNCTION")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    use_cpu = not torch.accelerator.is_available()  # without it TRL's bf16 default is refused
    trainer = grpo_trainer(
        options.model, options.prompts, options.reward, options.out, use_cpu=use_cpu
    )
    trainer.train()
    save(trainer, options.out / "model")


if __name__ == "__main__":
    main()
