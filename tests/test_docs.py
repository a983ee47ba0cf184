"""What the README and the documentation show is what the code takes."""

from __future__ import annotations

import doctest
import pkgutil
import re
from pathlib import Path

import pytest

import anchored
from anchored.annotation import Schema
from anchored.config import read_yaml
from conftest import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
YAML = re.compile(r"```yaml(?: title=\"(\w+)\.yaml\")?\n(.*?)```", re.DOTALL)
SHOWN = [
    pytest.param(name, text, id=f"{page.name}-{name or 'schema'}")
    for page in PAGES
    for name, text in YAML.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_the_documentation_give_what_they_show(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


@pytest.mark.parametrize("page", ["reference", "internals"])
def test_what_a_page_documents_is_there(page: str):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_reference_documents_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert {f"anchored.{name}" for name in anchored.__all__} < set(re.findall(r"::: (\S+)", text))


@pytest.mark.parametrize(("name", "text"), SHOWN)
def test_configurations_shown_are_valid(tmp_path: Path, name: str, text: str):
    from anchored.benchmark.settings import EvaluateConfig
    from anchored.data.prepare import PrepareConfig
    from anchored.preferences.build import PreferencesConfig
    from anchored.train.config import PretrainConfig, SFTConfig

    path = tmp_path / "shown.yaml"
    path.write_text(text, encoding="utf-8")
    classes = {
        "prepare": PrepareConfig,
        "preferences": PreferencesConfig,
        "pretrain": PretrainConfig,
        "sft": SFTConfig,
        "evaluate": EvaluateConfig,
        "": Schema,
    }
    classes[name].model_validate(read_yaml(path))
