"""Train on prepared data in one page of plain PyTorch: the readable twin of `anchored pretrain`.

    anchored prepare config.yaml                        # -> a folder with data, masks and tokenizer
    python examples/minimal_loop.py FOLDER --preset 0.5m --steps 200 --out runs/minimal

The loop has the same data, order, masks, optimizer and schedule as the stock `transformers.Trainer`
that `anchored pretrain` and `anchored sft` use; a test checks that both give the same result. What
the Trainer adds is left out: checkpoints, mixed precision, several devices.

Shapes: B rows, T tokens in the longest row, H hidden, N tokens with loss, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from anchored.data.prepare import load_prepared
from anchored.models.build import ModelConfig, build_model
from anchored.models.record import of_other_trainer, save_beside
from anchored.tokenizer import AnchoredTokenizer

Row = Mapping[str, Any]
NO_LOSS = -100


@dataclass(frozen=True)
class Settings:
    """The Trainer's `max_steps`, `per_device_train_batch_size` and so on, with its defaults."""

    steps: int
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 5e-5
    warmup: int = 0
    max_grad_norm: float = 1.0
    seed: int = 0


def updates(dataset: Dataset, settings: Settings) -> Iterator[list[list[Row]]]:
    """Yield the rows of each optimizer step in micro-batches, in a new random order every epoch.

    The last step of an epoch has the remaining rows.
    """
    size, per_update = settings.batch_size, settings.batch_size * settings.accumulation
    for epoch in count():
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        for start in range(0, len(order), per_update):
            chosen = order[start : start + per_update]
            parts = (chosen[i : i + size] for i in range(0, len(chosen), size))
            yield [[dataset[i] for i in part] for part in parts]


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `position_ids`, `targets` and `weights`, each (B, T), right-padded.

    Positions restart at 0 for each document in a row, which keeps attention within documents. The
    target of a position is the next token, with its weight, if that carries loss.
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    targets = torch.full((len(rows), width), NO_LOSS)
    weights = torch.zeros((len(rows), width))
    for b, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[b, :length] = torch.as_tensor(row["input_ids"])
        labels = torch.as_tensor(row["labels"])
        targets[b, : length - 1] = labels[1:]
        weights[b, : length - 1] = torch.as_tensor(row.get("weights", labels != NO_LOSS))[1:]
        *documents, last = map(int, row["seq_lengths"])
        lengths = [*documents, last + width - length]
        position_ids[b] = torch.cat([torch.arange(n) for n in lengths])
    columns = {"input_ids": input_ids, "position_ids": position_ids}
    return {**columns, "targets": targets, "weights": weights}


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted sum of the cross-entropy over the positions with loss.

    Only these positions are projected to the vocabulary. The attention mask must stay None and the
    cache off: with either, attention would cross the documents of a row.
    """
    hidden_BTH = model.base_model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state
    keep_BT = batch["targets"] != NO_LOSS
    logits_NV = model.get_output_embeddings()(hidden_BTH[keep_BT])
    losses_N = cross_entropy(logits_NV.float(), batch["targets"][keep_BT], reduction="none")
    return (losses_N * batch["weights"][keep_BT]).sum()


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of a step: linear warm-up over `warmup` steps, then linear decay to 0."""
    if step < settings.warmup:
        return settings.learning_rate * step / settings.warmup
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * left


def train(model: Any, dataset: Dataset, pad_id: int, settings: Settings) -> Iterator[float]:
    """Take one optimizer step per item; yield the loss before it, in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    batches = updates(dataset.with_format("numpy"), settings)
    model.train()
    for step in range(settings.steps):
        micro_batches = [collate(rows, pad_id) for rows in next(batches)]
        # Divide by the weights of the whole update, not of each micro-batch: otherwise a token
        # would weigh more if its micro-batch has few tokens.
        weights = sum(float(batch["weights"].sum()) for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            loss = summed_loss(model, batch) / weights
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        optimizer.zero_grad()
        yield total


def main() -> None:
    """Train a preset from scratch, or continue from a checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder written by `anchored prepare`")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--preset", help="such as 0.5m")
    start.add_argument("--init", help="a model folder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    dataset, manifest = load_prepared(options.data)
    tokenizer = AnchoredTokenizer.load(options.data / "tokenizer")
    start_from = ModelConfig(preset=options.preset, init=options.init)
    model = build_model(start_from, tokenizer, options.seed)
    settings = Settings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    for step, loss in enumerate(train(model, dataset, tokenizer.control.pad, settings), 1):
        print(f"step {step}: loss {loss:.4f}")
    model.save_pretrained(options.out)
    save_beside(options.out, tokenizer, of_other_trainer(manifest, options.init, asdict(settings)))


if __name__ == "__main__":
    main()
