"""The commands as a user runs them: results, sentences, exit codes, and what is left on disk."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.embeddings import EMBEDDINGS, commit_embeddings, npy_bytes, part_name
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.negatives import NEGATIVES, NegativeTable
from miner.artifacts.store import LocalStore
from miner.cli import main


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def in_process(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_mine_equals_the_oracle_and_is_done_the_second_time(problem, oracle, tmp_path):
    given = problem()
    folder = given.write(tmp_path / "vectors")
    first = run("mine", folder, "--k", 7, "--out", tmp_path / "tables")
    assert first.exit_code == 0, first.output
    assert f"i2t and t2i: {len(given.texts)}/{len(given.texts)} items" in first.output
    for direction, anchors in (("i2t", 40), ("t2i", len(given.texts))):
        table = NegativeTable.open(tmp_path / "tables" / direction, given.pairs)
        for row, (rows, scores, lowest) in oracle(given, direction, 7).items():
            assert (table.negatives[row].tolist(), table.scores[row].tolist()) == (rows, scores)
            assert table.lowest_positive[row] == np.float32(lowest)
        assert f"{direction}: {anchors} anchors x 7 negatives, 0 shortfalls" in first.output
    assert "--metric cosine" in first.output
    assert "pandas.read_parquet(" in first.output
    before = files(tmp_path / "tables")
    again = run("mine", folder, "--k", 7, "--out", tmp_path / "tables")
    assert again.exit_code == 0
    assert again.output.count("already done") == 2
    assert "/40 anchors" not in again.output
    other = run("mine", folder, "--k", 8, "--out", tmp_path / "tables")
    assert other.exit_code == 3
    assert "nothing is overwritten" in other.output
    assert files(tmp_path / "tables") == before


def test_a_side_with_itself(problem, tmp_path):
    given = problem()
    folder = given.write(tmp_path / "vectors")
    for direction, said in (("t2t", "texts with each other"), ("i2i", "40 images with each other")):
        done = run("mine", folder, "--k", 40, "--direction", direction, "--out", tmp_path / "tables", "--memory", "1M")
        assert done.exit_code == 0, done.output
        assert said in done.output
        table = NegativeTable.open(tmp_path / "tables" / direction, given.pairs)
        offsets, others = given.pairs.positives_of(direction)
        for row, negatives in enumerate(table.negatives):
            own = set(others[offsets[row] : offsets[row + 1]].tolist())
            assert row in own
            assert not own & set(negatives[negatives >= 0].tolist())
            assert np.isnan(table.lowest_positive[row]) == (own == {row})
        assert run("check", tmp_path / "tables" / direction).exit_code == 0
    assert not list((tmp_path / "tables").glob(".search/*"))
    wrong = run("mine", folder, "--out", tmp_path / "tables", "--memory", "lots")
    assert (wrong.exit_code, "'lots' is not a size" in wrong.output) == (3, True)


def test_index_threads_and_metric(problem, tmp_path):
    given = problem()
    folder = given.write(tmp_path / "vectors")
    assert run("build-index", folder, "--out", tmp_path / "index").exit_code == 0
    again = run("build-index", folder, "--out", tmp_path / "index")
    assert again.exit_code == 0
    assert again.output.count("already done") == 2
    plain = run("mine", folder, "--k", 5, "--out", tmp_path / "a", "--threads", 1)
    stored = run("mine", folder, "--k", 5, "--out", tmp_path / "b", "--index", tmp_path / "index", "--threads", 3)
    assert (plain.exit_code, stored.exit_code) == (0, 0)
    assert str(tmp_path / "index") in stored.output
    assert files(tmp_path / "a") == files(tmp_path / "b")
    cosine = run("mine", folder, "--k", 5, "--out", tmp_path / "c", "--metric", "cosine")
    assert cosine.exit_code == 0
    assert "--metric cosine" not in cosine.output
    scores = pd.read_parquet(tmp_path / "c" / "i2t" / "negatives.parquet").score
    assert scores.abs().max() <= 1
    mixed = run("mine", folder, "--k", 5, "--out", tmp_path / "d", "--metric", "cosine", "--index", tmp_path / "index")
    assert mixed.exit_code == 3
    assert "another metric" in mixed.output
    one = run("build-index", folder, "--out", tmp_path / "one", "--side", "text")
    assert one.exit_code == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["text"]
    missing = run("mine", folder, "--k", 5, "--out", tmp_path / "e", "--index", tmp_path / "one", "--direction", "t2i")
    assert missing.exit_code == 3
    assert "no index artifact" in missing.output


def test_embeddings_of_the_trainer_give_the_same_tables(problem, tmp_path):
    given = problem()
    plain = given.write(tmp_path / "plain")
    made = tmp_path / "made"
    made.mkdir()
    (made / "pairs.csv").write_bytes((plain / "pairs.csv").read_bytes())
    for side, vectors in (("image", given.images), ("text", given.texts)):
        draft = Draft(LocalStore(made), side, EMBEDDINGS, {})
        parts = [
            draft.add_part(part_name(at), npy_bytes(vectors[start : start + 16]), len(vectors[start : start + 16]))
            for at, start in enumerate(range(0, len(vectors), 16))
        ]
        commit_embeddings(draft, side, given.pairs.ids(side), parts, vectors.shape[1], {})
    for folder in (plain, made):
        result = run("mine", folder, "--k", 5, "--out", tmp_path / f"of-{folder.name}")
        assert result.exit_code == 0, result.output
    for direction in ("i2t", "t2i"):
        names = (tmp_path / f"of-{kind}" / direction / "negatives.parquet" for kind in ("plain", "made"))
        assert len({path.read_bytes() for path in names}) == 1
    np.save(made / "images.npy", given.images)
    both = run("mine", made, "--out", tmp_path / "x")
    assert both.exit_code == 3
    assert "remove one" in both.output


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.parquet"])
def test_pairs_as_tsv_and_parquet_and_ids_by_row(problem, tmp_path, name):
    given = problem()
    folder = given.write(tmp_path / "vectors")
    for file in ("pairs.csv", "image_ids.txt", "text_ids.txt"):
        (folder / file).unlink()
    frame = pd.DataFrame({"split": "train", "text_id": given.pairs.text_rows, "image_id": given.pairs.image_rows})
    if name == "pairs.tsv":
        frame.to_csv(folder / name, sep="\t", index=False)
    else:
        frame.to_parquet(folder / name)
    result = run("mine", folder, "--k", 3, "--direction", "i2t", "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    anchors = pd.read_parquet(tmp_path / "t" / "i2t" / "negatives.parquet").anchor_id[::3]
    assert anchors.tolist() == list(map(str, range(40)))


def break_vectors(change):
    def breaking(folder: Path) -> None:
        np.save(folder / "images.npy", change(np.load(folder / "images.npy")))

    return breaking


def at(row: int, value: float):
    def change(vectors: np.ndarray) -> np.ndarray:
        vectors[row] = value
        return vectors

    return break_vectors(change)


def replace_text(name: str, old: str, new: str):
    def breaking(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return breaking


def write(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def without_a_positive(folder: Path) -> None:
    lines = (folder / "pairs.csv").read_text().splitlines()
    (folder / "pairs.csv").write_text("\n".join(line for line in lines if not line.startswith("7919,")) + "\n")


def cut_short(folder: Path) -> None:
    os.truncate(folder / "texts.npy", (folder / "texts.npy").stat().st_size - 4)


def both_pairs(folder: Path) -> None:
    (folder / "pairs.tsv").write_text("image_id\ttext_id\n")


BAD_FOLDERS = {
    "missing images": (remove("images.npy"), "images.npy: no such file"),
    "missing pairs": (remove("pairs.csv"), "no pairs file"),
    "two pairs files": (both_pairs, "exactly one"),
    "one dimension": (break_vectors(lambda v: v[:, 0]), "must be (rows, dim)"),
    "three dimensions": (break_vectors(lambda v: v[None]), "must be (rows, dim)"),
    "no dimension": (break_vectors(lambda v: v[0, 0]), "must be (rows, dim)"),
    "no row": (break_vectors(lambda v: v[:0]), "empty set"),
    "no column": (break_vectors(lambda v: v[:, :0]), "no vector at all"),
    "integers": (break_vectors(lambda v: v.astype("i4")), "dtype int32"),
    "complex": (break_vectors(lambda v: v.astype("c8")), "dtype complex64"),
    "words": (break_vectors(lambda v: v.astype("U4")), "must be float16"),
    "dims differ": (break_vectors(lambda v: v[:, :-1]), "dim 15 and texts dim 16"),
    "rows and ids differ": (break_vectors(lambda v: v[:-1]), "40 ids for 39 vectors"),
    "NaN": (at(1, np.nan), "row 1 (id '7919') holds NaN"),
    "infinity": (at(2, np.inf), "row 2 (id '5831') holds NaN or infinity"),
    "zeros": (at(39, 0), "holds only zeros"),
    "overflow in float32": (break_vectors(lambda v: v.astype("f8") * 1e300), "rounded to float32"),
    "zero in float32": (break_vectors(lambda v: v.astype("f8") * 1e-300), "rounded to float32: row 0"),
    "too long": (break_vectors(lambda v: v * np.float32(1e37)), "overflows float32"),
    "objects": (break_vectors(lambda v: v.astype(object)), "never unpickled"),
    "a pickle": (write("images.npy", pickle.dumps([1.0])), "not a .npy file"),
    "text, not npy": (write("images.npy", b"1,2,3\n"), "not a .npy file"),
    "empty npy": (write("texts.npy", b""), "not a .npy file"),
    "a zip": (write("texts.npy", b"PK\x03\x04" + b"\0" * 60), "not a .npy file"),
    "cut npy": (cut_short, "cut or damaged"),
    "duplicate id": (replace_text("image_ids.txt", "\n7919\n", "\n0\n"), "'0' occurs more than once"),
    "empty id": (replace_text("image_ids.txt", "\n7919\n", "\n\n"), "line 2 is empty"),
    "ids not UTF-8": (write("image_ids.txt", b"\xff\xfe\n"), "not UTF-8"),
    "too few ids": (write("text_ids.txt", b"a\nb\n"), "2 ids for"),
    "unknown image id": (
        replace_text("pairs.csv", "\n7919,", "\nwho,"),
        "unknown image id(s) in the pairs, first 'who'",
    ),
    "unknown text id": (replace_text("pairs.csv", "0,t", "0,u"), "unknown text id"),
    "no positive": (without_a_positive, "without a positive, first '7919'"),
    "no pair": (write("pairs.csv", b"image_id,text_id\n"), "no pairs"),
    "empty pairs": (write("pairs.csv", b""), "cannot be read as pairs"),
    "other columns": (write("pairs.csv", b"a,b\n1,2\n"), "give the columns image_id and text_id"),
    "ragged pairs": (write("pairs.csv", b"image_id,text_id\n1,2,3\n"), "cannot be read as pairs"),
    "binary pairs": (write("pairs.csv", b"image_id,text_id\n\xff\xfe,\x80\n"), "cannot be read as pairs"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_input_is_one_sentence(problem, tmp_path, name):
    breaking, sentence = BAD_FOLDERS[name]
    folder = problem().write(tmp_path / "vectors")
    breaking(folder)
    before = files(folder)
    result = run("mine", folder, "--k", 3, "--out", tmp_path / "tables")
    assert result.exit_code == 3, result.output
    assert sentence in result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in result.output
    assert files(folder) == before
    assert not list(tmp_path.glob("tables/**/manifest.json"))


def test_bad_parquet_pairs(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    (folder / "pairs.csv").unlink()
    for frame, sentence in (
        (pd.DataFrame({"image_id": ["0"], "caption": ["x"]}), "give the columns"),
        (pd.DataFrame({"image_id": ["0", None], "text_id": ["t0", "t0"]}), "lacks its image_id or text_id"),
    ):
        frame.to_parquet(folder / "pairs.parquet")
        result = run("mine", folder, "--out", tmp_path / "tables")
        assert (result.exit_code, sentence in result.output) == (3, True), result.output
    (folder / "pairs.parquet").write_bytes(b"PAR1 nothing PAR1")
    result = run("mine", folder, "--out", tmp_path / "tables")
    assert (result.exit_code, "cannot be read as pairs" in result.output) == (3, True)


def test_usage_and_k(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    for arguments in (["--k", 0], ["--direction", "up"], ["--metric", "l2"], ["--threads", 0], ["--nonsense"]):
        assert run("mine", folder, "--out", tmp_path / "t", *arguments).exit_code == 2
    assert run("mine", folder).exit_code == 2
    large = run("mine", folder, "--k", 41, "--out", tmp_path / "t")
    assert (large.exit_code, "k = 41 is larger than the gallery of 40 images" in large.output) == (3, True)
    assert not (tmp_path / "t").exists()
    nowhere = run("mine", tmp_path / "nowhere", "--out", tmp_path / "t")
    assert (nowhere.exit_code, "no such folder" in nowhere.output) == (3, True)


def test_shortfalls_are_said(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    result = run("mine", folder, "--k", 40, "--direction", "t2i", "--out", tmp_path / "t")
    assert result.exit_code == 0
    short = pd.read_parquet(tmp_path / "t" / "t2i" / "shortfalls.parquet")
    assert f"{len(short)} shortfalls" in result.output
    assert "shortfalls.parquet" in result.output


def test_damage_is_exit_code_4(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    tables, built = tmp_path / "tables", tmp_path / "index"
    assert run("mine", folder, "--k", 3, "--out", tables).exit_code == 0
    assert run("build-index", folder, "--out", built).exit_code == 0
    assert run("check", tables / "i2t").exit_code == 0
    assert run("check", tables).exit_code == 3
    for path, command in (
        (tables / "i2t" / "negatives.parquet", ["check", tables / "i2t"]),
        (tables / "i2t" / "manifest.json", ["check", tables / "i2t"]),
        (tables / "i2t" / "shortfalls.parquet", ["mine", folder, "--k", 3, "--out", tables]),
        (tables / "i2t" / "manifest.json", ["mine", folder, "--k", 3, "--out", tables]),
        (built / "text" / "index.bin", ["mine", folder, "--k", 3, "--out", tmp_path / "n", "--index", built]),
        (built / "image" / "index.bin", ["build-index", folder, "--out", built]),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        result = run(*command)
        assert result.exit_code == 4, result.output
        assert "error: " in result.output
        assert "Traceback" not in result.output
        path.write_bytes(whole)


def test_an_unwritable_folder(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    (tmp_path / "file").write_text("in the way")
    result = run("mine", folder, "--k", 3, "--out", tmp_path / "file")
    assert result.exit_code == 3, result.output
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything: permissions cannot be tested")
def test_permissions(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert run("mine", folder, "--k", 3, "--out", locked / "t").exit_code == 3
    (folder / "texts.npy").chmod(0)
    assert run("mine", folder, "--k", 3, "--out", tmp_path / "t").exit_code == 3


CLI = "import sys; from miner.cli import main; main(sys.argv[1:])"


@pytest.mark.parametrize("command", ["mine", "build-index"])
def test_a_disk_that_takes_no_more(problem, tmp_path, command):
    """A real limit on the size of files stops the write in its middle, as a full disk does."""
    folder = problem(images=400).write(tmp_path / "vectors")
    result = in_process(
        CLI,
        command,
        folder,
        "--out",
        tmp_path / "t",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert result.returncode == 75, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: the disk would not take the data")
    assert "Traceback" not in result.stderr
    assert [path for path in (tmp_path / "t").rglob("*") if path.is_file()] == []
    assert in_process(CLI, command, folder, "--out", tmp_path / "t").returncode == 0


def test_a_full_disk(problem, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by a root that is allowed to")
    try:
        folder = problem(images=400).write(tmp_path / "vectors")
        assert in_process(CLI, "build-index", folder, "--out", tmp_path / "index").returncode == 0
        unforeseen = "import miner.plan; miner.plan.check_fits = lambda *planned: None; " + CLI
        for cli, said in ((CLI, "64.0 KiB are free there; make room"), (unforeseen, "No space left")):
            for index in ([], ["--index", tmp_path / "index"]):
                result = in_process(cli, "mine", folder, "--out", disk / "t", *index)
                assert result.returncode == 75, result.stderr
                assert said in result.stderr
                assert [path for path in (disk / "t").rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", disk], check=True)


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "pydantic", "trainer", "pipelines", "pandas"}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
from miner.cli import main
main(sys.argv[1:])
"""


