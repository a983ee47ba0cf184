"""Prepared data as other trainers read it: their columns, their collators, no document mixed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from datasets import DatasetDict, Features, List, Value, load_from_disk
from rich.console import Console
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from anchored.cli import main, parse
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import AnchoredError, ConfigError, DataError
from anchored.models.build import ModelConfig, build_model
from anchored.publish import export as module
from anchored.publish.export import FORMATS, export
from anchored.segments import NO_LOSS
from anchored.step.collate import DataCollator
from anchored.tokenizer import AnchoredTokenizer
from conftest import ROOT

TINY = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,  # at the usual 0.02 what a token attends to hardly shows in the loss
}
TRANSFORMERS = Features(
    {
        "input_ids": List(Value("int32")),
        "attention_mask": List(Value("int8")),
        "labels": List(Value("int32")),
    }
)
TORCHTUNE = Features({"tokens": List(Value("int32")), "labels": List(Value("int32"))})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed documents, with a validation split."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    config = {
        "out": out,
        "sources": [{"path": "storyworld://small?seed=0", "limit": 30}],
        "tokenizer": {"vocab_size": 600},
        "max_length": 384,
        "validation_share": 0.2,
    }
    prepare(PrepareConfig.model_validate(config), Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def exported(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    for name in FORMATS:
        export(prepared, name, root / name)
    return {name: root / name for name in FORMATS}


def sequences(data: Path, split: str = "train") -> list[dict[str, list[int]]]:
    """Each sequence of the packed rows."""
    rows, found = load_prepared(data, split=split)[0], []
    for row in rows:
        assert isinstance(row, dict)
        end = 0
        for length in row["seq_lengths"]:
            start, end = end, end + length
            found.append({name: row[name][start:end] for name in ("input_ids", "labels")})
    return found


def rows_of(folder: Path, split: str = "train") -> list[Any]:
    loaded = load_from_disk(str(folder))
    assert isinstance(loaded, DatasetDict)
    return list(loaded[split])


@pytest.mark.parametrize(
    ("name", "features"),
    [("axolotl", TRANSFORMERS), ("llamafactory", TRANSFORMERS), ("torchtune", TORCHTUNE)],
)
def test_a_saved_dataset_dict_has_exactly_the_columns_of_its_reader(
    exported: dict[str, Path], name: str, features: Features
):
    loaded = load_from_disk(str(exported[name]))
    assert isinstance(loaded, DatasetDict)
    assert {split: rows.features for split, rows in loaded.items()} == {
        "train": features,
        "validation": features,
    }


@pytest.mark.parametrize("split", ["train", "validation"])
def test_each_row_is_one_sequence_of_the_packed_rows_in_their_order(
    prepared: Path, exported: dict[str, Path], split: str
):
    expected = sequences(prepared, split)
    packed = len(load_prepared(prepared, split=split)[0])
    assert len(expected) > packed
    for name in ("axolotl", "llamafactory"):
        assert rows_of(exported[name], split) == [
            {**row, "attention_mask": [1] * len(row["labels"])} for row in expected
        ]
    assert rows_of(exported["torchtune"], split) == [
        {"tokens": row["input_ids"], "labels": row["labels"]} for row in expected
    ]


def test_batches_of_any_size_give_the_same_rows(
    prepared: Path, exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_ROWS", 2)
    export(prepared, "axolotl", tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(exported["axolotl"])


def summed_loss(model: PreTrainedModel, data: Path) -> torch.Tensor:
    """Ours, of packed rows."""
    rows: list[Any] = list(load_prepared(data)[0].with_format("numpy"))
    pad = AnchoredTokenizer.load(data / "tokenizer").control.pad
    return model(**DataCollator(pad)(rows), use_cache=False, num_items_in_batch=1).loss


@torch.no_grad()
def test_the_collator_of_transformers_gives_the_loss_of_the_packed_rows_in_ours(
    prepared: Path, exported: dict[str, Path]
):
    """LLaMA-Factory's is a subclass: attention mask, no positions, every column padded."""
    tokenizer = AnchoredTokenizer.load(exported["llamafactory"] / "tokenizer")
    tokenizer.hf.pad_token = tokenizer.hf.eos_token
    model = build_model(ModelConfig(config=TINY), tokenizer, seed=0).eval()
    batch = DataCollatorForSeq2Seq(tokenizer.hf)(rows_of(exported["llamafactory"]))
    theirs = model(**batch, use_cache=False, num_items_in_batch=1).loss
    assert_close(theirs, summed_loss(model, prepared), atol=0, rtol=1e-5)


