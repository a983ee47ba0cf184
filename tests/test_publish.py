"""A card says what the record says, its code runs, and a push sends no more than it lists."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from transformers import AutoTokenizer

from anchored.cli import main
from anchored.errors import ConfigError, DataError
from anchored.files import write_json
from anchored.models.record import origins, read_record
from anchored.publish import PLACE
from anchored.publish.card import card, front_matter
from anchored.publish.check import SECRETS, problems, uploads
from anchored.publish.push import PushConfig, plan, push
from anchored.publish.run import write
from anchored.sampling.sampler import load
from anchored.segments import OBJECTIVES, Message, conversation_segments
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig, SFTConfig
from anchored.workflow import pretrain, sft
from conftest import ROOT
from fake_hub import Hub, serving

SECRET = "hf_" + "s" * 34
CHAT = "Tell me a story."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of an annotated base."""
    return pretrain(
        PretrainConfig.model_validate(
            {
                "out": tmp_path_factory.mktemp("base") / "mid",
                "model": {"preset": "0.5m"},
                "data": {
                    "sources": [{"path": "storyworld://small?seed=0", "limit": 8}],
                    "tokenizer": {"vocab_size": 500},
                },
                "trainer": {"max_steps": 1, "use_cpu": True},
            }
        ),
        quiet=True,
    )


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of anchored SFT."""
    return sft(
        SFTConfig.model_validate(
            {
                "out": tmp_path_factory.mktemp("sft") / "mine",
                "model": {"init": str(base)},
                "data": {"sources": [{"path": "storyworld://small/sft?seed=0&count=8"}]},
                "trainer": {"max_steps": 1, "use_cpu": True},
            }
        ),
        quiet=True,
    )


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(trained, tmp_path / "mine" / "model"))


def code_of(folder: Path, language: str, which: int = 0) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)
    return found[which].replace(PLACE, str(folder))


def executed(code: str) -> tuple[dict[str, Any], str]:
    """Its names and what it prints."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return names, printed.getvalue()


def test_training_leaves_a_card_with_front_matter_objective_and_control_tokens(trained: Path):
    text = (trained / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["anchored", "objective-anchored"],
    }
    control = AnchoredTokenizer.load(trained).control
    tokens = read_record(trained)["tokens"]
    assert "# mine\n" in text
    assert "Objective `anchored`: loss on text; none on prompts, tag keys, tag values." in text
    assert f"{tokens['kept']:,} tokens of training data, {tokens['supervised']:,} with loss" in text
    assert f"| open | `<\\|annotation\\|>` | {control.open} |" in text
    assert f"| close | `<\\|/annotation\\|>` | {control.close} |" in text
    assert "Nothing was measured for this card." in text


def test_a_schema_is_shown_key_by_key_with_closed_vocabularies(trained: Path):
    key = {"description": "what"}
    keys = [
        {**key, "name": "who"},
        {**key, "name": "place", "values": [f"place {i}" for i in range(14)], "many": 2},
        {**key, "name": "form", "values": ["a|b"], "many": True, "anchored": False},
    ]
    record = {**read_record(trained), "schema": {"name": "mine", "keys": keys}}
    text = card("mine", record, AnchoredTokenizer.load(trained))
    twelve = ", ".join(f"place {i}" for i in range(12))
    assert (
        "Schema `mine`:\n\n"
        "| key | values | tags of it | anchored |\n"
        "| --- | --- | --- | --- |\n"
        "| who | open | up to 1 | yes |\n"
        f"| place | {twelve} and 2 more | up to 2 | yes |\n"
        "| form | a\\|b | any number | no |\n"
    ) in text
    assert f'anchored sample {PLACE} --prompt "{CHAT}" -n 8 --pin "place=place 0"\n' in text


def test_the_card_starts_transformers_where_training_does(trained: Path):
    names, printed = executed(code_of(trained, "python").replace("400", "8"))
    tokenizer = AnchoredTokenizer.load(trained)
    segments = conversation_segments(
        [Message("user", CHAT), Message("assistant", "")], tokenizer, OBJECTIVES["anchored"]
    )
    ids = [i for segment in segments for i in segment.ids]
    upto = ids.index(tokenizer.control.open) + 1
    assert names["prompt"] == ids[:upto]
    assert names["out"].shape[1] > upto and printed


