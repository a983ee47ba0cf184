"""Sampling a model on a few prompts during training, without any effect on the training.

Samples take their random numbers from a separate generator, so that training continues exactly as
without them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from anchored.annotation import Annotation, Schema
from anchored.chat import ChatTemplate, undated
from anchored.errors import ConfigError
from anchored.preferences.conversation_tokenizer import ConversationTokenizer
from anchored.sampling.decode import Row, Rules, decode
from anchored.sampling.engine import Request, SampleConfig, Sampling
from anchored.sampling.sampler import LocalSampler
from anchored.segments import Message
from anchored.tokenizer import CONTROL_TOKENS, AnchoredTokenizer, ControlIds, tokenizer_record

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """An answer; `annotation` is None if none was requested or none could be parsed."""

    text: str
    annotation: Annotation | None = None


class Probe:
    """Prompts in a tokenizer's own format, to be sampled repeatedly.

    Args:
        prompts: texts or lists of messages `{role, content}`. With a chat template, a text is a
            user message; without one, it is a text to continue. An empty text is no prompt.
        tokenizer: the tokenizer of the model, from `transformers` or this package. One from
            `transformers` counts as ours if it was loaded from a folder with our record, or has our
            control tokens. It is not changed.
        samples: answers per prompt.
        max_new_tokens: maximum tokens of an answer, without its annotation.
        annotated: True if the model writes an annotation before its answer.
        schema: the schema of these annotations.
        seed: seed of the random numbers.
        batch_size: maximum number of answers sampled together.

    Raises:
        ConfigError: there are no prompts, messages but no chat template, or no control tokens for
            an annotation.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        samples: int,
        max_new_tokens: int,
        annotated: bool = False,
        schema: Schema | None = None,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise ConfigError("prompts: give a list of one or more")
        self.prompts = [prompt if isinstance(prompt, str) else turns(prompt) for prompt in prompts]
        self.samples = samples
        self._limit, self._schema, self._seed = max_new_tokens, schema, seed
        self._batch_size, self._annotated = batch_size, annotated
        self._hf, self._tokenizer = tokenizer, _ours(tokenizer)
        if annotated and self._tokenizer is None:
            raise ConfigError(
                "annotated: the tokenizer has no tokens that open and close an annotation; "
                "use the one saved beside an anchored model, or leave annotated out"
            )

    def ask(self, model: Any, step: int) -> list[list[Answer]]:
        """Return the answers, prompts x samples; every process samples a part and gets them all.

        Each `step` draws other random numbers.

        Raises:
            ConfigError: the model's weights are sharded, it lacks rows for some of the tokenizer's
                entries, or it cannot be sampled (`decode`).
            DataError: its logits are not finite numbers.
        """
        check_whole(model)
        processes = PartialState()
        each = [prompt for prompt in self.prompts for _ in range(self.samples)]
        size = -(-len(each) // processes.num_processes)
        first = size * processes.process_index
        part = each[first : first + size]
        answers: list[Answer] = []
        if part:
            draw = self._with_engine if self._tokenizer else self._with_template
            with restored(model):
                answers = draw(model, part, first, random.Random(f"{self._seed}:{step}"))
        if processes.num_processes > 1:
            answers = gather_object(answers)
        return [answers[at : at + self.samples] for at in range(0, len(each), self.samples)]

    def _with_engine(
        self, model: Any, prompts: Sequence[Prompt], first: int, numbers: random.Random
    ) -> list[Answer]:
        requests = [
            Request(tuple(map(_message, turns(prompt))), annotated=self._annotated)
            for prompt in prompts
        ]
        config = SampleConfig(
            max_response_tokens=self._limit,
            retries=1,
            batch_size=self._batch_size,
            seed=numbers.getrandbits(32),
        )
        assert self._tokenizer is not None
        _check_rows(model, self._tokenizer)
        sampler = LocalSampler("", model, self._tokenizer, self._annotated, self._schema)
        found = sampler.sample(requests, config, first=first)
        return [Answer(one.response, one.annotation) for one in found]

    def _with_template(
        self, model: Any, prompts: Sequence[Prompt], first: int, numbers: random.Random
    ) -> list[Answer]:
        seed, ends = numbers.getrandbits(32), _ends(model, self._hf)
        rows = [
            Row(self._prefix(prompt), f"{seed}:{first + i}") for i, prompt in enumerate(prompts)
        ]
        rules, size = _rules(model, self._hf, ends, self._limit), self._batch_size
        written = [
            ids
            for start in range(0, len(rows), size)
            for ids in decode(model, rows[start : start + size], rules)
        ]
        return [Answer(self._text(ids, ends)) for ids in written]

    def _prefix(self, prompt: Prompt) -> list[int]:
        hf = self._hf
        if not prompt:
            ids = []
        elif hf.chat_template is not None:
            ids = hf.apply_chat_template(
                turns(prompt), chat_template=undated(hf), add_generation_prompt=True
            )["input_ids"]
        elif isinstance(prompt, str):
            ids = hf(prompt)["input_ids"]
        else:
            raise ConfigError("prompts: messages need a chat template, and the tokenizer has none")
        return list(ids) or [hf.eos_token_id if hf.bos_token_id is None else hf.bos_token_id]

    def _text(self, ids: Sequence[int], ends: Sequence[int]) -> str:
        end = next((at for at, i in enumerate(ids) if i in ends), len(ids))
        return self._hf.decode(ids[:end], skip_special_tokens=True)


def turns(prompt: Prompt) -> list[dict[str, Any]]:
    """Return a prompt as messages: a text becomes a user message, an empty text no message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    return [dict(message) for message in prompt]


def _message(turn: Mapping[str, Any]) -> Message:
    return Message(turn["role"], turn["content"])


def check_whole(model: Any) -> None:
    """Check that every process holds all weights.

    Raises:
        ConfigError: the weights are sharded, so that no process can sample alone.
    """
    fsdp = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    for name, parameter in model.named_parameters():
        if fsdp or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
            raise ConfigError(
                f"collapse monitor: weight {name} is sharded (FSDP, DeepSpeed ZeRO-3 or tensor "
                "parallel), but sampling needs whole weights; leave the monitor out and run "
                "`anchored evaluate` on the checkpoints"
            )


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Set evaluation mode for the body, then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _ours(tokenizer: Any) -> AnchoredTokenizer | None:
    """Return the tokenizer as one of ours, or None; a `transformers` tokenizer is copied first."""
    if isinstance(tokenizer, AnchoredTokenizer):
        return tokenizer
    if isinstance(tokenizer, ConversationTokenizer):
        return tokenizer.stock
    record = tokenizer_record(tokenizer.name_or_path) if tokenizer.name_or_path else None
    if record is None and not tokenizer.get_vocab().keys() >= set(CONTROL_TOKENS.values()):
        return None
    return AnchoredTokenizer.adopt(copy.deepcopy(tokenizer), record)


def _check_rows(model: Any, tokenizer: AnchoredTokenizer) -> None:
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(
            f"tokenizer: has {len(tokenizer)} entries, but the model's embedding has {rows} rows; "
            "use the tokenizer that the model was saved with"
        )


def _ends(model: Any, hf: Any) -> list[int]:
    """Return the ids that end an answer: from the tokenizer, the model's settings, the template."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ends = [hf.eos_token_id, *(named if isinstance(named, list) else [named])]
    if hf.chat_template is not None:
        with suppress(ConfigError):  # the template refuses the conversation that would show it
            ends.append(hf.convert_tokens_to_ids(ChatTemplate(hf).end))
    return [end for end in dict.fromkeys(ends) if end is not None]


def _rules(model: Any, hf: Any, ends: Sequence[int], limit: int) -> Rules:
    """Return rules for answers without annotations; only ids without text are barred."""
    width = model.config.get_text_config().vocab_size
    barred = torch.zeros(width, dtype=torch.bool, device=model.device)
    barred[len(hf) :] = True
    control = ControlIds(*[ends[0]] * len(fields(ControlIds)))
    return Rules(control, Sampling(), Sampling(), 1, limit, barred, ends)
