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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from anchored.annotation import Schema
from anchored.annotators.by_endpoint import EndpointAnnotator, Request
from anchored.annotators.offline import OfflineAnnotator
from anchored.annotators.prompts import Prompt
from anchored.cli import main
from anchored.corpus import endpoint_run, offline_run
from anchored.data import corpus_source
from anchored.errors import ConfigError, Incomplete
from anchored.journal import Journal

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
def cluster() -> Iterator[str]:
    """The address of a cluster on this machine alone; runs of this process are in it already."""
    import ray

    from anchored.corpus.cluster import joined

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("ANNOTATE_KEY", KEY)  # its processes have the environment of now
        patch.setenv("RAY_worker_niceness", "0")  # by default tests beside these starve workers
        with joined(2, most=2):
            yield ray.get_runtime_context().gcs_address


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


def settings(
    source: Path, out: Path, url: str, **fields: Any
) -> endpoint_run.EndpointAnnotateConfig:
    endpoint = {
        "url": url, "model": "m", "key_env": "ANNOTATE_KEY", "concurrency": 2,
        **fields.pop("endpoint", {}),
    }  # fmt: skip
    given = {"source": str(source), "out": out, "endpoint": endpoint, "rows_per_shard": 4, **fields}
    return endpoint_run.EndpointAnnotateConfig.model_validate(given)


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
@pytest.mark.timeout(600)  # Ray starts a dozen processes, each of which waits for a core
@pytest.mark.usefixtures("cluster")
def test_with_a_worker_killed_the_shards_are_those_of_one_process(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [tale(number) for number in range(240)])
    fields = {"source": str(rows), "rows_per_shard": 2, "workers": 1}
    offline_run.run(
        offline_run.AnnotateConfig.model_validate({**fields, "out": tmp_path / "one"}), QUIET
    )
    on_cluster = {**fields, "out": tmp_path / "many", "workers": 2, "cluster": "ray"}
    shards_at_the_kill: list[int] = []

    def kill_after_the_first_shard() -> None:
        while not (done := len(list((tmp_path / "many").glob("shard-*.jsonl")))):
            time.sleep(0.005)
        # As a worker leaves it that dies while it writes, which the one killed here may not do.
        (tmp_path / "many" / ".shard-00119.jsonl.1.partial").write_text("{", encoding="utf-8")
        kill_a_worker()
        shards_at_the_kill.append(done)

    killer = threading.Thread(target=kill_after_the_first_shard, daemon=True)
    killer.start()
    offline_run.run(offline_run.AnnotateConfig.model_validate(on_cluster), QUIET)
    killer.join(1)
    assert 0 < shards_at_the_kill[0] < 120
    assert left(tmp_path / "many") == left(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray starts a dozen processes, each of which waits for a core
def test_with_the_run_killed_and_then_a_worker_nothing_is_lost_doubled_or_told(
    tmp_path: Path, cluster: str
) -> None:
    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(40)])
    victims: list[tuple[int, Callable[[], None]]] = []

    def script(seen: Seen) -> Answer:
        if victims and len(server.seen) >= victims[0][0]:
            victims.pop(0)[1]()
        return by_light(seen)

    with serving(script) as server:
        endpoint_run.run(settings(rows, tmp_path / "one", server.url), QUIET)
        assert len(server.seen) == 120
        on_cluster = settings(rows, tmp_path / "many", server.url, cluster="ray", workers=2)
        (tmp_path / "run.json").write_text(on_cluster.model_dump_json())
        code = (
            "import sys; from anchored.corpus import endpoint_run as m;"
            "m.run(m.EndpointAnnotateConfig.model_validate_json(open(sys.argv[1]).read()))"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "run.json")]
        run = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster})
        victims.append((150, run.kill))
        assert run.wait() == -signal.SIGKILL
        assert not (tmp_path / "many" / "manifest.json").exists()
        victims.append((len(server.seen) + 20, kill_a_worker))
        endpoint_run.run(on_cluster, QUIET)
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


