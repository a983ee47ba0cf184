"""YAML in, validated configuration out; every fault names file, field, value and the way out."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from anchored import __version__
from anchored.config import Config, load_config, read_yaml, to_yaml, validated, versions
from anchored.errors import ConfigError


class Inner(Config):
    rate: float = Field(default=1e-3, gt=0)
    name: Literal["cosine", "linear"] = "cosine"


class Run(Config):
    out: Path
    steps: int = 10
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    trainer: dict[str, object] = {}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_overrides_reach_nested_fields_list_items_and_new_mappings(write):
    path = write("out: x\nitems: [{rate: 1.0}, {rate: 2.0}]\n")
    config = load_config(
        Run, path, ["steps=3", "inner.rate=1e-4", "items.1.name=linear", "trainer.a.b=[1, two]"]
    )
    assert config == Run(
        out=Path("x"),
        steps=3,
        inner=Inner(rate=1e-4),
        items=(Inner(rate=1.0), Inner(rate=2.0, name="linear")),
        trainer={"a": {"b": [1, "two"]}},
    )


def test_without_a_file_the_overrides_are_the_configuration():
    assert load_config(Run, None, ["out=x"]) == Run(out=Path("x"))
    with pytest.raises(ConfigError, match=r"^command line: out: missing; add `out: ...`$"):
        load_config(Run, None)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", ".1e-3", "1.e-4", "1.0e-4"])
def test_scientific_notation_is_a_number_where_pyyaml_alone_reads_some_of_it_as_text(write, text):
    assert read_yaml(write(f"a: {text}")) == {"a": 1e-4}


def test_text_that_looks_like_a_number_survives_the_round_trip(write):
    config = Run(out=Path("1e-4"), trainer={"name": "1e5", "flag": "no", "rate": 1e-5})
    assert load_config(Run, write(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\nstepz: 3", "stepz: unknown field; did you mean 'steps'?"),
        ("out: x\ninner: {rat: 3}", "inner.rat: unknown field; did you mean 'rate'?"),
        ("out: x\nitems: [{nam: a}]", "items.0.nam: unknown field; did you mean 'name'?"),
        ("out: x\ninner: {zzz: 3}", "inner.zzz: unknown field; the fields are name, rate"),
        ("steps: 3", "out: missing; add `out: ...`"),
        ("", "out: missing; add `out: ...`"),
        ("out: x\nsteps: lots", "steps: 'lots': input should be a valid integer, unable to parse"),
        ("out: x\ninner: {rate: -1}", "inner.rate: -1: input should be greater than 0"),
        ("out: x\nsteps: a\nitems: 3", "items: 3: input should be a valid tuple (and 1 more)"),
        ("[1, 2]", "holds a list; write `field: value` lines"),
        ("word", "holds the single value 'word'; write `field: value` lines"),
    ],
)
def test_a_fault_names_the_field_the_value_and_the_way_out(write, text, message):
    found = fault(write(text))
    if "and 1 more" in message:
        assert found.endswith("(and 1 more)")
    else:
        assert found.startswith(message)


class Either(Config):
    data: Path | Inner
    layers: Literal["all"] | tuple[str, ...] = "all"
    first: int = 0
    last: int = 9

    @model_validator(mode="after")
    def _in_order(self) -> Either:
        if self.last < self.first:
            raise ValueError("First comes before last; change one")
        return self


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"rate": -1}}, "test: data.rate: -1: input should be greater than 0"),
        ({"data": {"rat": 1}}, "test: data.rat: unknown field; did you mean 'rate'?"),
        ({"data": {"rate": "x"}, "last": "y"}, "test: data.rate: 'x': input should be a valid nu"),
        ({"data": 3}, "test: data: 3: input is not a valid path for"),
        ({"data": "x", "layers": 3}, "test: layers: 3: input should be 'all' (and 1 more)"),
        ({"data": "x", "layers": ["a", 3]}, "test: layers.1: 3: input should be a valid string"),
        ({"data": "x", "first": 10}, "test: first comes before last; change one"),
    ],
)
def test_a_fault_in_one_of_several_kinds_of_value_is_told_of_that_kind_alone(given, message):
    with pytest.raises(ConfigError) as caught:
        validated(Either, given, "test")
    assert str(caught.value).startswith(message)


def test_a_field_given_twice_is_refused_not_silently_overwritten(write):
    assert "key 'steps' is given twice" in fault(write("out: x\nsteps: 1\nsteps: 2\n"))


def test_unreadable_files_are_named(tmp_path, write):
    assert fault(tmp_path / "none.yaml") == "no such file"
    assert fault(tmp_path) == "no such file"
    assert fault(write("a: [1,")).startswith("not readable as YAML: ")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"out: caf\xe9")
    assert fault(latin).startswith("not readable as YAML: 'utf-8' codec can't decode byte 0xe9")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "override 'steps': write field=value, or outer.inner=value"),
        ("=3", "override '=3': write field=value, or outer.inner=value"),
        ("a..b=3", "override 'a..b=3': write field=value, or outer.inner=value"),
        ("steps=[1,", "override 'steps=[1,': the value is not YAML; quote it"),
        ("out.a=1", "override 'out.a=1': 'a' lies inside 'x': no fields there"),
        ("items.7.rate=1", "override 'items.7.rate=1': no item 7, the list has 1"),
        ("items.rate=1", "override 'items.rate=1': no item rate, the list has 1"),
    ],
)
def test_an_override_that_cannot_apply_is_quoted(write, override, message):
    assert fault(write("out: x\nitems: [{}]"), override) == message


def test_configurations_cannot_be_changed_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        Run(out=Path("x")).steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_versions_name_the_libraries_and_the_commit_of_a_checkout():
    found = versions()
    assert {"anchored", "python", "torch", "transformers", "datasets", "tokenizers"} <= set(found)
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(git, capture_output=True, text=True, check=False)
    expected = f"{__version__}+g{answer.stdout.strip()}" if answer.returncode == 0 else __version__
    assert found["anchored"].removesuffix(".dirty") == expected
