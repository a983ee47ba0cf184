"""`anchored annotate --cluster ray`: two local workers, killed and resumed, against one process."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from anchored.annotate import corpus, run, source
from anchored.cli import main
from anchored.errors import ConfigError
from anchored.journal import Journal
from conftest import ROOT

pytest.importorskip("aiohttp")
pytest.importorskip("ray", reason="the extra `cluster` is not installed")

from fake_server import Answer, Seen, serving

KEY = "sk-very-secret-4711"
QUIET = Console(quiet=True)
CHUNK = "The keeper of light {} walked to the harbour before dawn and counted the boats. "
NAMES, PLACES = ("Mara", "Tobin", "Ilse", "Ravi"), ("forest", "castle", "kitchen")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNOTATE_KEY", KEY)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine alone, which runs inside then join."""
    from anchored.annotate.cluster import joined

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("ANNOTATE_KEY", KEY)  # its processes have the environment of now
        with joined(2, most=2):
            yield


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def document(number: int) -> dict[str, Any]:
    texts = (CHUNK.format(f"{number}-{i}") * 3 for i in range(3))
    return {"id": f"d{number}", "text": "\n\n".join(texts)}


def tale(number: int) -> dict[str, Any]:
    name, place = NAMES[number % 4], PLACES[number % 3]
    text = f"One night {name} went to the {place}. There {name} found ring {number}, and was glad."
    return {"id": f"t{number}", "kind": "tale", "text": text}


def by_light(seen: Seen) -> Answer:
    light = re.findall(r"keeper of light (\S+)", seen.body["messages"][0]["content"])[-1]
    return Answer(f"topic: light {light}\nauthor: nobody\n", delay=0.02)


def settings(source: Path, out: Path, url: str, **fields: Any) -> corpus.EndpointAnnotateConfig:
    endpoint = {
        "url": url, "model": "m", "key_env": "ANNOTATE_KEY", "concurrency": 2,
        **fields.pop("endpoint", {}),
    }  # fmt: skip
    given = {"source": str(source), "out": out, "endpoint": endpoint, "rows_per_shard": 4, **fields}
    return corpus.EndpointAnnotateConfig.model_validate(given)


def kill_a_worker() -> None:
    """One of the Ray workers below this process that settle shards."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}
    workers = [int(pid) for pid, _, name in rows if name.startswith("ray::MapWorker")]
    mine = [pid for pid in workers if parents.get(parents[pid]) == os.getpid()]
    os.kill(mine[0], signal.SIGKILL)


def left(out: Path) -> dict[str, Any]:
    """What a run left: files as bytes, but for versions, the order of the journal and workers."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    found["manifest.json"] = json.loads(found["manifest.json"]) | {"versions": None}
    chosen = {"out": None, "cluster": None, "workers": None}
    found["config.yaml"] = yaml.safe_load(found["config.yaml"]) | chosen
    if "journal.jsonl" in found:
        found["journal.jsonl"] = sorted(found["journal.jsonl"].splitlines())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_with_a_worker_killed_the_shards_are_those_of_one_process(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [tale(number) for number in range(240)])
    fields = {"source": str(rows), "rows_per_shard": 2, "workers": 1}
    run.run(run.AnnotateConfig.model_validate({**fields, "out": tmp_path / "one"}), QUIET)
    on_cluster = {**fields, "out": tmp_path / "many", "workers": 2, "cluster": "ray"}
    shards_at_the_kill: list[int] = []

    def kill_after_the_first_shard() -> None:
        while not (done := len(list((tmp_path / "many").glob("shard-*.jsonl")))):
            time.sleep(0.005)
        kill_a_worker()
        shards_at_the_kill.append(done)

    killer = threading.Thread(target=kill_after_the_first_shard, daemon=True)
    killer.start()
    run.run(run.AnnotateConfig.model_validate(on_cluster), QUIET)
    killer.join(1)
    assert 0 < shards_at_the_kill[0] < 120
    assert left(tmp_path / "many") == left(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_with_the_run_killed_and_then_a_worker_nothing_is_lost_doubled_or_told(
    tmp_path: Path,
) -> None:
    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(40)])
    victims: list[tuple[int, Callable[[], None]]] = []

    def script(seen: Seen) -> Answer:
        if victims and len(server.seen) >= victims[0][0]:
            victims.pop(0)[1]()
        return by_light(seen)

    with serving(script) as server:
        corpus.run(settings(rows, tmp_path / "one", server.url), QUIET)
        assert len(server.seen) == 120
        on_cluster = settings(rows, tmp_path / "many", server.url, cluster="ray", workers=2)
        (tmp_path / "run.json").write_text(on_cluster.model_dump_json())
        code = (
            "import sys; from anchored.annotate import corpus as m;"
            "m.run(m.EndpointAnnotateConfig.model_validate_json(open(sys.argv[1]).read()))"
        )
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        run = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run.json"], env=environment)
        victims.append((150, run.kill))
        assert run.wait() == -signal.SIGKILL
        assert not (tmp_path / "many" / "manifest.json").exists()
        victims.append((len(server.seen) + 20, kill_a_worker))
        corpus.run(on_cluster, QUIET)
        assert not victims
    assert left(tmp_path / "many") == left(tmp_path / "one")
    asked = Counter(seen.prompt for seen in server.seen[120:])
    assert len(asked) == 120
    assert sum(asked.values()) <= 120 + 3 * 2 * 2  # in flight: two workers, two requests each
    assert {seen.headers["Authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    assert not [path for path in ray_files() if KEY.encode() in path.read_bytes()]


def ray_files() -> list[Path]:
    """What the cluster has written: logs, and what it knows of the job."""
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    return [path for path in folder.rglob("*") if path.is_file()]
