"""What `pipelines doctor` looks at on this machine: packages, GPUs, Ray, memory, disk, limits, clock, encoding.

torch and faiss are asked in a process of their own: a wheel that does not fit the driver aborts, or waits for ever.
"""

from __future__ import annotations

import json
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from miner import memory
from miner.artifacts.errors import BadInput

__all__ = ["Check", "look", "worst"]

_GIB = 2**30
_PATIENCE = 120.0  # seconds for one import
_MINING = ("click", "numpy", "pyarrow")
_LOOP = (
    "torch",
    "pydantic",
    "safetensors",
    "matplotlib",
    "pillow",
    "jinja2",
    "rich",
    "prometheus_client",
    "tensorboardX",
)
_NVIDIA = Path("/proc/driver/nvidia/version")
_SHM = Path("/dev/shm")
_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(each) for each in range(count)]
print(json.dumps({"cuda": torch.version.cuda, "gpus": [[g.name, g.total_memory] for g in gpus]}))
"""
_FAISS = """
import json
from miner.index import _faiss
print(json.dumps({"version": _faiss.version(), "gpus": _faiss.num_gpus()}))
"""


@dataclass(frozen=True)
class Check:
    """What was found, and for anything but ok what to do."""

    name: str
    state: Literal["ok", "warning", "problem"]
    found: str
    do: str = ""


def look(lock: Path | None = None) -> Iterator[Check]:
    """One check after the other; `lock` is the file of pinned versions, found beside the packages by default."""
    yield _python()
    yield from _packages(lock or next((p for p in _locks() if p.is_file()), None))
    gpu = _NVIDIA.exists()
    yield _torch(gpu)
    yield _faiss(gpu)
    yield from _ray()
    yield _shared_memory()
    yield _memory()
    yield _descriptors()
    yield _cores()
    yield _clock()
    yield _encoding()


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("python", "warning", found, "only Linux is tested")
    return Check("python", "ok", found)


def _locks() -> list[Path]:
    return [Path("requirements.lock"), Path(__file__).parents[1] / "requirements.lock"]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages(lock: Path | None) -> Iterator[Check]:
    missing = [name for name in (*_MINING, *_LOOP) if _installed(name) is None]
    if missing:
        extra = "quintain" if set(missing) & set(_MINING) else "quintain[loop]"
        yield Check("packages", "problem", f"not installed: {', '.join(missing)}", f"pip install '{extra}'")
    else:
        yield Check("packages", "ok", "what the loop needs is installed")
    if lock is None:
        yield Check("versions", "ok", "no requirements.lock is here to compare with")
        return
    lines = [line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==", 1) for line in lines if "==" in line)
    # A wheel may say its build after a plus: 2.13.0+cpu.
    others = {
        name: found for name, pin in pins.items() if (found := _installed(name)) and found.partition("+")[0] != pin
    }
    if not others:
        yield Check("versions", "ok", f"those of {lock.name}")
        return
    few = ", ".join(f"{name} {found} (tested: {pins[name]})" for name, found in list(others.items())[:4])
    more = f", and {len(others) - 4} more" if len(others) > 4 else ""
    do = f"pip install -c {lock.name} with the extras you use, should something go wrong"
    yield Check("versions", "warning", few + more, do)


def _child(code: str) -> dict[str, Any] | str:
    """What a program says as JSON on its last line, or why it did not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_PATIENCE:.0f} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        return f"exit code {done.returncode}" + (f": {last}" if last else "")


def _torch(gpu: bool) -> Check:
    installed = _installed("torch")
    if installed is None:
        return Check("torch", "problem", "not installed", "pip install 'quintain[loop]'")
    told = _child(_TORCH)
    if isinstance(told, str):
        return Check("torch", "problem", f"torch {installed} cannot be used ({told})", "install torch again")
    gpus = ", ".join(f"{name} ({memory.readable(size)})" for name, size in told["gpus"])
    found = f"torch {installed}, {'CUDA ' + told['cuda'] if told['cuda'] else 'no CUDA'}, GPUs: {gpus or 'none'}"
    if gpu and not gpus:
        do = "install a torch whose CUDA this driver supports; look at CUDA_VISIBLE_DEVICES"
        return Check("torch", "warning", f"{found}, though an NVIDIA driver is here", do)
    return Check("torch", "ok", found)