def test_the_card_of_a_base_starts_a_document_and_stops_before_the_next_annotation(base: Path):
    code = code_of(base, "python")
    control = AnchoredTokenizer.load(base).control
    assert f"eos_token_id=[{control.eos}, {control.open}]," in code
    assert executed(code.replace("400", "8"))[0]["prompt"] == [control.bos, control.open]


def test_the_card_cuts_the_annotation_by_its_closing_id_with_vllm(
    trained: Path, monkeypatch: pytest.MonkeyPatch
):
    """vLLM itself is another environment's; its interface here is a stand-in."""
    tokenizer = AnchoredTokenizer.load(trained)
    control = tokenizer.control
    written = [
        *tokenizer.encode("place: mill"),
        control.close,
        *tokenizer.encode("There was a mill."),
        control.eos,
    ]
    asked: list[Any] = []

    def generate(prompts: list[Any], sampling: Any) -> list[Any]:
        asked.extend((prompts, vars(sampling)))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(written))])]

    vllm: Any = ModuleType("vllm")
    vllm.LLM = lambda name: SimpleNamespace(generate=generate)
    vllm.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    names, printed = executed(code_of(trained, "python", 1))
    assert printed == "place: mill\nThere was a mill.\n"
    assert asked[0] == [{"prompt_token_ids": names["prompt"]}]
    assert asked[1] == {"n": 8, "temperature": 1.0, "max_tokens": 400}


def example(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


def test_the_example_without_anything_of_ours_runs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["load_and_chat.py", str(trained), CHAT])
    example("load_and_chat").main()
    assert "\n\n" in capsys.readouterr().out


def test_the_example_cuts_the_annotation_from_the_answer(trained: Path):
    tokenizer = AnchoredTokenizer.load(trained)
    tags, answer = tokenizer.encode("place: mill"), tokenizer.encode("There was a mill.")
    written = [*tags, tokenizer.control.close, *answer, tokenizer.control.eos]
    cut = example("load_and_chat").cut
    assert cut(written, tokenizer.hf) == ("place: mill", "There was a mill.")
    assert cut(tags, tokenizer.hf) == ("place: mill", "")


def test_a_model_without_annotations_has_a_card_without_them(trained: Path):
    record = {**read_record(trained), "objective": "standard", "annotated": False}
    text = card("plain", record, AnchoredTokenizer.load(trained))
    assert "## Annotations" not in text and "CLOSE" not in text and "--pin" not in text
    assert "loss on text; none on prompts.\n" in text


