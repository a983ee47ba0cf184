"""What torchtune needs to train on prepared data; `anchored` does not have to be installed.

    anchored export DATASET --format torchtune --out runs/torchtune
    tune run full_finetune_single_device --config config.yaml      # in the folder of this file

A complete `config.yaml` is in docs/other-trainers.md. For `dataset` and `tokenizer`, recipes accept
any function and class that the config names by import path:

    tokenizer: {_component_: torchtune_dataset.Tokenizer, data: runs/torchtune, max_seq_len: 1024}
    dataset: {_component_: torchtune_dataset.exported, data: runs/torchtune, packed: true}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import load_from_disk


class Tokenizer:
    """The parts of a tokenizer that a recipe needs for data that is already encoded.

    Args:
        data: folder written by `anchored export`.
        max_seq_len: number of tokens in a packed row.
    """

    def __init__(self, data: str, max_seq_len: int | None = None) -> None:
        described = json.loads((Path(data) / "export.json").read_text(encoding="utf-8"))
        self.pad_id: int = described["tokenizer"]["control"]["pad"]
        self.max_seq_len = max_seq_len


def exported(tokenizer: Tokenizer, data: str, split: str = "train", packed: bool = False) -> Any:
    """Load rows of `tokens` and `labels`; torchtune itself shifts the labels.

    Args:
        tokenizer: the tokenizer from the recipe.
        data: folder written by `anchored export`.
        split: `train` or `validation`.
        packed: pack rows up to `max_seq_len`; attention does not cross the rows of a pack.

    Raises:
        ValueError: `packed` is set without `max_seq_len`.
    """
    rows = load_from_disk(data)[split]
    if not packed:
        return rows
    if tokenizer.max_seq_len is None:
        raise ValueError("packed: true needs tokenizer.max_seq_len, the number of tokens in a row")
    from torchtune.datasets import PackedDataset  # pyright: ignore[reportMissingImports]

    return PackedDataset(rows, max_seq_len=tokenizer.max_seq_len, padding_idx=tokenizer.pad_id)