def _faiss(gpu: bool) -> Check:
    wheels = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if not wheels:
        return Check("faiss", "problem", "not installed", "pip install 'quintain[cpu]', or [gpu] where a GPU is")
    if len(wheels) == 2:
        do = "pip uninstall faiss-cpu faiss-gpu, then install one of them: they share a folder"
        return Check("faiss", "problem", "faiss-cpu and faiss-gpu are both installed", do)
    told = _child(_FAISS)
    if isinstance(told, str):
        do = "pip uninstall faiss-cpu faiss-gpu, then pip install 'quintain[cpu]' (or [gpu])"
        return Check("faiss", "problem", f"{wheels[0]} cannot be used ({told})", do)
    found = f"{wheels[0]} {told['version']}, GPUs seen: {told['gpus']}"
    if wheels == ["faiss-gpu"] and not told["gpus"]:
        return Check("faiss", "warning", found, "without a driver this wheel aborts; install 'quintain[cpu]' here")
    if wheels == ["faiss-cpu"] and gpu:
        return Check("faiss", "warning", found, "a GPU is here: 'quintain[gpu]' in place of [cpu] searches there")
    return Check("faiss", "ok", found)


def _ray() -> Iterator[Check]:
    from pipelines.ray_jobs import token

    found = _installed("ray")
    if found is None:
        do = "pip install 'quintain[loop]', or run with --executor inline"
        yield Check("ray", "warning", "not installed", do)
        return
    yield Check("ray", "ok", f"ray {found}")
    mode, address = os.environ.get("RAY_AUTH_MODE", ""), os.environ.get("RAY_ADDRESS", "")
    try:
        has = bool(token())
    except BadInput as wrong:
        yield Check("ray token", "problem", str(wrong), "set RAY_AUTH_TOKEN_PATH to a file with the token, or unset it")
        return
    told = f"RAY_AUTH_MODE is {mode or 'not set'}, {'a' if has else 'no'} token is set"
    if mode == "token" and not has:
        yield Check("ray token", "problem", told, "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or unset RAY_AUTH_MODE")
    elif mode not in ("", "token"):
        do = "whoever reaches Ray's ports can run code there; set RAY_AUTH_MODE=token"
        yield Check("ray token", "warning", told, do)
    elif address and not has:
        do = "RAY_ADDRESS names a cluster; set RAY_AUTH_TOKEN if it wants one"
        yield Check("ray token", "warning", told, do)
    else:
        yield Check("ray token", "ok", told + ("" if has or mode else "; a local cluster makes one for itself"))


def _shared_memory() -> Check:
    name = str(_SHM)
    if not _SHM.is_dir():
        return Check(name, "warning", "there is none", "Ray keeps its objects on disk then; use --executor inline")
    usage = shutil.disk_usage(_SHM)
    found = f"{memory.readable(usage.free)} free of {memory.readable(usage.total)}"
    if usage.free < _GIB:
        do = "Ray keeps its objects there: docker run --shm-size 1g, or a memory emptyDir on Kubernetes"
        return Check(name, "warning", found, do)
    return Check(name, "ok", found)


def _memory() -> Check:
    left = memory.available()
    found = f"{memory.readable(left)} left by the machine, the container and ulimit"
    if left < _GIB // 2:
        return Check(
            "memory", "problem", found, "end other programs, or raise the container's limit; a task takes 0.5 GiB"
        )
    if left < 4 * _GIB:
        return Check("memory", "warning", found, "`pipelines plan` says what a task takes; run few at once (--workers)")
    return Check("memory", "ok", found)


def _descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["no limit" if each == resource.RLIM_INFINITY else str(each) for each in (soft, hard)]
    found = f"{shown[0]} open files (at most {shown[1]})"
    enough = soft == resource.RLIM_INFINITY or soft >= 1024
    return Check("open files", "ok" if enough else "warning", found, "" if enough else "ulimit -n 4096: Ray opens many")


def _cores() -> Check:
    mine, all_of = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{mine} of {all_of}"
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        most = float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        most = float("inf")
    threads = os.environ.get("OMP_NUM_THREADS")
    found += f", OMP_NUM_THREADS={threads}" if threads else ""
    if most < mine:
        few = max(1, int(most))
        do = f"set OMP_NUM_THREADS={few} and --workers {few}: more threads wait for each other"
        return Check("cores", "warning", f"{found}, of which the container may use {most:g}", do)
    return Check("cores", "ok", found)


def _clock() -> Check:
    now, written = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < written - 86400:
        return Check(
            "clock", "problem", f"{found}, before this program was installed", "set the clock: leases rest on it"
        )
    return Check("clock", "ok", found)


def _encoding() -> Check:
    files, text, out = sys.getfilesystemencoding(), locale.getpreferredencoding(False), sys.stdout.encoding or "none"
    found = f"file names {files}, text {text}, output {out}"
    bad = [each for each in (files, text, out) if not _utf8(each)]
    if bad:
        return Check("encoding", "warning", found, "set LANG=C.UTF-8 or PYTHONUTF8=1: captions may hold any letter")
    return Check("encoding", "ok", found)


def _utf8(name: str) -> bool:
    return name.lower().replace("-", "").replace("_", "") in ("utf8", "none")


def worst(checks: Sequence[Check]) -> str:
    """ok, warning or problem."""
    states = {check.state for check in checks}
    return next((state for state in ("problem", "warning") if state in states), "ok")
