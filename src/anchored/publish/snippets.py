"""Code on a model card that samples the model with `anchored`, transformers and vLLM.

`PLACE` stands for the path of the model; a push replaces it with the repository's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchored.annotation import Schema
from anchored.publish import PLACE
from anchored.tokenizer import ControlIds

_TOKENS = 400


@dataclass(frozen=True)
class Asked:
    """How a model is sampled.

    Args:
        chat: True if it answers prompts, False if it writes documents.
        annotated: True if it writes an annotation first.
        schema: schema of the annotations; None if tags are free.
        control: ids of the control tokens.
    """

    chat: bool
    annotated: bool
    schema: Schema | None
    control: ControlIds


def with_anchored(asked: Asked) -> str:
    """Return commands that sample the model with `anchored`."""
    prompt = ' --prompt "Tell me a story."' if asked.chat else ""
    lines = [f"anchored sample {PLACE}{prompt} -n 8"]
    if asked.annotated and (pin := _pin(asked.schema)):
        lines.append(f'anchored sample {PLACE}{prompt} -n 8 --pin "{pin}"')
    return "\n".join(lines)


def _pin(schema: Schema | None) -> str | None:
    """Return a tag to pin, of the first anchored key with a closed vocabulary."""
    keys = schema.keys if schema else ()
    pins = (f"{key.name}={key.values[0]}" for key in keys if key.anchored and key.values)
    return next(pins, None)


def with_transformers(asked: Asked) -> str:
    """Return Python code that prints one sample."""
    return "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            *_beginning(asked),
            "model = AutoModelForCausalLM.from_pretrained(MODEL)",
            "ids = torch.tensor([prompt])",
            "out = model.generate(",
            "    ids,",
            "    attention_mask=torch.ones_like(ids),",
            "    do_sample=True,",
            "    temperature=1.0,",
            "    top_k=0,  # transformers would keep the 50 likeliest tokens alone",
            "    top_p=1.0,",
            "    repetition_penalty=1.0,",
            f"    max_new_tokens={_TOKENS},",
            *([f"    eos_token_id={_stops(asked)},"] if _stops(asked) else []),
            ")",
            "written = out[0, len(prompt) :].tolist()",
            *_shown(asked),
        ]
    )


def with_vllm(asked: Asked) -> str:
    """Return Python code that prints eight samples."""
    stops = f", stop_token_ids={_stops(asked)}" if _stops(asked) else ""
    return "\n".join(
        [
            "from transformers import AutoTokenizer",
            "from vllm import LLM, SamplingParams",
            "",
            *_beginning(asked),
            f"sampling = SamplingParams(n=8, temperature=1.0, max_tokens={_TOKENS}{stops})",
            '(found,) = LLM(MODEL).generate([{"prompt_token_ids": prompt}], sampling)',
            "for sample in found.outputs:",
            "    written = list(sample.token_ids)",
            *(f"    {line}" for line in _shown(asked)),
        ]
    )


def _beginning(asked: Asked) -> Sequence[str]:
    """Return the lines that define `MODEL`, `tokenizer` and the ids in `prompt`."""
    control = asked.control
    named = [f'MODEL = "{PLACE}"']
    if asked.annotated:
        named.append(f"OPEN, CLOSE = {control.open}, {control.close}  # around the annotation")
    named.append("tokenizer = AutoTokenizer.from_pretrained(MODEL)")
    if not asked.chat:
        opened = ", OPEN" if asked.annotated else ""
        return [*named, f"prompt = [{control.bos}{opened}]"]
    opened = ["prompt += [OPEN] * (prompt[-1] != OPEN)"] if asked.annotated else []
    return [
        *named,
        'messages = [{"role": "user", "content": "Tell me a story."}]',
        "prompt = tokenizer.apply_chat_template(",
        "    messages, add_generation_prompt=True, return_dict=True",
        ')["input_ids"]',
        *opened,
    ]


def _stops(asked: Asked) -> list[int]:
    """Return the stop ids: the next annotation ends a document's chunk, eos an answer."""
    return [asked.control.eos, asked.control.open] if asked.annotated and not asked.chat else []


def _shown(asked: Asked) -> Sequence[str]:
    """Return the lines that print a sample; the annotation is split off by its closing id."""
    if not asked.annotated:
        return ["print(tokenizer.decode(written, skip_special_tokens=True))"]
    return [
        "end = written.index(CLOSE) if CLOSE in written else len(written)",
        "print(tokenizer.decode(written[:end]))  # the annotation",
        "print(tokenizer.decode(written[end + 1 :], skip_special_tokens=True))  # the text",
    ]
