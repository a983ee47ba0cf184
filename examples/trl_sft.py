"""Train on prepared data with TRL's SFTTrainer: the `labels` column has masks and annotations.

    anchored prepare config.yaml            # with `packing: false`, objective: anchored
    python examples/trl_sft.py FOLDER MODEL --out runs/trl

Everything else of TRL works as usual (PEFT, DPO afterwards, trackers); nothing in this file is
aware of masks. A test checks that losses and weights are equal to those of `anchored sft`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from anchored.data.prepare import load_prepared, read_manifest
from anchored.data.store import refuse_weights
from anchored.errors import DataError
from anchored.models.build import ModelConfig, build_model
from anchored.models.record import of_other_trainer, save_beside
from anchored.tokenizer import AnchoredTokenizer


def sft_trainer(model: PreTrainedModel, data: Path, out: Path, **arguments: Any) -> SFTTrainer:
    """Build a stock SFTTrainer on a prepared dataset.

    Args:
        model: a model from `build_model`, whose embedding has the control tokens.
        data: folder written by `anchored prepare`.
        out: folder of the run.
        arguments: other fields of `trl.SFTConfig`; `packing=True, max_length=N` lets TRL pack.

    Raises:
        DataError: rows are packed, whose sequences TRL's padded batches would not separate, or
            tokens have weights, which TRL does not read.
    """
    dataset, manifest = load_prepared(data)
    refuse_weights(data, manifest, "TRL")
    if manifest["config"]["packing"]:
        raise DataError(f"{data}: packed; prepare it with `packing: false` for TRL")
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    return SFTTrainer(
        model=model,
        args=SFTConfig(**{"output_dir": str(out), "max_length": None, **arguments}),  # rows fit
        train_dataset=dataset.select_columns(["input_ids", "labels"]),
        processing_class=tokenizer.hf,
    )


def main() -> None:
    """Train for one epoch with TRL's defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder written by `anchored prepare`")
    parser.add_argument("model", help="folder or hub id of the pretrained model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    tokenizer = AnchoredTokenizer.load(options.data / "tokenizer")
    model = build_model(ModelConfig(init=options.model), tokenizer, seed=0)
    use_cpu = not torch.accelerator.is_available()  # without it TRL's bf16 default is refused
    trainer = sft_trainer(model, options.data, options.out, num_train_epochs=1, use_cpu=use_cpu)
    trainer.train()
    final = options.out / "model"
    trainer.save_model(str(final))
    (final / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which `anchored push` refuses
    settings = trainer.args.to_dict()
    record = of_other_trainer(read_manifest(options.data), options.model, settings)
    save_beside(final, tokenizer, record)  # by which `anchored` recognises the model


if __name__ == "__main__":
    main()
