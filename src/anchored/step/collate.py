"""Collation: rows of a prepared dataset, or from `build_example`, to a training batch.

Shapes: B rows, T tokens in the longest row, N tokens with loss; flat: B is 1, T all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from anchored.segments import NO_LOSS, Kind


class DataCollator:
    """Collate rows into one batch, which marks the positions whose next token carries loss.

    The vocabulary projection is done at those positions only (`logits_to_keep`), against
    `shift_labels`. There is no attention mask. Documents in a row are separated by `position_ids`
    that restart at 0, which isolates them only if the attention mask is None and the cache is off.
    Padding is on the right, where causal attention hides it.

    A stock `Trainer` takes such batches with `remove_unused_columns=False`. A row without
    `seq_lengths` holds one document.

    Args:
        pad_id: token id that pads rows on the right.
        flat: joins all rows into one instead of padding them; for a model whose attention within
            documents costs no more than their own lengths.

    Examples:
        >>> import anchored
        >>> collate = anchored.DataCollator(pad_id=0)
        >>> rows = [
        ...     {"input_ids": [1, 7, 8], "labels": [-100, -100, 8], "kinds": [0, 1, 4]},
        ...     {"input_ids": [1, 9], "labels": [-100, 9], "kinds": [0, 4]},
        ... ]
        >>> batch = collate(rows)
        >>> batch["input_ids"].tolist()
        [[1, 7, 8], [1, 9, 0]]
        >>> batch["logits_to_keep"].tolist()
        [[False, True, False], [True, False, False]]
        >>> batch["shift_labels"].tolist()
        [8, 9]
    """

    def __init__(self, pad_id: int, flat: bool = False) -> None:
        self.pad_id = pad_id
        self.flat = flat

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return one batch.

        Returns:
            `input_ids`, `position_ids`, `logits_to_keep` (B, T); `labels`, `shift_labels`,
            `target_kinds` (N,); `token_count` (), the tokens without padding; `loss_weights` (N,)
            if the rows have `weights`.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        widths = lengths if self.flat else [max(lengths)] * len(rows)
        size, shape = sum(widths), (1 if self.flat else len(rows), -1)
        input_ids = np.full(size, self.pad_id, dtype=np.int64)
        position_ids = np.zeros(size, dtype=np.int64)
        targets = np.full(size, NO_LOSS, dtype=np.int64)
        target_kinds = np.full(size, Kind.CONTROL, dtype=np.int64)
        weights = np.zeros(size, dtype=np.float32)
        weighted = "weights" in rows[0]
        starts = np.cumsum(widths) - widths
        for row, length, width, start in zip(rows, lengths, widths, starts, strict=True):
            last = start + length - 1
            input_ids[start : last + 1] = row["input_ids"]
            targets[start:last] = row["labels"][1:]
            target_kinds[start:last] = row["kinds"][1:]
            if weighted:
                weights[start:last] = row["weights"][1:]
            position_ids[start : start + width] = _positions(
                row.get("seq_lengths", [length]), width
            )
        keep = targets != NO_LOSS
        shift_labels = torch.from_numpy(targets[keep])
        return {
            "input_ids": torch.from_numpy(input_ids.reshape(shape)),
            "position_ids": torch.from_numpy(position_ids.reshape(shape)),
            "logits_to_keep": torch.from_numpy(keep.reshape(shape)),
            "labels": shift_labels,
            "shift_labels": shift_labels,
            "target_kinds": torch.from_numpy(target_kinds[keep]),
            "token_count": torch.tensor(sum(lengths)),
            **({"loss_weights": torch.from_numpy(weights[keep])} if weighted else {}),
        }


def _positions(seq_lengths: Sequence[int], width: int) -> np.ndarray:
    """Return 0..n-1 for each document of the row; padding continues the last one."""
    starts = np.concatenate(([0], np.cumsum(seq_lengths)[:-1]))
    positions = np.arange(width)
    return positions - starts[np.searchsorted(starts, positions, side="right") - 1]
