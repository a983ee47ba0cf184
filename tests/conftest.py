"""Fixtures for all tests; the environment is set before torch or datasets is imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# More than one thread in each pytest-xdist worker would fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="anchored-datasets-")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real text: `ANCHORED_DATA`, by default `../shared/data`."""
    path = Path(os.environ.get("ANCHORED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set ANCHORED_DATA")
    return path
