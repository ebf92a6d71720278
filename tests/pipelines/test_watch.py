"""Trackers: what they are told; whatever one does (raise, hang, fill a disk), the run goes on and says so once."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from miner.artifacts.errors import BadInput
from miner.artifacts.store import LocalStore
from pipelines import loop
from pipelines.cli import main
from pipelines.executors.inline import InlineExecutor
from pipelines.progress import Lines
from pipelines.settings import Settings
from pipelines.trackers import (
    About,
    Event,
    Observer,
    TrackerFailed,
    WatchConfig,
    json_lines,
    prometheus,
    tensorboard,
    webhook,
)
from pipelines.trackers._watch import Watch, open_watch
from tests.pipelines.builders import raw_settings, write_toml
from trainer import registry

SECRET = "s3cr3t-of-the-test"
ONE_ROUND = {"run": {"rounds": 1, "first_epochs": 2, "epochs": 2, "seed": 3}}


def pipelines(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def about(folder: Path | None = None) -> About:
    return About("/runs/one", folder, {"run.seed": "3", "mine.k": "7"})


def event(kind: Any, **more: Any) -> Event:
    return Event(kind, "/runs/one", 1.8e9, **more)


class Kept:
    """Keeps what it is told, but for the steps at which it fails."""

    def __init__(self, *failures: int) -> None:
        self.failures, self.events, self.closed = failures, list[Event](), False

    def __call__(self, event: Event) -> None:
        if event.step in self.failures:
            raise ValueError(f"a library's own text with {SECRET}")
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


def told(connect: Callable[[], Observer], events: int = 5) -> list[str]:
    """What is said while one tracker is told of some events."""
    said: list[str] = []
    watch = Watch(said.append)
    watch.add("one", connect)
    for number in range(events):
        watch.tell(event("epoch", step=number))
    watch.close()
    return said


def test_every_event_arrives_in_order() -> None:
    kept = Kept()
    assert told(lambda: kept, 900) == []
    assert [e.step for e in kept.events] == list(range(900))
    assert kept.closed


def test_a_tracker_that_fails_is_said_once_and_after_three_times_let_go() -> None:
    kept = Kept(0, 1, 3, 4)
    assert told(lambda: kept, 6) == ["one: failed with ValueError; the run goes on"]
    assert [e.step for e in kept.events] == [2, 5]
    kept = Kept(1, 2, 3)
    said = told(lambda: kept)
    assert [line.partition(";")[0] for line in said] == [
        "one: failed with ValueError",
        "one: failed 3 times, one after the other",
    ]
    assert [e.step for e in kept.events] == [0]
    assert kept.closed
    assert SECRET not in " ".join(said)


def test_one_that_cannot_connect_is_done_without() -> None:
    def refused() -> Observer:
        raise TrackerFailed("nobody there")

    assert told(refused) == ["one: nobody there; the run goes on without it"]


def test_nothing_is_asked_of_a_tracker_when_nothing_happens() -> None:
    def never() -> Observer:
        raise AssertionError

    assert told(never, events=0) == []


def test_a_hanging_tracker_is_left_behind_and_its_queue_is_bounded() -> None:
    """Two of them at once, so that their times to close do not add up; nothing here waits for the lock."""
    said: list[str] = []
    lock = threading.Lock()
    kept = Kept()

    class Hangs(Kept):
        def __call__(self, event: Event) -> None:
            with lock:
                super().__call__(event)

    hangs = Hangs()
    with lock:
        watch = Watch(said.append)
        watch.add("hangs", lambda: hangs, closing=0.2)
        watch.add("hangs too", lambda: Hangs(), closing=0.2)
        watch.add("works", lambda: kept)
        for number in range(3000):
            watch.tell(event("epoch", step=number))
            if number % 100 == 0:
                while len(kept.events) < number:  # the working one keeps up
                    threading.Event().wait(0.001)
        watch.close()
        count = len(said)
    assert len(kept.events) == 3000
    assert [line.split(":")[0] for line in said if "left behind" in line] == ["hangs", "hangs too"]
    assert [line.split(":")[0] for line in said if "too slow" in line] == ["hangs", "hangs too"]
    assert count == len(said) == 4


def test_a_full_disk_is_a_sentence() -> None:
    said = told(lambda: json_lines.connect(json_lines.Config(path="/dev/full"), about()))
    assert said[0] == "one: No space left on device; the run goes on"
    assert "told nothing more" in said[1]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = prometheus.Config(path=str(tmp_path / "file" / "x.prom"))
    assert told(lambda: prometheus.connect(config, about()))[0].endswith("without it")


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        ("prometheus:file=x.prom", "'file' is not a setting"),
        ("prometheus:path=x.txt", "path"),
        ("mlflow:uri=http://me:secret@host", "holds credentials"),
        ("mlflow:uri=http://:secret@host", "holds credentials"),
        ("mlflow:uri=http://host/?token=secret", "holds credentials"),
        ("webhook:url=http://x/secret", "'url' is not a setting"),
        ("webhook:http://x/secret", "settings of 'webhook' are KEY=VALUE"),
        ("_watch", "not one of the trackers"),
    ],
)
def test_a_wrong_tracker_is_refused(folder: Path, tracker: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        Settings.parse(raw_settings(folder, watch={"trackers": [tracker]}), "t")
    assert "secret" not in str(refused.value)


def test_every_tracker_keeps_the_contract() -> None:
    names = registry.names("pipelines.trackers")
    assert {"json_lines", "mlflow", "prometheus", "tensorboard", "wandb", "webhook"} <= set(names)
    for name in names:
        module = registry.module("pipelines.trackers", name)
        assert callable(module.connect)
        assert registry.configure("pipelines.trackers", name, {}).model_config["frozen"]
        assert not getattr(module, "APART", False) or module.CLOSING > 0
    assert [name for name, _ in WatchConfig().chosen(about(Path("/runs/one")))] == ["tensorboard"]
    assert WatchConfig().chosen(about(None)) == WatchConfig(trackers=()).chosen(about(Path("/runs/one"))) == []


def test_choosing_trackers_imports_none_of_their_libraries(folder: Path) -> None:
    import subprocess

    raw = raw_settings(folder, watch={"trackers": ["tensorboard", "mlflow", "wandb", "webhook"]})
    code = (
        "import json, sys; from pipelines.settings import Settings; Settings.parse(json.loads(sys.argv[1]), 't')\n"
        "sys.exit(' '.join({'mlflow', 'wandb', 'tensorboardX', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(raw)], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_without_a_folder_a_tracker_wants_a_path() -> None:
    with pytest.raises(TrackerFailed, match="absolute path"):
        tensorboard.connect(tensorboard.Config(), about(None))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one mined round that files were told of."""
    base = tmp_path_factory.mktemp("watched")
    trackers = ["tensorboard", "prometheus", "json_lines"]
    run_file = write_toml(base / "run.toml", raw_settings(folder, **ONE_ROUND, watch={"trackers": trackers}))
    pipelines("run", run_file, "--run-dir", base / "run", "--log-json", base / "more.jsonl")
    return base


