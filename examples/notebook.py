"""Annotate, mask, train, sample and score: python examples/notebook.py MODEL."""

import sys

from datasets import Dataset
from transformers import Trainer, TrainingArguments

import anchored

CHATS = [  # your fine-tuning data
    ("Tell me a story.", "Mara sailed home to Lisbon at dawn. The harbour was still asleep."),
    ("What did you see?", "An old fox crossed the frozen river and did not look back."),
    ("Cheer me up.", "Otto baked a cake for the whole village, and it rained sugar all night."),
]
PROMPTS = ["Tell me a story.", "What happened next?"]

model = anchored.load(sys.argv[1], dtype="float32")  # train in full precision
tags = anchored.annotate([answer for _, answer in CHATS], model.schema or "general")
rows = []
for (prompt, answer), annotation in zip(CHATS, tags, strict=True):
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    rows.append(anchored.build_example(chat, annotation, tokenizer=model.tokenizer))

texts = {"before": model.sample(PROMPTS, n=8, max_new_tokens=32, annotated=True)}
settings = TrainingArguments("runs/notebook", max_steps=20, remove_unused_columns=False)
collate = anchored.DataCollator(model.tokenizer.control.pad)
Trainer(model.model, settings, collate, Dataset.from_list(rows)).train()
texts["after"] = model.sample(PROMPTS, n=8, max_new_tokens=32, annotated=True)

found = anchored.score({name: dict(zip(PROMPTS, t, strict=True)) for name, t in texts.items()})
print(found.table, found.verdict, sep="\n")
