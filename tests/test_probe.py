"""Prompts reach a model in the format of its tokenizer, and answers end where it ends them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from anchored.errors import ConfigError
from anchored.segments import Message
from anchored.train.probe import check_whole

HI = [Message("user", "Hi"), Message("assistant", "")]


@pytest.fixture
def group() -> Iterator[None]:
    """One process that is a group of its own."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_weights_under_fsdp_are_refused_whatever_their_names(group: None, use_orig_params: bool):
    model = FullyShardedDataParallel(
        nn.Sequential(nn.Linear(4, 4)),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )
    with pytest.raises(ConfigError, match=r"is sharded .* run `anchored evaluate`"):
        check_whole(model)
