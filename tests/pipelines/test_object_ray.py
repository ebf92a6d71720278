"""A run in a bucket on a real local Ray cluster: workers read and write the bucket themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_loop import hashes, pipelines

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets


def test_ray_workers_write_the_bytes_of_one_process_and_nobody_writes_a_secret(
    moto: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets.environment(monkeypatch, moto, tmp_path / "cache")
    raw = raw_settings(folder, run={"rounds": 1, "first_epochs": 1, "epochs": 1})
    run_file = write_toml(tmp_path / "run.toml", raw)
    result = pipelines("run", run_file, "--run-dir", tmp_path / "inline")
    assert result.exit_code == 0, result.output

    location = f"s3://{buckets.new_bucket(moto)}/run"
    notes = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_TMPDIR": str(notes), "TMPDIR": str(notes)}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", location]
    try:
        process = subprocess.run(
            [*command, "--executor", "ray", "--workers", "2"],
            capture_output=True, text=True, env=environment, timeout=480, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-4000:]
        assert buckets.hashes_in(location) == hashes(tmp_path / "inline")
        found = buckets.objects(location)
        # Nobody asked for trackers, and by themselves they write into folders alone.
        inline = {path.name for path in (tmp_path / "inline").iterdir()} - {"watch", ".lock"}
        assert {name.partition("/")[0] for name in found} == {"lease", *inline}
        assert not list(notes.rglob("quintain-r*"))
        written = [path for path in notes.rglob("*") if path.is_file()]
        assert [path for path in written if path.suffix in (".log", ".out", ".err")]
        secret = buckets.SECRET.encode()
        assert not [path for path in written if secret in path.read_bytes()]
        assert not [name for name, data in found.items() if secret in data]
        assert buckets.SECRET not in process.stdout + process.stderr
    finally:
        shutil.rmtree(notes, ignore_errors=True)
