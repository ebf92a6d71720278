"""A run on two hosts, whose link is cut for a minute: it finishes, and its tables are those of a run left alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.hosts import Hosts, refusal
from tests.pipelines.test_loop import hashes, pipelines

_CUT_SECONDS = 60
_DEADLINE = 600
_DIGESTS = """
import hashlib, json, obstore
from obstore.store import S3Store
store = S3Store("runs", prefix={name!r}, client_options={{"allow_http": True}})
names = [f["path"] for chunk in obstore.list(store) for f in chunk]
found = {{n: hashlib.sha256(bytes(obstore.get(store, n).bytes())).hexdigest() for n in names
         if n.startswith("rounds/") and "/report/" not in n}}
open({out!r}, "w").write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with `run.toml` and the run `inline`, which nobody disturbed."""
    base = tmp_path_factory.mktemp("hosts")
    raw = raw_settings(
        folder, run={"rounds": 2, "first_epochs": 2, "epochs": 40}, mine={"shard_anchors": 2}, watch={"trackers": []}
    )
    run_file = write_toml(base / "run.toml", raw)
    result = pipelines("run", run_file, "--run-dir", base / "inline")
    assert result.exit_code == 0, result.output
    return base


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    why = refusal()
    if why:
        pytest.skip(why)
    with Hosts() as hosts:
        yield hosts


@pytest.mark.heavy
@pytest.mark.parametrize(("during", "kind", "count"), [("mine-i2t", "shard_done", 3), ("fit", "epoch", 3)])
def test_a_minute_without_a_link(
    base: Path, hosts: Hosts, during: str, kind: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said, events = base / f"{during}.log", base / f"{during}.jsonl"
    arguments = ["run", str(base / "run.toml"), "--run-dir", f"s3://runs/{during}", "--log-json", str(events)]
    process = hosts.start(0, "-m", "pipelines", *arguments, "--executor", "ray", "--address", hosts.cluster, log=said)
    began = time.monotonic()

    def seen() -> bool:
        _going_on(process, said, began)
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        return (
            sum((line["event"], line.get("round"), line.get("stage")) == (kind, 1, during) for line in lines) >= count
        )

    hosts.until(seen)
    cut = time.monotonic()
    hosts.link("down")
    try:
        time.sleep(_CUT_SECONDS)
        assert process.poll() is None, said.read_text()
    finally:
        hosts.link("up")
    healed = time.monotonic()
    assert process.wait(_DEADLINE) == 0, said.read_text()
    with capsys.disabled():
        print(f"\ncut during {during}, {cut - began:.0f} s after the start, for {healed - cut:.0f} s; "
              f"done {time.monotonic() - healed:.0f} s after that\n{said.read_text()}")  # fmt: skip
    out = base / f"{during}.json"
    assert hosts.inside(0, _DIGESTS.format(name=during, out=str(out))) == 0
    assert json.loads(out.read_text()) == hashes(base / "inline")


def _going_on(process: subprocess.Popen[bytes], said: Path, began: float) -> None:
    assert process.poll() is None, said.read_text()
    assert time.monotonic() - began < _DEADLINE, said.read_text()