def test_works_without_torch_and_ray(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    for arguments in (
        ["build-index", folder, "--out", tmp_path / "index"],
        ["mine", folder, "--k", 5, "--out", tmp_path / "tables", "--index", tmp_path / "index"],
        ["check", tmp_path / "tables" / "t2i"],
    ):
        result = in_process(BLOCKED, *arguments)
        assert result.returncode == 0, result.stderr
    assert open_artifact(tmp_path / "tables" / "i2t", NEGATIVES).manifest.meta["anchors"] == 40


def test_without_faiss_it_says_what_to_install(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    missing = in_process(BLOCKED.replace('"pandas"', '"faiss"'), "mine", folder, "--k", 5, "--out", tmp_path / "t")
    assert missing.returncode == 3
    assert 'pip install "quintain[cpu]"' in missing.stderr
    remains = tmp_path / "remains" / "faiss"
    remains.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(remains.parent)!r}); " + CLI
    # An empty folder named faiss hides nothing that is installed, unless it stands alone: hide the rest.
    code = f"import sys, types; sys.modules['faiss'] = types.ModuleType('faiss'); {code}"
    empty = in_process(code, "mine", folder, "--k", 5, "--out", tmp_path / "t")
    assert empty.returncode == 3
    assert "empty folder" in empty.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["mine", "--help"], ["build-index", "-h"], ["check", "--help"], ["export", "--help"]]
)
def test_help_teaches_and_is_light(arguments):
    code = """
import sys
from miner.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "faiss", "ray", "numpy", "pyarrow", "pydantic", "pandas"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""
    result = in_process(code, *arguments)
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    assert "Example" in result.stdout
    if arguments == ["--help"]:
        assert "Exit codes: 0 done, 2 wrong usage, 3 bad input, 4 damaged" in " ".join(result.stdout.split())