@torch.no_grad()
def test_rows_for_torchtune_give_that_loss_when_labels_are_shifted_as_its_recipes_do(
    prepared: Path, exported: dict[str, Path]
):
    example = torchtune_example()
    tokenizer = example.Tokenizer(str(exported["torchtune"]))
    model = build_model(
        ModelConfig(config=TINY), AnchoredTokenizer.load(prepared / "tokenizer"), 0
    ).eval()
    total = torch.zeros(())
    for row in example.exported(tokenizer, str(exported["torchtune"])):
        logits = model(input_ids=torch.tensor([row["tokens"]]), use_cache=False).logits[0]
        labels = torch.tensor([*row["labels"][1:], NO_LOSS])
        total += cross_entropy(logits, labels, reduction="sum")
    assert_close(total, summed_loss(model, prepared), atol=0, rtol=1e-5)


def torchtune_example() -> Any:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import torchtune_dataset  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return torchtune_dataset


def test_the_torchtune_example_takes_its_pad_id_from_the_export(exported: dict[str, Path]):
    example, folder = torchtune_example(), exported["torchtune"]
    tokenizer = example.Tokenizer(str(folder), max_seq_len=384)
    assert tokenizer.pad_id == AnchoredTokenizer.load(folder / "tokenizer").control.pad
    assert len(example.exported(tokenizer, str(folder), "validation")) == len(
        rows_of(folder, "validation")
    )
    with pytest.raises(ValueError, match=r"needs tokenizer\.max_seq_len"):
        example.exported(example.Tokenizer(str(folder)), str(folder), packed=True)


def test_the_torchtune_example_packs_with_torchtune(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """torchtune itself is another environment's; its class here is a stand-in."""
    torchtune: Any = ModuleType("torchtune.datasets")
    torchtune.PackedDataset = lambda rows, **given: (len(rows), given)
    monkeypatch.setitem(sys.modules, "torchtune", ModuleType("torchtune"))
    monkeypatch.setitem(sys.modules, "torchtune.datasets", torchtune)
    example, folder = torchtune_example(), exported["torchtune"]
    tokenizer = example.Tokenizer(str(folder), max_seq_len=384)
    assert example.exported(tokenizer, str(folder), packed=True) == (
        len(rows_of(folder)),
        {"max_seq_len": 384, "padding_idx": tokenizer.pad_id},
    )


def test_the_configurations_shown_name_what_is_there():
    page = (ROOT / "docs" / "other-trainers.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r'```yml title="(\w+)\.yml"\n(.*?)```', page, re.DOTALL))
    configs = {name: yaml.safe_load(text) for name, text in shown.items()}
    assert configs.keys() == FORMATS.keys()
    assert configs["axolotl"]["datasets"] == [{"path": "runs/export", "split": "train"}]
    assert configs["llamafactory"]["tokenized_path"] == "runs/export"
    for name, part in (("Tokenizer", "tokenizer"), ("exported", "dataset")):
        fields = configs["torchtune"][part]
        assert fields.pop("_component_") == f"torchtune_dataset.{name}"
        given = () if part == "tokenizer" else ("tokenizer",)
        signature(getattr(torchtune_example(), name)).bind(*given, **fields)


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_line_knows_every_format(name: str):
    assert parse(["export", "data", "--format", name, "--out", "out"]).format == name


def test_export_json_says_what_was_written(prepared: Path, exported: dict[str, Path]):
    found = json.loads((exported["torchtune"] / "export.json").read_text(encoding="utf-8"))
    tokenizer = AnchoredTokenizer.load(prepared / "tokenizer")
    rows = sequences(prepared)
    assert found["columns"] == {"tokens": "int32", "labels": "int32"}
    assert found["labels"] == "unshifted; -100 carries no loss"
    assert found["documents"] == "one sequence a row"
    assert found["splits"]["train"] == {
        "rows": len(rows),
        "tokens": sum(len(row["labels"]) for row in rows),
        "supervised": sum(label != NO_LOSS for row in rows for label in row["labels"]),
        "longest_row": max(len(row["labels"]) for row in rows),
    }
    assert found["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert found["tokenizer"]["vocab_size"] == len(tokenizer)
    saved = AnchoredTokenizer.load(exported["torchtune"] / "tokenizer")
    assert saved.fingerprint == tokenizer.fingerprint


def test_the_command_names_the_length_that_a_trainer_must_be_told(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(["export", str(prepared), "--format", "axolotl", "--out", str(out)]) == 0
    longest = max(len(row["labels"]) for row in sequences(prepared))
    assert f"sequence_len: {longest} or more, or rows are lost\n" in capsys.readouterr().out


def test_a_used_folder_is_refused_and_left_as_it_was(prepared: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="already exists"):
        export(prepared, "axolotl", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_changed_data_is_refused_and_nothing_is_written(prepared: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    (rows,) = data.glob("*.arrow")
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(AnchoredError, match="it changed since it was written"):
        export(data, "axolotl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_unknown_format_is_refused_by_name(prepared: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="the formats are axolotl, llamafactory, torchtune"):
        export(prepared, "nemo", tmp_path / "out")
