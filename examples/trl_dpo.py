"""Train an anchored model on preferences with TRL's DPOTrainer: Q changes, R is kept.

    anchored preferences preferences.yaml         # trainer: dpo, out: runs/my/preferences
    python examples/trl_dpo.py MODEL runs/my/preferences/data --out runs/my/dpo

The annotation is the end of the prompt and the same for both answers. The tokenizer inserts it by
id; nothing else in this file is aware of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers.trainer import TRAINING_ARGS_NAME
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from anchored.models.build import load_model
from anchored.models.record import read_preferences
from anchored.preferences.conversation_tokenizer import ConversationTokenizer


def dpo_trainer(model: str, pairs: Path, out: Path, **arguments: Any) -> DPOTrainer:
    """Build a stock DPOTrainer.

    Args:
        model: folder of an anchored model.
        pairs: dataset that `anchored preferences` wrote.
        out: folder of the run.
        arguments: other fields of `trl.DPOConfig`.
    """
    settings = DPOConfig(output_dir=str(out), **arguments)
    tokenizer = ConversationTokenizer.load(model, read_preferences(pairs, "dpo"), settings)
    dataset: Any = load_from_disk(str(pairs))
    return DPOTrainer(
        model=load_model(model, tokenizer.stock),
        args=settings,
        train_dataset=dataset,
        processing_class=tokenizer,
    )


def save(trainer: DPOTrainer, folder: Path) -> None:
    """Save the model with the tokenizer and the record by which `anchored` recognises it."""
    trainer.save_model(str(folder))
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which `anchored push` refuses


def main() -> None:
    """Train for one epoch with TRL's defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of an anchored model")
    parser.add_argument("pairs", type=Path, help="dataset that `anchored preferences` wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    use_cpu = not torch.accelerator.is_available()  # without it TRL's bf16 default is refused
    trainer = dpo_trainer(
        options.model, options.pairs, options.out, num_train_epochs=1, use_cpu=use_cpu
    )
    trainer.train()
    save(trainer, options.out / "model")


if __name__ == "__main__":
    main()