class Here:
    """A cluster of this process, with all that Ray does to what goes through it."""

    workers = 2

    def spread(self, shards: Callable[[], Iterator[Any]], make: Callable[[], Any]) -> Iterator[Any]:
        settle = pickle.loads(pickle.dumps(make))()
        for shard in pickle.loads(pickle.dumps(shards))():
            yield pickle.loads(pickle.dumps(settle(*pickle.loads(pickle.dumps(shard)))))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    from anchored.corpus import cluster

    monkeypatch.setattr(cluster, "joined", lambda *_, **__: nullcontext(Here()))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("context_tags", [0, 2])
def test_answers_of_an_earlier_run_are_not_asked_for_again(
    tmp_path: Path, context_tags: int
) -> None:
    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(9)])
    with serving(by_light) as server:
        alone = settings(rows, tmp_path / "out", server.url, context_tags=context_tags)
        endpoint_run.run(alone, QUIET)
        straight = left(alone.out)
        (alone.out / "shard-00001.parquet").unlink()
        journal = (alone.out / "journal.jsonl").read_bytes().splitlines(keepends=True)
        kept, in_work, lost = journal[:21], journal[21:23], journal[23:]
        (alone.out / "journal.jsonl").write_bytes(b"".join(kept))
        (alone.out / "journal-of-shard-00001.jsonl").write_bytes(b"".join(in_work))
        endpoint_run.run(alone.model_copy(update={"cluster": "ray"}), QUIET)
        assert len(server.seen) == 27 + len(lost)
    assert left(alone.out) == straight


@pytest.mark.usefixtures("here")
def test_what_a_stopped_run_left_with_its_shards_counts(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(5)])
    with serving(by_light) as server:
        chosen = settings(rows, tmp_path / "out", server.url, cluster="ray")
        endpoint_run.run(chosen, QUIET)
        straight = left(chosen.out)
        (chosen.out / "journal.jsonl").rename(chosen.out / "journal-of-shard-00000.jsonl")
        endpoint_run.run(chosen, QUIET)
        assert len(server.seen) == 15
    assert left(chosen.out) == straight


@pytest.mark.usefixtures("here")
def test_a_shard_annotated_once_more_leaves_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = Here.spread

    def spread_with_a_ghost(self: Here, shards: Any, make: Any) -> Iterator[Any]:
        yield from spread(self, shards, make)
        lines = (tmp_path / "many" / "journal.jsonl").read_bytes()
        (tmp_path / "many" / "journal-of-shard-00001.jsonl").write_bytes(lines)

    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(9)])
    with serving(by_light) as server:
        endpoint_run.run(settings(rows, tmp_path / "one", server.url), QUIET)
        monkeypatch.setattr(Here, "spread", spread_with_a_ghost)
        endpoint_run.run(settings(rows, tmp_path / "many", server.url, cluster="ray"), QUIET)
    assert left(tmp_path / "many") == left(tmp_path / "one")


@pytest.mark.usefixtures("here")
def test_failures_of_all_workers_together_stop_a_run(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [document(number) for number in range(12)])
    with serving(lambda seen: Answer("no tags")) as server:
        chosen = settings(rows, tmp_path / "out", server.url, cluster="ray", max_failed=20)
        with pytest.raises(Incomplete, match="24 chunks failed, more than max_failed, the first"):
            endpoint_run.run(chosen, QUIET)
        assert len(server.seen) == 2 * 24


def test_workers_divide_rates_and_are_told_no_key(tmp_path: Path) -> None:
    from anchored.corpus.endpoint_workers import Job

    rates = {"requests_per_minute": 100, "tokens_per_minute": 3}
    config = settings(tmp_path, tmp_path, "http://localhost:1/v1", endpoint=rates)
    prompts = (Prompt("a-v1", "tag"), Prompt("b-v1", "tag"))
    annotator = EndpointAnnotator(config.endpoint, Schema.load("general"), prompts)
    job = Job.shared(tmp_path, annotator, 0, None, workers=8)
    told = job.annotator.config
    assert (told.requests_per_minute, told.tokens_per_minute, told.concurrency) == (12, 1, 2)
    request = Request("a text")
    assert job.annotator.key(request) == annotator.key(request)
    assert job.keyed and KEY.encode() not in pickle.dumps(job)


