"""Counterfactual SFT examples: what is replaced, what is left, which retelling is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchored.annotation import Annotation
from anchored.data.prepare import PrepareConfig, SourceConfig
from anchored.sampling.engine import Sample
from anchored.segments import Message
from anchored.train import counterfactual
from anchored.train.counterfactual import retell, write_counterfactuals
from anchored.train.replay import ReplayConfig

STORY = Message(
    "assistant",
    "Mara met a fox. The foxglove was no fox, Mara said.",
    Annotation.of({"hero": "Mara", "companion": "fox", "mood": "calm"}),
)


def told(answer: Message, plan: dict[str, Any]) -> tuple[str, dict[str, str]]:
    answer = retell(answer, Annotation.of(plan))
    return answer.content, {tag.key: tag.value for tag in answer.annotation or ()}


def test_values_that_are_spelt_out_are_replaced_in_text_and_annotation() -> None:
    assert told(STORY, {"hero": "Tom", "companion": "dog", "mood": "sad"}) == (
        "Tom met a dog. The foxglove was no dog, Tom said.",
        {"hero": "Tom", "companion": "dog", "mood": "calm"},  # "calm" is nowhere in the text
    )


def test_a_key_that_the_plan_lacks_stays() -> None:
    assert told(STORY, {"hero": "Tom"})[0] == "Tom met a fox. The foxglove was no fox, Tom said."


def test_a_value_that_the_answer_has_already_is_not_put_in() -> None:
    answer = Message("assistant", "Mara met Tom.", Annotation.of({"entity": ["Mara", "Tom"]}))
    tags = retell(answer, Annotation.of({"entity": ["Tom", "Ida"]}))
    assert tags.content == "Ida met Tom."
    assert tags.annotation == Annotation.of({"entity": ["Ida", "Tom"]})


def test_a_value_that_two_keys_share_is_left_alone() -> None:
    tags = {"place": "forest", "topic": "forest"}
    answer = Message("assistant", "The forest slept.", Annotation.of(tags))
    assert retell(answer, Annotation.of({"place": "beach"})) is answer


def test_a_name_at_a_sentence_start_gives_way_to_a_capital() -> None:
    answer = Message("assistant", 'Emma ran. "Emma!" So Emma ran.', Annotation.of({"who": "Emma"}))
    assert told(answer, {"who": "old man"})[0] == 'Old man ran. "Old man!" So old man ran.'


def test_a_value_that_holds_another_is_replaced_as_a_whole() -> None:
    tags = {"companion": "red fox", "animal": "fox"}
    answer = Message("assistant", "A red fox met a fox.", Annotation.of(tags))
    assert told(answer, {"companion": "dog", "animal": "cat"})[0] == "A dog met a cat."


def test_a_sentence_start_keeps_its_capital() -> None:
    answer = Message("assistant", "Girls? Girl met girl.", Annotation.of({"who": "girl"}))
    assert told(answer, {"who": "old king"})[0] == "Girls? Old king met old king."


def test_values_of_a_repeated_key_are_replaced_in_order() -> None:
    tags = Annotation.of({"entity": ["Mara", "Tom", "Ida"]})
    answer = Message("assistant", "Mara, Tom, Ida.", tags)
    assert retell(answer, Annotation.of({"entity": ["Abe", "Bo"]})).content == "Abe, Bo, Ida."


def test_a_pattern_in_a_value_is_plain_text() -> None:
    answer = Message("assistant", "Dr. (M.) came. DrX came.", Annotation.of({"who": "Dr. (M.)"}))
    assert told(answer, {"who": r"\1"})[0] == r"\1 came. DrX came."


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plans are Tom, Ann, Tom, Ann, ...; Ann's retellings are the more natural."""

    class Canned:
        def sample(self, requests: Any, config: Any) -> list[Sample]:
            heroes = [("Tom", "Ann")[i % 2] for i in range(len(requests))]
            return [Sample("", Annotation.of({"hero": hero})) for hero in heroes]

    def losses(model: str, conversations: Any, max_length: int) -> list[float]:
        return [1.0 if "Ann" in turns[-1].content else 2.0 for turns in conversations]

    monkeypatch.setattr(counterfactual, "load_annotation_sampler", lambda *_: Canned())
    monkeypatch.setattr(counterfactual, "_losses", losses)

    def run(rows: list[dict[str, Any]], share: float, **more: Any) -> list[dict[str, Any]]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = PrepareConfig(sources=(SourceConfig(path=str(file), **more),))
        config = ReplayConfig(counterfactual=share, candidates=2)
        (source,) = write_counterfactuals(config, "model", data, tmp_path, seed=0)
        assert source.objective == more.get("objective")
        return [json.loads(line) for line in Path(source.path).read_text().splitlines()]

    return run


def row(number: int, **more: Any) -> dict[str, Any]:
    annotation = [{"key": "hero", "value": "Mara"}]
    return {
        "id": str(number),
        "prompt": "Tell me.",
        "response": f"Mara slept {number} times.",
        "annotation": annotation,
        **more,
    }


def test_the_most_natural_retelling_is_kept(run: Any) -> None:
    assert run([row(7)], share=1.0) == [
        {
            "id": "7",
            "messages": [
                {"role": "user", "content": "Tell me."},
                {
                    "role": "assistant",
                    "content": "Ann slept 7 times.",
                    "annotation": [{"key": "hero", "value": "Ann"}],
                },
            ],
        }
    ]


def test_an_unchanged_answer_never_wins(run: Any) -> None:
    told = run([row(7, response="Ann slept.", annotation=[{"key": "hero", "value": "Ann"}])], 1.0)
    assert told[0]["messages"][1]["content"] == "Tom slept."


def test_the_share_is_of_rows_and_the_others_are_as_they_were(run: Any) -> None:
    rows = [row(i) for i in range(400)]
    found = run(rows, share=0.25)
    retold = [row for row in found if "messages" in row]
    assert 70 <= len(retold) <= 130
    assert [row for row in found if "messages" not in row] == [
        row for row in rows if row["id"] not in {row["id"] for row in retold}
    ]


def test_an_answer_that_spells_no_value_is_as_it_was(run: Any) -> None:
    rows = [row(0, response="Nobody slept."), row(1, annotation=None)]
    assert run(rows, share=1.0) == rows


def test_of_a_conversation_the_last_answer_is_retold(run: Any) -> None:
    turns = [("user", "Hi."), ("assistant", "Mara."), ("user", "More."), ("assistant", "Mara!")]
    messages = [{"role": role, "content": content} for role, content in turns]
    found = run([{"messages": messages, "annotation": row(0)["annotation"]}], share=1.0)
    assert [turn["content"] for turn in found[0]["messages"]] == ["Hi.", "Mara.", "More.", "Ann!"]


def test_a_document_behind_a_prompt_is_an_answer_too(run: Any) -> None:
    document = {"id": "0", "prompt": "Tell.", "text": "Mara.", "annotation": row(0)["annotation"]}
    assert run([document], share=1.0)[0]["messages"][1]["content"] == "Ann."


def test_pretraining_documents_beside_the_sft_data_are_left_alone(tmp_path: Path) -> None:
    source = SourceConfig(path="documents.jsonl", objective="annotated")
    data = PrepareConfig(sources=(source,))
    config = ReplayConfig(counterfactual=1.0)
    assert write_counterfactuals(config, "model", data, tmp_path, seed=0) == (source,)
