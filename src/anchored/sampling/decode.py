"""The decoding loop: many sequences in a batch, each in its annotation or in its response.

This loop replaces `generate`, because each part has its own sampling settings, finished sequences
leave the batch, and no setting of a checkpoint's `generation_config` may slip in. The model must
accept `position_ids` and `logits_to_keep`, as for training, and a cache of keys and values. A model
that silently ignores the cache would write nonsense, so this is checked first.
Shapes: B sequences, T tokens so far, V vocabulary, L maximum tokens, F maximum forced tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from anchored.errors import ConfigError, DataError
from anchored.sampling.keys import KeyConstraint
from anchored.sampling.logits import Sampling, draw, exact_dtype, truncate
from anchored.tokenizer import ControlIds

_SPARE = 64
_COMPACT_BELOW = 0.8

# Tolerance, relative to the effect of context on the logits. Rounding to bfloat16 causes 0.01; an
# ignored cache (Mamba) or virtual tokens at every step (prompt tuning) cause 0.2 and more.
_UNLIKE = 0.1
_ROUNDING = 1e-4  # for models whose context has no effect yet, as with layers that start at zero
_decodable: WeakSet[torch.nn.Module] = WeakSet()


@dataclass(frozen=True)
class Row:
    """One sequence to decode.

    Args:
        prefix: the ids so far.
        seed: seed of the random numbers, one per token.
        inside: True if the prefix ends inside an annotation.
        pinned: number of tags of each key that the annotation already has.
        forced: ids that the response starts with.
    """

    prefix: Sequence[int]
    seed: str
    inside: bool = False
    pinned: Mapping[str, int] = field(default_factory=dict[str, int])
    forced: Sequence[int] = ()


@dataclass(frozen=True)
class Rules:
    """Rules for all sequences of a batch.

    Args:
        annotation, response: sampling settings of the two parts.
        annotation_limit, response_limit: maximum tokens of the two parts, including the closing
            token and eos, excluding forced tokens.
        barred: control ids and ids without text, sampled only to close a part.
        ends: ids that end a sequence, in addition to those of `control`.
        breaks: ids (V,) whose text starts a new line. After pinned tags, one of them or the closing
            token comes first; without pinned tags, they are not used.
        leads: ids (V,) that some tokenizers put before a line break.
        keys: the keys that may be sampled; None for any key.
    """

    control: ControlIds
    annotation: Sampling
    response: Sampling
    annotation_limit: int
    response_limit: int
    barred: torch.Tensor
    ends: Sequence[int] = ()
    breaks: torch.Tensor | None = None
    leads: torch.Tensor | None = None
    keys: KeyConstraint | None = None


@torch.inference_mode()
def decode(model: PreTrainedModel, rows: Sequence[Row], rules: Rules) -> list[list[int]]:
    """Return the new ids of each row, including the id that ended it.

    A row whose annotation is too long ends there.

    Raises:
        ConfigError: the model does not continue from a cache as it would from the tokens.
        DataError: its logits are not finite numbers.
    """
    if model not in _decodable:
        _check_cached(model)
        _decodable.add(model)
    state = _State(rows, rules, model.device)
    ids, mask = _left_padded([row.prefix for row in rows], rules.control.pad, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = _cache(model)
    written: list[list[int]] = [[] for _ in rows]
    present = list(range(len(rows)))
    while present:
        scores = _scores(model, ids, mask, positions, cache)
        running = (~state.ended).tolist()
        ids = state.step(scores)
        for row, runs, token in zip(present, running, ids.tolist(), strict=True):
            if runs:
                written[row].append(token)
        ids, positions = ids[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        kept = (~state.ended).nonzero()[:, 0]
        if len(kept) <= _COMPACT_BELOW * len(present):
            present = [present[b] for b in kept.tolist()]
            ids, positions, mask = ids[kept], positions[kept], mask[kept]
            state.select(kept)
            cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
    return written


def _scores(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache,
) -> torch.Tensor:
    """Return the logits (B, V) after the last of `ids`, which continue the contents of `cache`."""
    out: Any = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float()


def _check_cached(model: PreTrainedModel) -> None:
    """Check that a step from the cache, in a padded batch, gives the logits of a whole pass.

    Raises:
        ConfigError: the logits differ.
    """
    numbers, width = random.Random(0), model.config.get_text_config().vocab_size
    rows = [[numbers.randrange(width) for _ in range(length)] for length in (8, 4)]
    ids, mask = _left_padded(rows, 0, model.device)
    positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), _cache(model)
    _scores(model, ids[:, :-1], mask[:, :-1], positions[:, :-1], cache)
    stepped = _scores(model, ids[:, -1:], mask, positions[:, -1:], cache).log_softmax(-1)
    whole, alone = (
        torch.cat([_whole_pass(model, row[first:]) for row in rows]) for first in (0, -1)
    )
    difference, context = ((whole - other).norm() for other in (stepped, alone))
    if difference > max(_UNLIKE * context, _ROUNDING * whole.norm()):
        raise ConfigError(
            f"model: {type(model).__name__} gives other logits from a cache of keys and values "
            "than from the tokens (as state-space models and prompt or prefix tuning do), so "
            "samples would be wrong; sample it with another tool and compare the answers with "
            "`anchored score`; in training, leave the monitor out"
        )


def _whole_pass(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities (1, V) after `row`, computed without a cache."""
    ids = torch.tensor([row], device=model.device)
    out: Any = model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return out.logits[:, -1].float().log_softmax(-1)


