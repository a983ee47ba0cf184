"""A batch holds exactly the positions, targets and kinds of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anchored.segments import NO_LOSS, Kind
from anchored.step.collate import DataCollator

PAD = 9
PACKED: dict[str, Any] = {
    "input_ids": np.array([1, 2, 3, 1, 4, 5], dtype=np.int32),
    "labels": np.array([NO_LOSS, NO_LOSS, 3, NO_LOSS, 4, 5], dtype=np.int32),
    "kinds": np.array([0, 1, 4, 0, 2, 3], dtype=np.int8),
    "seq_lengths": np.array([3, 3], dtype=np.int32),
}
SHORT: dict[str, Any] = {
    "input_ids": [1, 6, 7],
    "labels": [NO_LOSS, 6, NO_LOSS],
    "kinds": [0, 4, 4],
    "seq_lengths": [3],
}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return DataCollator(PAD)([PACKED, SHORT])


def test_rows_are_padded_on_the_right(batch: dict[str, torch.Tensor]):
    assert batch["input_ids"].tolist() == [[1, 2, 3, 1, 4, 5], [1, 6, 7, PAD, PAD, PAD]]
    assert batch["token_count"].item() == 9


def test_positions_start_again_with_each_sequence_and_run_on_through_padding(
    batch: dict[str, torch.Tensor],
):
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_positions_kept_are_those_before_a_label(batch: dict[str, torch.Tensor]):
    assert batch["logits_to_keep"].tolist() == [
        [False, True, False, True, True, False],
        [True, False, False, False, False, False],
    ]
    assert batch["shift_labels"].tolist() == batch["labels"].tolist() == [3, 4, 5, 6]
    kinds = [Kind.TEXT, Kind.TAG_KEY, Kind.TAG_VALUE, Kind.TEXT]
    assert batch["target_kinds"].tolist() == kinds


def test_there_is_no_attention_mask_because_it_would_join_packed_documents(
    batch: dict[str, torch.Tensor],
):
    assert "attention_mask" not in batch


def test_pad_id_inside_the_text_keeps_its_label():
    """Where pad is eos, eos is still learnt."""
    row = {"input_ids": [1, PAD], "labels": [NO_LOSS, PAD], "kinds": [0, 0], "seq_lengths": [2]}
    assert DataCollator(PAD)([row])["shift_labels"].tolist() == [PAD]


def test_a_flat_batch_holds_the_same_tokens_and_targets_without_padding(
    batch: dict[str, torch.Tensor],
):
    flat = DataCollator(PAD, flat=True)([PACKED, SHORT])
    assert flat["input_ids"].tolist() == [[1, 2, 3, 1, 4, 5, 1, 6, 7]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2]]
    assert flat["logits_to_keep"].nonzero()[:, 1].tolist() == [1, 3, 4, 6]
    for name in ("labels", "shift_labels", "target_kinds", "token_count"):
        assert flat[name].tolist() == batch[name].tolist()
