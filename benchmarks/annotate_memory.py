"""Measure the peak memory of annotation and of preparing its output, as the corpus grows.

    python benchmarks/annotate_memory.py [--chunks 10000 100000 1000000] [--json FILE]

Each stage runs in a separate process; its peak resident size is compared with the size after its
imports. `offline` annotates by rules; `endpoint` runs everything except HTTP, which is replaced by
an immediate answer; `again` finds every answer in the journal and writes all shards again;
`prepare` joins the annotations with their texts. All chunks of a corpus are different. A key has at
most `VALUES` values, because the statistics of tags hold every value once.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from anchored.config import versions
from anchored.corpus.endpoint_run import EndpointAnnotateConfig
from anchored.corpus.endpoint_run import run as annotate_by_endpoint
from anchored.corpus.offline_run import AnnotateConfig
from anchored.corpus.offline_run import run as annotate_offline
from anchored.data.prepare import PrepareConfig, prepare
from anchored.endpoint import Endpoint
from anchored.tokenizer import AnchoredTokenizer

SIZES = (10_000, 100_000, 1_000_000)
CHUNKS = 10  # per document
VALUES = 1_000
PEOPLE = ("keeper", "sailor", "baker", "miller", "teacher", "painter", "farmer", "smith")
PLACES = ("harbour", "forest", "castle", "market", "island", "mountain", "river", "desert")
CHUNK = "The {person} walked to the {place} before dawn, counted {number} boats and wrote it down."
QUIET = Console(quiet=True)


def main() -> None:
    """Run every stage for every size and print each when it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(measured(options.stage[0], Path(options.stage[1]))))
        return
    results = {str(size): all_stages(size) for size in options.chunks}
    if options.json:
        found = {"peak": results, "versions": versions()}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def all_stages(chunks: int) -> dict[str, Any]:
    """Return each stage's figures for a corpus of so many chunks, in the order of dependence."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", chunks)
        found = {}
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            print(f"{chunks:,} chunks, {stage}: {json.dumps(found[stage])}", flush=True)
        return found


def write_corpus(path: Path, chunks: int) -> None:
    """Write documents of `CHUNKS` paragraphs, no two of which are equal."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, chunks, CHUNKS):
            texts = (
                CHUNK.format(person=rng.choice(PEOPLE), place=rng.choice(PLACES), number=number)
                for number in range(start, start + CHUNKS)
            )
            file.write(json.dumps({"id": str(start), "text": "\n\n".join(texts)}) + "\n")


def measured(stage: str, folder: Path) -> dict[str, float]:
    """Run one stage; return resident MiB before it and at its peak, and its processor time."""
    before, cpu = _resident_mib("VmRSS"), _cpu()
    STAGES[stage](folder)
    return {
        "before_mib": round(before, 1),
        "peak_mib": round(_resident_mib("VmHWM"), 1),
        "cpu_seconds": round(_cpu() - cpu, 1),
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_mib(field: str) -> float:
    """Return the MiB of this process; `ru_maxrss` would count the parent it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _cut(folder: Path, out: str) -> dict[str, Any]:
    return {
        "source": str(folder / "corpus.jsonl"),
        "out": folder / out,
        "min_chunk_chars": 20,
        "max_chunk_chars": 120,
    }


def offline(folder: Path) -> None:
    """Run `anchored annotate` in one process."""
    fields = {**_cut(folder, "offline"), "workers": 1, "sample_chunks": 2_000}
    annotate_offline(AnnotateConfig.model_validate(fields), QUIET)


def endpoint(folder: Path) -> None:
    """Run `anchored annotate --annotator endpoint`, with answers made in the process."""
    answered = 0

    async def send(self: Endpoint, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        nonlocal answered
        answered += 1
        number = answered % VALUES
        text = f"topic: boats {number}\ndomain: literature\nentity: keeper {number}\ntime: dawn"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return read({"choices": [choice], "usage": {"prompt_tokens": 500, "completion_tokens": 30}})

    Endpoint._send = send  # pyright: ignore
    with socket.create_server(("127.0.0.1", 0)) as listening:
        served = {"url": f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "model": "m"}
        fields = {**_cut(folder, "annotations"), "endpoint": served}
        annotate_by_endpoint(EndpointAnnotateConfig.model_validate(fields), QUIET)


def again(folder: Path) -> None:
    """Run `endpoint` with every answer in the journal and no shard written."""
    for shard in (folder / "annotations").glob("shard-*.parquet"):
        shard.unlink()
    endpoint(folder)


def prepare_beside(folder: Path) -> None:
    """Run `anchored prepare` on the corpus with its stand-off annotations."""
    texts = [CHUNK.format(person=person, place=place, number=n)
             for n, (person, place) in enumerate(zip(PEOPLE, PLACES, strict=True))]  # fmt: skip
    AnchoredTokenizer.train(texts * 50, 500).save(folder / "tokenizer")
    source = {"path": str(folder / "corpus.jsonl"), "annotations": str(folder / "annotations")}
    fields = {"sources": [source], "tokenizer": str(folder / "tokenizer"), "max_length": 512}
    prepare(
        PrepareConfig.model_validate({**fields, "out": folder / "data", "objective": "annotated"}),
        QUIET,
    )


STAGES: dict[str, Callable[[Path], None]] = {
    "endpoint": endpoint,
    "again": again,
    "prepare": prepare_beside,
    "offline": offline,
}


if __name__ == "__main__":
    main()