def _left_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded ids and their attention mask, both (B, T)."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(s)) + list(s) for s in sequences]
    mask = [[0] * (width - len(s)) + [1] * len(s) for s in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _State:
    """The state of each sequence, which determines its next tokens."""

    def __init__(self, rows: Sequence[Row], rules: Rules, device: torch.device) -> None:
        self._rules = rules
        self._inside = torch.tensor([row.inside for row in rows], device=device)
        self._first = torch.tensor([row.inside and bool(row.pinned) for row in rows], device=device)
        self._annotation_left = torch.full((len(rows),), rules.annotation_limit, device=device)
        forced = [len(row.forced) for row in rows]
        self._response_left = torch.tensor(forced, device=device) + rules.response_limit
        self._forced = torch.full((len(rows), max(forced) + 1), -1, device=device)
        for b, row in enumerate(rows):
            self._forced[b, : forced[b]] = torch.tensor(row.forced, device=device)
        self._cursor = torch.zeros(len(rows), dtype=torch.long, device=device)
        longest = rules.annotation_limit + rules.response_limit + max(forced)
        self._uniforms = _uniforms([row.seed for row in rows], longest, device)
        self._time = 0
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        if rules.keys:
            self._node, self._keys_left = rules.keys.begin([row.pinned for row in rows])

    def step(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw the next ids (B,) from logits (B, V)."""
        inside = self._inside
        scores = self._restrict(scores)
        if self._rules.annotation == self._rules.response:
            scores = truncate(scores, self._rules.response)
        else:
            for part, sampling in (
                (inside, self._rules.annotation),
                (~inside, self._rules.response),
            ):
                scores[part] = truncate(scores[part], sampling)
        ids = draw(scores, self._uniforms[:, self._time])
        if (ids < 0).any():
            raise DataError("model: its logits are not finite numbers; use an earlier checkpoint")
        forced = torch.where(inside, -1, self._forced.gather(1, self._cursor[:, None])[:, 0])
        ids = torch.where(forced < 0, ids, forced)
        self._cursor += forced >= 0
        self._advance(ids)
        return ids

    def _restrict(self, scores: torch.Tensor) -> torch.Tensor:
        """Mask the ids that must not come next, such as control tokens that do not end the part."""
        rules, inside = self._rules, self._inside
        barred = rules.barred.repeat(len(scores), 1)
        barred[:, rules.control.close] = ~inside
        barred[:, rules.control.ends] = inside[:, None]
        if rules.breaks is not None and rules.leads is not None and self._time < 2:
            starts = rules.breaks | rules.leads if self._time == 0 else rules.breaks.clone()
            starts[rules.control.close] = True
            barred |= self._first[:, None] & ~starts
        if rules.keys:
            barred |= inside[:, None] & ~rules.keys.permitted(self._node, self._keys_left)
        return scores.masked_fill(barred, -torch.inf)

    def _advance(self, ids: torch.Tensor) -> None:
        rules, inside = self._rules, self._inside
        self._annotation_left -= inside.long()
        self._response_left -= (~inside).long()
        if rules.leads is not None:
            self._first &= rules.leads[ids]
        if rules.keys:
            self._node, self._keys_left = rules.keys.advance(self._node, self._keys_left, ids)
        self._inside = inside & (ids != rules.control.close)
        self.ended |= self._response_left == 0
        self.ended |= self._inside & (self._annotation_left == 0)
        for end in {*rules.control.ends, *rules.ends}:
            self.ended |= ids == end
        self._time += 1

    def select(self, kept: torch.Tensor) -> None:
        """Keep only the sequences at `kept`."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[kept])


def _uniforms(seeds: Sequence[str], count: int, device: torch.device) -> torch.Tensor:
    """Draw numbers in [0, 1) (B, L); those of a row depend only on its seed."""
    generators = [random.Random(seed) for seed in seeds]
    numbers = [[generator.random() for _ in range(count)] for generator in generators]
    dtype = exact_dtype(device)
    below_one = 1 - torch.finfo(dtype).eps / 2  # single precision would round some up to 1
    return torch.tensor(numbers, dtype=dtype, device=device).clamp(max=below_one)


class _RoomyLayer(DynamicLayer):
    """The keys and values of one layer, in storage with room to grow.

    The stock layer copies everything for each token, which takes a third of the time of a small
    model.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start without tokens, with the shape, precision and device of the arguments."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self._storage = self.keys, self.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values and return all of them (B, heads, T, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.keys.shape[-2]
        length = before + key_states.shape[-2]
        if self._storage[0].shape[-2] < length:
            room = length + _SPARE
            self._storage = _roomier(self.keys, room), _roomier(self.values, room)
        keys, values = self._storage
        keys[..., before:length, :] = key_states
        values[..., before:length, :] = value_states
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep only the sequences at `beam_idx`."""
        if self.is_initialized:  # never, if the layer shares the keys of another one
            self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]
            self._storage = self.keys, self.values


def _roomier(states: torch.Tensor, length: int) -> torch.Tensor:
    *outer, held, size = states.shape
    storage = states.new_empty(*outer, length, size)
    storage[..., :held, :] = states
    return storage


def _cache(model: PreTrainedModel) -> DynamicCache:
    """Return the model's own kind of cache, with `_RoomyLayer` for its plain layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