def test_lines_say_run_round_stage_and_shard(watched: Path) -> None:
    lines = lines_of(watched / "run/watch/events.jsonl")
    assert lines == lines_of(watched / "more.jsonl")
    assert {line["run"] for line in lines} == {str(watched / "run")}
    assert [line["event"] for line in lines][:2] == ["run_start", "stage_start"]
    assert lines[-1]["event"] == "run_done"
    shards = [line["shard"] for line in lines if line.get("stage") == "mine-t2i" and line["event"] == "shard_done"]
    assert shards == list(range(1, len(shards) + 1))
    assert len(shards) == 6
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["round"], line["step"]) for line in epochs] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert {"loss", "lr"} <= set(epochs[0]["figures"])
    rounds = [line for line in lines if line["event"] == "round_done"]
    metrics = json.loads(pipelines("status", watched / "run", "--json").output)["rounds"]
    assert [line["figures"]["dev/rsum"] for line in rounds] == [r["metrics"]["dev"]["rsum"] for r in metrics]
    ended = {(line["round"], line["stage"]): line for line in lines if line["event"] == "stage_done"}
    assert {"fit", "evaluate", "report"} <= {stage for _, stage in ended}
    assert all(line["seconds"] >= 0 for line in ended.values())


def test_a_prometheus_file_is_what_prometheus_reads(watched: Path) -> None:
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families((watched / "run/watch/quintain.prom").read_text())
        for sample in family.samples
    }
    run = ("run", str(watched / "run"))
    assert found["quintain_running", run] == 0
    assert found["quintain_failed", run] == 0
    assert found["quintain_round", run] == 1
    assert found["quintain_epoch", run] == 3
    assert found["quintain_stage_shards_done", ("round", "1"), run, ("stage", "mine-t2i")] == 6
    metrics = json.loads(pipelines("status", watched / "run", "--json").output)["rounds"][1]["metrics"]
    assert found["quintain_metric", ("metric", "rsum"), run, ("split", "test")] == metrics["test"]["rsum"]
    assert [path.name for path in (watched / "run/watch").glob("quintain.prom*")] == ["quintain.prom"]


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of TensorBoard's files: name -> (step, value) in the order of writing."""
    from tensorboardX.proto.event_pb2 import Event as Written

    found: dict[str, list[tuple[int, float]]] = {}
    # Names of files of one second are in no order.
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            written = Written.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in written.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((written.step, value.simple_value))
    return found


