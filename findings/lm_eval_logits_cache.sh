#!/usr/bin/env bash
# lm-eval 0.4.13, HFLM with its default `logits_cache=True`: requests whose ids agree in all but the last token are run
# once and share the logits. Where their continuations have different lengths (the context is cut at another place), the
# shorter continuation is scored at the first places of the longer one: its log-likelihood is silently wrong. Partial
# scoring of one sentence at several cuts, as Winograd-style tasks have it, meets this. `logits_cache=False` is right.
#
# Seen (weights drawn by seed 0): together -0.678, alone -0.649, together without the cache -0.649
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON'
import logging
from importlib import metadata

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

logging.disable(logging.WARNING)
vocabulary = {word: i for i, word in enumerate("<eos> the cat sat on a mat rug".split())}
backend = Tokenizer(models.WordLevel(vocabulary, "<eos>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<eos>")
torch.manual_seed(0)
settings = {"vocab_size": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
model = GPT2LMHeadModel(GPT2Config(**settings, initializer_range=1.0)).eval()
asked = [("the cat sat on a", " mat"), ("the cat sat", " on a rug")]
requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]


def score(some, **options):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **options)
    return [found for found, _ in lm.loglikelihood(some, disable_tqdm=True)]


together, uncached = score(requests), score(requests, logits_cache=False)
alone = [score([request])[0] for request in requests]
print("lm-eval", metadata.version("lm-eval"))
for name, values in (("together", together), ("alone", alone), ("without the cache", uncached)):
    print(f"{name}: " + ", ".join(f"{value:.3f}" for value in values))
assert max(abs(a - b) for a, b in zip(alone, uncached)) < 1e-5
assert abs(together[0] - alone[0]) > 0.02
PYTHON
