"""Chat with a trained model using only transformers: `anchored` is not imported.

    python examples/load_and_chat.py MODEL "Tell me a story."

The model writes an annotation, closes it and answers; two lines cut the annotation off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file


def control_ids(tokenizer: Any) -> dict[str, int]:
    """Return control ids by name, such as `open` and `close`; the tokens differ between models."""
    path = cached_file(tokenizer.name_or_path, "anchored_tokenizer.json")
    return json.loads(Path(path or "").read_text(encoding="utf-8"))["control"]


def chat(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 400) -> tuple[str, str]:
    """Return the annotation and the answer, both sampled at temperature 1."""
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    opening = control_ids(tokenizer)["open"]
    if ids[-1] != opening:
        ids.append(opening)
    batch = torch.tensor([ids], device=model.device)
    out = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        do_sample=True,
        temperature=1.0,
        top_k=0,  # by default, transformers keeps only the 50 likeliest tokens
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
    )
    return cut(out[0, len(ids) :].tolist(), tokenizer)


def cut(written: list[int], tokenizer: Any) -> tuple[str, str]:
    """Return the text before the closing token and the text after it."""
    closing = control_ids(tokenizer)["close"]
    end = written.index(closing) if closing in written else len(written)
    answer = tokenizer.decode(written[end + 1 :], skip_special_tokens=True)
    return tokenizer.decode(written[:end]), answer


def main() -> None:
    """Print one answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("prompt")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    annotation, answer = chat(model, tokenizer, options.prompt)
    print(f"{annotation}\n\n{answer}")


if __name__ == "__main__":
    main()
