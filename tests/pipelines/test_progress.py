"""What a run shows on a real terminal, narrow or without colour: a subprocess under a pty."""

from __future__ import annotations

import fcntl
import importlib
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from miner.artifacts.errors import Retryable
from miner.artifacts.pace import Pace
from pipelines import progress
from pipelines.interrupts import handlers_kept, interrupted

ROOT = Path(__file__).parents[2]
# Rates of a part a second or faster, for what is drawn in between hangs on the clock.
STAGES = """
import time
from pipelines.progress import open_progress

shown = open_progress()
shown.say("a place of more words than the line of a narrow terminal has room for: 0 stages reused, 2 to run :x: [red]")
for name in ("r1/encode-image", "r12/fit"):
    shown.start(name, 3, "shard", "settings of [mine] changed, which is a reason of some length")
    for done in (1, 2, 3):
        time.sleep(0.15)
        shown.advance(done, "31.5 images/s on a device with a name as long as names of devices are, float32")
    time.sleep(0.15)
    shown.finish(0.5, "3 files")
shown.close()
"""


def on_a_terminal(columns: int, **environment: str) -> str:
    """Everything written to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"}
    plain = {name: value for name, value in os.environ.items() if name not in left_out}
    said = {**plain, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environment}
    with subprocess.Popen([sys.executable, "-c", STAGES], stdin=theirs, stdout=theirs, stderr=theirs, env=said) as run:
        os.close(theirs)
        found = b""
        while True:
            try:
                read = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            found += read
    os.close(ours)
    assert run.returncode == 0, found.decode()
    return found.decode()


def colours(text: str) -> list[str]:
    """Codes that colour what follows."""
    codes = [code for found in re.findall(r"\x1b\[([0-9;]*)m", text) for code in found.split(";") if code]
    return [code for code in codes if 30 <= int(code) <= 49 or 90 <= int(code) <= 107]


def lines(text: str) -> list[str]:
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


@pytest.mark.parametrize("columns", [50, 90])
def test_no_line_is_wider_than_the_terminal_and_notes_are_cut(columns: int) -> None:
    shown = lines(on_a_terminal(columns))
    assert max(map(len, shown)) <= columns
    bars = [line for line in shown if re.match(r"r\d+/\S+ .*\d/3 shards", line)]
    assert any(line.endswith("…") for line in bars)
    # What was cut is gone: nothing of a note begins a line.
    assert all(line.startswith(("r1/encode-image ", "r12/fit ")) for line in shown if "/3 shards" in line)
    assert not [line for line in shown if line.startswith(("names of", "images/s", "float32"))]
    assert "r1/encode-image: done in 0.5 s 3 files" in shown


def test_bars_say_how_fast_it_goes_and_how_long_still() -> None:
    shown = on_a_terminal(120)
    assert re.search(r"1/3 shards, [\d.,]+ shards/\w+, \d+ s left; 31\.5 images/s on", "\n".join(lines(shown)))
    assert "━" in shown
    assert colours(shown)


def test_what_a_note_or_a_line_says_is_no_markup() -> None:
    shown = "\n".join(lines(on_a_terminal(160)))
    assert "0/3 shards; settings of [mine] changed, which is a reason" in shown
    assert ":x: [red]" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_no_code_is_written(environment: dict[str, str]) -> None:
    shown = on_a_terminal(120, **environment)
    assert colours(shown) == []
    assert "r12/fit: done in 0.5 s 3 files" in lines(shown)


def test_a_terminal_that_cannot_move_its_cursor_has_lines() -> None:
    shown = on_a_terminal(120, TERM="dumb")
    assert "\x1b" not in shown
    assert "r1/encode-image: settings of [mine] changed, which is a reason of some length" in lines(shown)


def test_ctrl_c_ends_with_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted():
        raise KeyboardInterrupt
    assert "interrupted: what is finished is kept, and the same command goes on from there." in capsys.readouterr().err


def test_sigterm_is_told_as_the_end_it_is_and_comes_once() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with interrupted():
            with handlers_kept():  # which Ray sets while it starts
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Retryable, match="stopped by SIGTERM: what is finished is kept") as stopped:
        work()
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_during_an_import_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stopped_here.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        with interrupted():
            assert importlib.import_module("stopped_here").whole
            time.sleep(60)

    with pytest.raises(Retryable, match="stopped by SIGTERM"):
        work()


def test_epochs_that_were_done_before_say_nothing_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # The stage's start; the epoch of before, as the pace begins anew and as it is told; the first one of now.
    clock = iter([0.0, 0.1, 0.1, 60.1])
    monkeypatch.setattr(progress, "Pace", lambda: Pace(lambda: next(clock)))
    said_to = io.StringIO()
    shown = progress.Lines(said_to, every=0)
    shown.start("r1/fit", 4, "epoch", "not made yet")
    line = {"figures": {}, "loss": 1.0, "pairs_per_second": 9.0, "device": "cpu", "warning": ""}
    for epoch, resumed in enumerate((True, False)):
        shown.epoch({**line, "epoch": epoch, "epoch_in_round": epoch, "resumed": resumed})
    said = said_to.getvalue().splitlines()[1:]
    assert said[0].startswith("r1/fit: 1 of 4 epochs; ")
    assert said[1].startswith("r1/fit: 2 of 4 epochs, 1.0 epochs/min, 2 min 0 s left; ")