def test_the_card_command_keeps_what_was_written_by_hand(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    path = model / "README.md"
    assert main(["card", str(model)]) == 0
    untouched = path.read_text(encoding="utf-8")
    path.write_text(untouched.replace("# mine", "# Mine, at last"), encoding="utf-8")
    assert main(["card", str(model)]) == 2
    assert "README.md: edited by hand; use --overwrite to replace it" in capsys.readouterr().err
    assert "# Mine, at last" in path.read_text(encoding="utf-8")
    assert main(["card", str(model), "--overwrite"]) == 0
    assert path.read_text(encoding="utf-8") == untouched


def test_a_card_of_no_folder_is_refused_without_asking_the_hub(tmp_path: Path):
    with pytest.raises(DataError, match=r"owner/model: no such folder; name the folder of"):
        write(tmp_path / "owner/model")


def test_results_stand_on_the_card_with_adoption_beside_the_gap(model: Path, tmp_path: Path):
    results = {
        "models": {
            "base": {"semantic_entropy": 2.0, "adoption": 0.0},
            "mine": {"semantic_entropy": 1.9, "adoption": 0.9},
        },
        "comparisons": {"mine": {"gap_closed": {"mean": 0.9, "low": 0.8, "high": 1.0}}},
        "config": {"samples": 8, "prompts": 1},
        "seeds": [0],
    }
    write_json(tmp_path / "results.json", results)
    assert main(["card", str(model), "--results", str(tmp_path / "results.json")]) == 0
    text = (model / "README.md").read_text(encoding="utf-8")
    lines = {line.split(" | ")[0]: line for line in text.split("\n") if line.startswith("| ")}
    head = lines["| model"].strip("| ").split(" | ")
    row = lines["| mine"].strip("| ").split(" | ")
    assert dict(zip(head, row, strict=True)) == {
        "model": "mine",
        "semantic_entropy": "1.90",
        "gap_closed": "0.90 [0.80, 1.00]",
        "collapse_reduction": "—",
        "adoption": "0.90",
    }
    assert "Nothing was measured" not in text


@pytest.mark.parametrize("adoption", [0.9, None])
def test_the_hub_lists_what_a_benchmark_found_for_the_model_and_no_gap_without_adoption(
    trained: Path, adoption: float | None
):
    reduction = {"mean": None, "low": 3.0, "lower_bound": True}
    found = {
        "models": {
            "base": {"dissimilarity": 0.6, "adoption": 0.0},
            "sft": {"dissimilarity": 0.3, "adoption": 0.8},
            "mine": {"dissimilarity": 0.5, "adoption": adoption},
        },
        "comparisons": {
            "mine": {"gap_closed": {"mean": 0.7}, "collapse_reduction": reduction, "short_of": []}
        },
        "benchmark": {"metrics": ["dissimilarity"]},
    }
    data = ModelCardData(
        **yaml.safe_load(
            front_matter(read_record(trained), "mine", {"benchmarks": {"stories": found}})
        )
    )
    compared = {"gap_closed": 0.7, "collapse_reduction": "≥ 3.0×", "adoption": 0.9}
    listed = {"dissimilarity": 0.5} | (compared if adoption else {})
    assert data.model_name == "mine" and data.eval_results is not None
    assert {one.metric_type: one.metric_value for one in data.eval_results} == listed
    assert {one.dataset_name for one in data.eval_results} == {"stories"}


def test_results_of_another_kind_are_refused_and_the_card_stays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = (model / "README.md").read_bytes()
    write_json(tmp_path / "results.json", {"results": {}})
    assert main(["card", str(model), "--results", str(tmp_path / "results.json")]) == 2
    assert "has no `models` and `comparisons`" in capsys.readouterr().err
    assert (model / "README.md").read_bytes() == before


def test_origins_go_back_to_the_hub_through_folders_trained_here(tmp_path: Path):
    mid = tmp_path / "mid"
    write_json(mid / "anchored.json", {"base_model": "allenai/OLMo-2-0425-1B"})
    paths = ["hf://owner/tales/en?split=train", "hf://owner/tales", "runs/mine", "hf://a/b"]
    manifest = {
        "config": {"sources": [{"path": path} for path in paths]},
        "tokens": {"kept": 7},
        "objective": "anchored",
        "schema": None,
        "tokenizer": {"fingerprint": "abc"},
    }
    assert origins(manifest, str(mid)) == {
        "objective": "anchored",
        "annotated": True,
        "schema": None,
        "tokenizer": "abc",
        "base_model": "allenai/OLMo-2-0425-1B",
        "datasets": ["owner/tales", "a/b"],
        "tokens": {"kept": 7},
    }
    assert origins(manifest, "owner/base")["base_model"] == "owner/base"
    assert origins(manifest)["base_model"] is None
    assert origins(manifest, str(tmp_path))["base_model"] is None
    assert origins(manifest, "/gone/since/model")["base_model"] is None


def test_a_model_of_another_trainer_with_the_tokenizer_of_an_export_is_one_of_ours(
    trained: Path, tmp_path: Path
):
    """Its weights come from elsewhere; only what `save_pretrained` leaves lies beside them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained / name, folder)
    data = trained.parent / "data"
    assert main(["export", str(data), "--format", "axolotl", "--out", str(tmp_path / "x")]) == 0
    shutil.copytree(tmp_path / "x" / "tokenizer", folder, dirs_exist_ok=True)
    source = load(str(folder))
    assert (source.annotated, source.chat) == (True, "anchored")
    theirs, ours = (AutoTokenizer.from_pretrained(one) for one in (folder, trained))
    assert theirs.chat_template == ours.chat_template  # opens an annotation
    assert main(["card", str(folder)]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "- Trained by another trainer on data that `anchored` prepared.\n" in text
    assert executed(code_of(folder, "python").replace("400", "8"))[1]
    assert plan(PushConfig(model=folder, repo="owner/name")).files


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub(SECRET)) as found:
        yield found


def pushed(model: Path, hub: Hub, token: str) -> subprocess.CompletedProcess[str]:
    """`anchored push` in a process of its own, whose hub is ours."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "anchored", "push", str(model), "--repo", "owner/name"]
    return subprocess.run(
        [*command, "--private"], env=environment, capture_output=True, text=True, check=False
    )


def test_a_push_sends_the_files_of_the_plan_and_nothing_that_is_local(
    model: Path, hub: Hub, tmp_path: Path
):
    done = pushed(model, hub, SECRET)
    assert (done.returncode, done.stdout.split()[-1]) == (0, f"{hub.url}/owner/name/commit/abc")
    assert SECRET not in done.stdout + done.stderr
    assert hub.created[-1]["visibility"] == "private"
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    assert hub.files.keys() == files.keys()
    changed = {name for name, sent in hub.files.items() if sent != files[name]}
    assert changed == {"README.md", "anchored.json"}
    assert hub.files["README.md"].decode() == files["README.md"].decode().replace(
        PLACE, "owner/name"
    )
    record = json.loads(hub.files["anchored.json"])
    assert record["config"]["out"] == "mine"
    assert record["config"]["model"]["init"] == "model"
    assert str(tmp_path.parents[1]).encode() not in b"".join(hub.files.values())


def test_a_hub_that_refuses_gives_one_line_without_the_token(model: Path, hub: Hub):
    wrong = "hf_" + "w" * 34
    done = pushed(model, hub, wrong)
    assert done.returncode == 2
    assert re.fullmatch(r"anchored: error: owner/name: not pushed: .*401.*\n", done.stderr)
    assert wrong not in done.stdout + done.stderr


def test_a_dry_run_lists_what_would_be_sent_and_asks_nobody(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    assert main(["push", str(model), "--repo", "owner/name", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"].keys() == {path.name for path in model.iterdir()}
    assert found["files"]["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert found["bytes"] == sum(found["files"].values())
    assert found["url"] is None
    assert main(["push", str(model), "--repo", "owner/name", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors\n" in shown and "library_name: transformers\n" in shown


def test_a_push_without_a_token_in_the_environment_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    planned = plan(PushConfig(model=model, repo="owner/name"))
    with pytest.raises(ConfigError, match="HF_TOKEN: not set"):
        push(planned)


@pytest.mark.parametrize("repo", ["name", "owner/name/more", "owner/ name", "../name"])
def test_a_name_the_hub_does_not_have_is_refused(model: Path, repo: str):
    with pytest.raises(ConfigError, match="write owner/name"):
        plan(PushConfig(model=model, repo=repo))


def test_a_folder_that_was_not_trained_here_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no anchored\.json"):
        plan(PushConfig(model=tmp_path, repo="owner/name"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, b"") for name in ("training_args.bin", "X.BIN", "old.pt", "modeling.py", "x.npy")),
        *((name, b"") for name in ("x.pyc", "x.h5")),
        ("launch", b"#!/bin/bash\nrm -r /\n"),
    ],
)
def test_pickle_and_code_are_refused(model: Path, name: str, data: bytes):
    (model / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: pickle or code, which runs when it is loaded"):
        plan(PushConfig(model=model, repo="owner/name"))


NO_TEXT = {
    "state.dat": pickle.dumps({"a": 1}),
    "weights.safetensors": pickle.dumps({"a": 1}),
    "tokenizer.model": pickle.dumps({"a": 1}),
    "figure.png": b"\x7fELF\x02\x01\x01\x00",
    "notes.txt": SECRET.encode("utf-16-le"),
    "notes": SECRET.encode("utf-16"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_neither_weights_nor_text_nor_a_picture_is_refused_by_what_it_holds(
    model: Path, name: str
):
    (model / name).write_bytes(NO_TEXT[name])
    with pytest.raises(DataError, match=f"{name}: not safetensors, GGUF, a picture or UTF-8 text"):
        plan(PushConfig(model=model, repo="owner/name"))


def test_pictures_sentencepiece_and_other_weights_are_sent(model: Path):
    (model / "figure.PNG").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    (model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\xff")
    (model / "model.gguf").write_bytes(b"GGUF\x03\x00\xff")
    assert len(plan(PushConfig(model=model, repo="owner/name")).files) == len([*model.iterdir()])


@pytest.mark.parametrize(
    "name", ["notes.log", "metrics.jsonl", "run.yml", "x.ipynb", "README.MD", "x.gguf", "noted"]
)
def test_secrets_are_found_in_any_text_whatever_its_name(model: Path, name: str):
    (model / name).write_text(f"one\ntoken {SECRET}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"{name}: line 2 looks like a Hugging Face token"):
        plan(PushConfig(model=model, repo="owner/name"))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_no_json_object_are_refused_by_name(model: Path, text: str):
    (model / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json: .*; fix or remove it"):
        plan(PushConfig(model=model, repo="owner/name"))


def test_a_model_without_safetensors_is_refused(model: Path):
    (model / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights in safetensors"):
        plan(PushConfig(model=model, repo="owner/name"))


LOOKS = {
    "a Hugging Face token": SECRET,
    "an OpenAI or Anthropic key": "sk-ant-api03-" + "a" * 24,
    "a GitHub token": "ghp_" + "b" * 36,
    "an AWS key": "AKIA" + "C" * 16,
    "a Google key": "AIza" + "d" * 35,
    "a Weights & Biases key": "wandb_api_key: " + "e" * 40,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a password in an address": "https://me:secret@host/path",
}


def test_every_kind_of_secret_is_tried():
    assert LOOKS.keys() == SECRETS.keys()


@pytest.mark.parametrize("kind", LOOKS)
def test_what_looks_like_a_secret_is_refused_and_not_shown(model: Path, kind: str):
    path = model / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "note": LOOKS[kind]}
    write_json(path, config)
    with pytest.raises(DataError, match=f"config.json: line .* looks like {kind}") as refused:
        plan(PushConfig(model=model, repo="owner/name"))
    assert LOOKS[kind] not in str(refused.value)


def test_the_value_of_a_secret_variable_is_found_wherever_it_stands(model: Path):
    (model / "notes.txt").write_text("one\nuses correct-horse-battery\n", encoding="utf-8")
    files = uploads(model, "owner/name")
    environment = {"MY_API_KEY": "correct-horse-battery", "HOME": "notes", "A_KEY": "one"}
    assert list(problems(files, environment)) == [
        "notes.txt: line 2 contains the value of $MY_API_KEY; remove it"
    ]
    assert list(problems(files, {})) == []


def test_local_paths_are_cut_to_their_last_part_in_settings_alone(model: Path):
    record = read_record(model)
    record["config"]["data"]["sources"] = [
        {"path": "/home/me/data/tales.jsonl"},
        {"path": "C:\\Users\\me\\tales.jsonl"},
        {"path": "hf://owner/tales"},
        {"path": "runs/tales"},
    ]
    record["schema"] = {"name": "s", "keys": [{"name": "path", "values": ["/usr"]}]}
    write_json(model / "anchored.json", record)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    write_json(model / "config.json", {**config, "_name_or_path": "/home/me/base"})
    sent = {one.name: json.loads(one.text or "null") for one in uploads(model, "owner/name")
            if one.name in ("anchored.json", "config.json")}  # fmt: skip
    sources = sent["anchored.json"]["config"]["data"]["sources"]
    assert [source["path"] for source in sources] == [
        "tales.jsonl",
        "tales.jsonl",
        "hf://owner/tales",
        "runs/tales",
    ]
    assert sent["anchored.json"]["schema"] == record["schema"]
    assert sent["config.json"]["_name_or_path"] == "base"
    assert read_record(model) == record
