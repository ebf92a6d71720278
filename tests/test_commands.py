"""What all commands promise: help with examples that parse, in any terminal; completion that a shell asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from miner.artifacts.pace import Pace, span
from tests.commands import PROGRAMS, every, parse, typed

ROOT = Path(__file__).parents[1]
COMMANDS = dict(every())


def said(path: str, **environment: str) -> str:
    program, *names = path.split()
    done = CliRunner(env=environment).invoke(PROGRAMS[program], [*names, "--help"], prog_name=program)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example_of_the_command_that_parses(path):
    examples = list(typed(said(path).partition("Examples")[2]))
    assert examples, f"{path} --help has no example"
    mine = path.split()
    assert any(words[: len(mine)] == mine for words in examples)
    for words in examples:
        parse(words)


def test_an_example_that_does_not_parse_is_noticed():
    (wrong,) = typed("  miner mine vectors/ --kk 50 \\\n      --out tables/     # never")
    assert wrong == ["miner", "mine", "vectors/", "--kk", "50", "--out", "tables/"]
    with pytest.raises(click.UsageError):
        parse(wrong)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_plain_and_fits(path):
    for width in ("60", "200"):
        text = said(path, COLUMNS=width, NO_COLOR="1", FORCE_COLOR="")
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 132  # examples are not wrapped


def test_the_commands_of_the_readme_parse():
    examples = list(typed((ROOT / "README.md").read_text().partition("## Where things are")[0]))
    assert len(examples) > 30
    for words in examples:
        parse(words)


def complete(shell_words: list[str], cwd: Path) -> list[str]:
    """What bash offers for the last of the words, asked through the script that the command prints."""
    program = shell_words[0]
    words = " ".join(f"'{word}'" for word in shell_words)
    script = (
        f"source <({program} completion bash); complete -p {program} >/dev/null || exit 9; "
        f"COMP_WORDS=({words}); COMP_CWORD={len(shell_words) - 1}; _{program}_completion {program} 2>/dev/null; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pipelines", "in"], ["init"]),
        (["miner", "mine", "v", "--rule", "rel"], ["relative-margin"]),
        (["miner", "export", "t", "--format", "fl"], ["flagembedding"]),
        (["trainer", "fit", "--model", "vs"], ["vse_inf", "vsepp", "vsrn"]),
        (["trainer", "fit", "--loss", "s"], ["sct", "selhn", "smoothap"]),
        (["pipelines", "init", "kar"], ["karpathy:"]),
        (["trainer", "data", "formats", "web"], ["webdataset"]),
        (["pipelines", "schedule", "sl"], ["slurm"]),
        (["miner", "mine", "--dir"], ["--direction"]),
        (["trainer", "evaluate", "--checkpoint", "s3"], ["s3://"]),
    ],
)
def test_bash_completes(tmp_path, words, offered):
    assert complete(words, tmp_path) == offered


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("miner check", "table", "file"),
        ("miner diff", "old", "file"),
        ("miner export", "pairs", "file"),
        ("trainer evaluate", "checkpoints", "dir"),
    ],
)
def test_a_place_is_completed_by_what_may_be_there(path, name, kind):
    (parameter,) = (each for each in COMMANDS[path].params if each.name == name)
    offered = parameter.type.shell_complete(click.Context(COMMANDS[path]), parameter, "s")
    assert [(each.type, each.value) for each in offered] == [(kind, "s"), ("plain", "s3://")]


@pytest.mark.parametrize("path", COMMANDS)
def test_an_address_is_no_path_of_this_machine(path):
    for parameter in COMMANDS[path].params:
        if isinstance(parameter.type, click.Path):
            with pytest.raises(click.BadParameter, match="'s3://bucket/out' is an address"):
                parameter.type.convert("s3://bucket/out", parameter, None)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_shell_has_a_script_and_a_tab_imports_nothing_heavy(program, tmp_path):
    for shell in ("bash", "zsh", "fish"):
        done = CliRunner().invoke(PROGRAMS[program], ["completion", shell])
        assert (done.exit_code, f"_{program.upper()}_COMPLETE={shell}_complete" in done.output) == (0, True)
    code = (
        f"import sys; from {program}.cli import main\n"
        f"try: main(prog_name='{program}')\n"
        "except SystemExit: pass\n"
        "print({'torch', 'faiss', 'ray', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules))"
    )
    typed_so_far = {"miner": "miner mine x --rule ", "trainer": "trainer fit --model ", "pipelines": "pipelines init "}
    environment = {**os.environ, f"_{program.upper()}_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)}
    environment |= {"COMP_WORDS": typed_so_far[program], "COMP_CWORD": str(len(typed_so_far[program].split()))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.count("plain,") > 3, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_pace_tells_the_rate_and_the_time_left():
    now = iter([0.0, 10.0, 20.0, 5_000.0, 90_000.0])
    pace = Pace(lambda: next(now))
    assert pace.said(100, 1000, "images") == ""  # what was there already says nothing of the rate
    assert pace.said(300, 1000, "images") == ", 20.0 images/s, 35 s left"
    assert pace.said(200, 20_000_000, "images") == ", 5.0 images/s, 1111 h 6 min left"
    assert pace.said(1000, 1000, "images") == ", 0.2 images/s"
    assert pace.said(1100, 1200, "images") == ", 0.7 images/min, 2 h 30 min left"
    assert span(124) == "2 min 4 s"
