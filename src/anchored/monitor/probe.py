"""A few prompts sampled from a model in the middle of its training, which is left as it was.

Samples take their random numbers from a generator of their own. So training goes on as if nobody
had asked.
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
    """What the model wrote; `annotation` is None where none was asked for or none can be read."""

    text: str
    annotation: Annotation | None = None


class Probe:
    """Prompts in a tokenizer's own format, to be sampled again and again.

    Args:
        prompts: texts or lists of messages `{role, content}`. With a chat template, a text is what
            the user says; without one, what the model goes on from. An empty text asks nothing.
        tokenizer: that of the model, `transformers`' or ours; the former is taken for ours if it
            was loaded from where ours was saved, or has our control tokens. It is not changed.
        samples: answers to each prompt.
        max_new_tokens: of an answer, its annotation not counted.
        annotated: the model writes an annotation before its answer.
        schema: of these annotations.
        seed: of the random numbers.
        batch_size: answers sampled together, at most.

    Raises:
        ConfigError: no prompts, messages without a chat template, or no control tokens to write an
            annotation with.
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
                "annotated: the tokenizer has no tokens to open and close an annotation with; "
                "use the one saved beside an anchored model, or leave annotated out"
            )

    def ask(self, model: Any, step: int) -> list[list[Answer]]:
        """Answers, prompts x samples, the same in every process; each samples its part of them.

        Another `step` draws other random numbers.

        Raises:
            ConfigError: the model's weights are sharded, it has no rows for some of the tokenizer's
                entries, or it cannot be sampled (`decode`).
            DataError: its logits are not numbers.
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
    """A prompt as messages; a text is the user's, an empty one asks nothing."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    return [dict(message) for message in prompt]


def _message(turn: Mapping[str, Any]) -> Message:
    return Message(turn["role"], turn["content"])


def check_whole(model: Any) -> None:
    """Sees that every process holds all weights.

    Raises:
        ConfigError: they are sharded, so a process cannot sample alone.
    """
    fsdp = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    for name, parameter in model.named_parameters():
        if fsdp or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
            raise ConfigError(
                f"collapse monitor: weight {name} is sharded (FSDP, DeepSpeed ZeRO-3 or tensor "
                "parallel), and sampling needs whole ones; leave the monitor out and run `anchored "
                "evaluate` on the checkpoints"
            )


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Evaluation mode for a while; then each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _ours(tokenizer: Any) -> AnchoredTokenizer | None:
    """The tokenizer as ours, if it is; one of `transformers` is copied for that."""
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
            f"tokenizer: has {len(tokenizer)} entries, and the model's embedding {rows} rows; give "
            "the tokenizer that the model was saved with"
        )


def _ends(model: Any, hf: Any) -> list[int]:
    """The ids that end an answer: the tokenizer's, the model's settings' and the template's."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ends = [hf.eos_token_id, *(named if isinstance(named, list) else [named])]
    if hf.chat_template is not None:
        with suppress(ConfigError):  # it refuses the conversation that would show its end
            ends.append(hf.convert_tokens_to_ids(ChatTemplate(hf).end))
    return [end for end in dict.fromkeys(ends) if end is not None]


def _rules(model: Any, hf: Any, ends: Sequence[int], limit: int) -> Rules:
    """Answers without annotations; nothing is barred but ids without text."""
    width = model.config.get_text_config().vocab_size
    barred = torch.zeros(width, dtype=torch.bool, device=model.device)
    barred[len(hf) :] = True
    control = ControlIds(*[ends[0]] * len(fields(ControlIds)))
    return Rules(control, Sampling(), Sampling(), 1, limit, barred, ends)