def test_a_machine_without_the_key_or_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchored.corpus.cluster import check_shared
    from anchored.corpus.endpoint_workers import Job, Worker

    with pytest.raises(ConfigError, match=r"out: .* is not there; name a folder that all machines"):
        check_shared(tmp_path)
    config = settings(tmp_path, tmp_path, "http://localhost:1/v1")
    prompts = (Prompt("a-v1", "tag"), Prompt("b-v1", "tag"))
    annotator = EndpointAnnotator(config.endpoint, Schema.load("general"), prompts)
    job = Job.shared(tmp_path, annotator, 0, None, workers=1)
    (tmp_path / "config.yaml").touch()
    monkeypatch.delenv("ANNOTATE_KEY")
    with pytest.raises(ConfigError, match="ANNOTATE_KEY is not set; set it before `ray st"):
        Worker(job)


def test_a_machine_with_other_packages_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [tale(1)])
    offline_run.run(
        offline_run.AnnotateConfig.model_validate({"source": str(rows), "out": tmp_path / "o"}),
        QUIET,
    )
    annotator = OfflineAnnotator.load(
        Schema.load("general"), tmp_path / "o" / offline_run.CALIBRATION
    )
    other = annotator.name.replace("vaderSentiment", "vaderSentiment 0.")
    assert offline_run.ClusterWorker(tmp_path / "o", annotator.again(), annotator.name)(0, ()) == 0
    with pytest.raises(ConfigError, match=r"has offline-1 .*, not offline-1 .*; install the same"):
        offline_run.ClusterWorker(tmp_path / "o", annotator.again(), other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "cluster: annotates the whole corpus; leave out --shard"),
        (["serve.model=m"], "serve: one server would serve all machines; start the servers first"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    rows = write(tmp_path / "in.jsonl", [document(1)])
    command = ["annotate", str(rows), "--out", str(tmp_path / "out"), "--annotator", "endpoint"]
    server = ["--url", "http://localhost:1", "--model", "m", "--cluster", "ray"]
    assert main([*command, *server, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("annotator", ["offline", "endpoint"])
def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    annotator: str,
) -> None:
    monkeypatch.setattr(corpus_source, "find_spec", lambda name: None)
    rows = write(tmp_path / "in.jsonl", [document(1)])
    command = ["annotate", str(rows), "--out", str(tmp_path / "out"), "--annotator", annotator]
    fields = ["endpoint.url=http://localhost:1", "endpoint.model=m"]
    assert main([*command, "--cluster", "ray", *(fields if annotator == "endpoint" else [])]) == 2
    error = capsys.readouterr().err
    assert error == (
        "anchored: error: cluster: ray is not installed; pip install 'anchored[cluster]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere"])
def test_an_address_without_a_cluster_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    from anchored.corpus.cluster import joined

    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have one
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = f"RAY_ADDRESS: {address}: no Ray cluster answers there"
    with pytest.raises(ConfigError, match=message), joined(1, most=1):
        pass


def test_workers_of_an_endpoint_are_those_of_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: works only with a cluster; add cluster: ray"):
        settings(tmp_path, tmp_path, "http://localhost:1", workers=2)


def test_a_journal_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.put("a", {"value": 1})
        with Journal(tmp_path / "journal.jsonl", read_only=True) as reader:
            journal.put("b", {"value": 2})
            assert (reader.get("a"), reader.get("b")) == ({"value": 1}, None)
        assert [*journal.items()] == [("a", {"value": 1}), ("b", {"value": 2})]
    (tmp_path / "half.jsonl").write_bytes(b'{"key": "a"}\n{"key": "b"')
    with Journal(tmp_path / "half.jsonl", read_only=True) as reader:
        assert len(reader) == 1
    assert (tmp_path / "half.jsonl").read_bytes() == b'{"key": "a"}\n{"key": "b"'