def test_tensorboard_has_curves_by_epoch_and_by_round(watched: Path) -> None:
    found = scalars_in(watched / "run/watch/tensorboard")
    assert [step for step, _ in found["epoch/loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["round/dev/rsum"]] == [0, 1]
    assert [step for step, _ in found["seconds/mine-i2t"]] == [1]
    lines = [line for line in lines_of(watched / "more.jsonl") if line["event"] == "epoch"]
    assert [value for _, value in found["epoch/loss"]] == pytest.approx([line["figures"]["loss"] for line in lines])


def test_what_trackers_wrote_is_neither_damage_nor_garbage(watched: Path) -> None:
    before = sorted((watched / "run/watch").rglob("*"))
    assert pipelines("verify", watched / "run").output.count("\n") == 1
    assert "nothing can go" in pipelines("gc", watched / "run", "--delete").output
    assert sorted((watched / "run/watch").rglob("*")) == before


def test_a_second_call_tells_nothing(watched: Path) -> None:
    before = {path: path.read_bytes() for path in (watched / "run/watch").rglob("*") if path.is_file()}
    pipelines("run", watched / "run.toml", "--run-dir", watched / "run")
    assert {path: path.read_bytes() for path in (watched / "run/watch").rglob("*") if path.is_file()} == before


class _Dies(Lines):
    """Ends the run after one epoch, as an interrupt would, with its file written and its line not."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last = epoch

    def epoch(self, line: dict[str, Any]) -> None:
        if line["epoch"] == self.last and not line["resumed"]:
            raise KeyboardInterrupt


@pytest.mark.parametrize("restart", [False, True])
def test_a_resumed_run_counts_nothing_twice(folder: Path, tmp_path: Path, restart: bool) -> None:
    raw = raw_settings(folder, run={**ONE_ROUND["run"], "restart": restart})
    settings = Settings.parse(raw, "t")
    store, data = LocalStore(tmp_path / "run"), loop.describe(settings)
    loop.prepare(settings, data, store)
    config = WatchConfig(trackers=("tensorboard", "json_lines", "prometheus"))
    where = About(store.url, store.root, {})

    def go(progress: Lines) -> None:
        with open_watch(config, where, progress.say) as watch:
            loop.run(settings, data, store, InlineExecutor(), progress, watch=watch)

    with pytest.raises(KeyboardInterrupt):
        go(_Dies(1))
    assert [line["event"] for line in lines_of(tmp_path / "run/watch/events.jsonl")][-1] == "run_failed"
    with pytest.raises(KeyboardInterrupt):
        go(_Dies(0 if restart else 2))
    go(Lines())
    go(Lines())
    found = scalars_in(tmp_path / "run/watch/tensorboard")
    assert [step for step, _ in found["epoch/loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["round/dev/rsum"]] == [0, 1]
    # A file that holds the present alone knows the rounds of before, though nothing was left to do.
    assert 'quintain_round{run="' in (tmp_path / "run/watch/quintain.prom").read_text()


def test_a_failed_run_is_told(folder: Path, tmp_path: Path, watched: Path) -> None:
    import shutil

    root = Path(shutil.copytree(watched / "run", tmp_path / "run"))
    for later in ("mine-i2t", "mine-t2i", "fit", "evaluate", "report"):
        shutil.rmtree(root / "rounds/001" / later)
    index = next(root.glob("rounds/001/index-text/*/index.bin"))
    index.write_bytes(index.read_bytes()[:-1] + b"\x7f")
    said = pipelines("run", watched / "run.toml", "--run-dir", root, "--log-json", tmp_path / "log.jsonl", code=4)
    lines = lines_of(tmp_path / "log.jsonl")
    assert [line["event"] for line in lines][-2:] == ["round_failed", "run_failed"]
    assert (lines[-2]["round"], lines[-2]["stage"], lines[-2]["level"]) == (1, "mine-i2t", "error")
    assert lines[-1]["message"] in said.output
    assert "quintain_failed{" in (root / "watch/quintain.prom").read_text()


def test_a_run_that_cannot_begin_is_told(folder: Path, tmp_path: Path) -> None:
    raw = raw_settings(folder, data={"folder": str(tmp_path / "nowhere")})
    run_file = write_toml(tmp_path / "run.toml", raw)
    pipelines("run", run_file, "--run-dir", tmp_path / "run", "--log-json", tmp_path / "log.jsonl", code=3)
    (line,) = lines_of(tmp_path / "log.jsonl")
    assert line["event"] == "run_failed"
    assert "nowhere" in line["message"]


def test_a_run_goes_on_when_every_tracker_fails(folder: Path, tmp_path: Path, watched: Path) -> None:
    from tests.pipelines.test_loop import hashes

    (tmp_path / "run").mkdir()
    (tmp_path / "run/watch").write_text("a file where a folder should be")
    trackers = ["tensorboard", "prometheus", "json_lines:path=/dev/full", "webhook:variable=NOT_SET_ANYWHERE"]
    run_file = write_toml(tmp_path / "run.toml", raw_settings(folder, **ONE_ROUND, watch={"trackers": trackers}))
    said = pipelines("run", run_file, "--run-dir", tmp_path / "run").output
    for name in ("tensorboard", "prometheus", "json_lines", "webhook"):
        assert 1 <= sum(line.startswith(f"{name}: ") for line in said.splitlines()) <= 2, said
    assert hashes(tmp_path / "run") == hashes(watched / "run")


class Server(ThreadingHTTPServer):
    """Takes POSTs, answers with the next of `codes`, and with 200 when there is none left; -1 never answers."""

    def __init__(self, *codes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes, self.taken, self.freed = list(codes), list[dict[str, Any]](), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append(body)
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == -1:
            self.server.freed.wait(30)
            return
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*codes: int) -> Server:
        one = Server(*codes)
        running.append(one)
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("QUINTAIN_WEBHOOK", one.url)
        return one

    yield start
    for one in running:
        one.freed.set()
        one.shutdown()
        one.server_close()


def called(**settings: Any) -> list[str]:
    """What is said while a webhook is told of a whole run."""
    config = webhook.Config(**{"pause": 0.0, **settings})
    said: list[str] = []
    watch = Watch(said.append)
    watch.add("webhook", lambda: webhook.connect(config, about()), webhook.CLOSING)
    figures = {"dev/rsum": 210.25, "test/rsum": 200.5}
    watch.tell(event("run_start"))
    watch.tell(event("round_done", round=0, figures=figures, again=True))
    watch.tell(event("round_done", round=1, figures=figures))
    watch.tell(event("run_done", message="stopped after round 1"))
    watch.close()
    assert SECRET not in " ".join(said)
    return said


def test_a_webhook_is_called_for_rounds_and_the_run(server: Callable[..., Server]) -> None:
    one = server()
    assert called() == []
    assert [body["event"] for body in one.taken] == ["round_done", "run_done"]
    assert one.taken[0]["metrics"] == {"dev/rsum": 210.25, "test/rsum": 200.5}
    assert one.taken[0]["text"] == "/runs/one: round 1 is done: dev rsum 210.2, test rsum 200.5"
    assert one.taken[1]["text"] == "/runs/one: the run is done: stopped after round 1"


def test_a_webhook_is_tried_again_as_often_as_is_said(server: Callable[..., Server]) -> None:
    one = server(500, 503)
    assert called() == []
    assert len(one.taken) == 4
    one = server(500, 500, 500)
    assert called() == ["webhook: round_done was not taken: the server answered 500; the run goes on"]
    assert len(one.taken) == 4
    one = server(404, 429, 200)
    assert called() == ["webhook: round_done was not taken: the server answered 404; the run goes on"]
    assert len(one.taken) == 3


def test_a_webhook_that_hangs_or_sends_elsewhere(server: Callable[..., Server]) -> None:
    one = server(-1, -1)
    assert called(timeout=0.1, tries=2) == ["webhook: round_done was not taken: no answer in 0.1 s; the run goes on"]
    assert len(one.taken) == 3
    one = server(302)
    assert "answered 302" in called()[0]
    assert len(one.taken) == 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is not set"),
        (f"ftp://{SECRET}", "holds no http"),
        (f"http://[{SECRET}", "holds no http"),
        (f"http://127.0.0.1:1/{SECRET}", "Connection refused"),
        (f"http://127.0.0.1:99999/{SECRET}", "not taken"),
        (f"http://127.0.0.1:1/{SECRET} x\n", "not taken"),
    ],
)
def test_a_wrong_url_is_not_shown(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTAIN_WEBHOOK", url)
    assert words in called()[0]


def test_no_secret_reaches_a_file(folder: Path, tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server(500, 500, 500, 500, 500, 500)
    raw = raw_settings(folder, run={"rounds": 0, "first_epochs": 1}, watch={"trackers": ["webhook:pause=0"]})
    run_file = write_toml(tmp_path / "run.toml", raw)
    said = pipelines("run", run_file, "--run-dir", tmp_path / "run", "--log-json", tmp_path / "log.jsonl").output
    assert "the server answered 500" in said
    assert [body["event"] for body in one.taken] == ["round_done"] * 3 + ["run_done"] * 3
    assert SECRET not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
