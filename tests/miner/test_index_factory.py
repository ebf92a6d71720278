"""Indexes that a FAISS factory string names: what they find, in odd sizes too, what they are refused for, their bytes,
their memory, and the command that builds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from miner import index
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.store import LocalStore
from miner.cli import main
from miner.index import SearchSettings, _faiss, factory
from miner.index._strings import AUTO_FROM, automatic

# The least recall@10 that each must reach with all the effort it can make; codes of few bits alone are coarse
FAMILIES = {
    "Flat": 1.0,
    "IVF16,Flat": 1.0,
    "IVF16,SQ8": 0.95,
    "IVF16,SQfp16": 0.99,
    "SQ8": 0.95,
    "HNSW16": 0.95,
    "HNSW16,SQ8": 0.9,
    "HNSW16,Flat,RFlat": 0.95,
    "IVF16_HNSW8,SQ8": 0.95,
    "PQ8x4fs": 0.4,
    "IVF16,PQ8x4fs": 0.4,
    "IVF16,PQ8x4fs,RFlat": 0.95,
    "IVF16,PQ4x6": 0.3,
    "IVF16,RaBitQ4": 0.8,
    "PCA8,IVF16,Flat": 0.3,
    "PCAR8,IVF16,SQ8,RFlat": 0.9,
    "OPQ8,IVF16,PQ8x4fs": 0.4,
    "OPQ4_8,IVF16,PQ4x4fs,RFlat": 0.8,
    "RR16,Flat": 0.99,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = _faiss.set_threads(None)
    _faiss.set_threads(1)
    yield
    _faiss.set_threads(before)


def clustered(rows: int = 2000, dim: int = 16, seed: int = 0, shift: float = 0.7) -> np.ndarray:
    """Vectors around 40 centres, with a mean that is not zero."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    return (centres[rng.integers(40, size=rows)] + rng.normal(size=(rows, dim)) * 0.6 + shift).astype("f4")


def most(built: factory.Factory) -> SearchSettings:
    """All the effort that it can make."""
    return SearchSettings(
        **{name: min(value, 64 if name == "k_factor" else 512) for name, value in built.knobs.items()}
    )


def recall(built: factory.Factory, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    """Share of the k largest inner products, found by comparing all, that are among the first k."""
    truth = np.argsort(-(queries.astype("f8") @ vectors.astype("f8").T), axis=1)[:, :k]
    rows = built.search(queries, k)[1]
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(rows, truth, strict=True)]))


@pytest.mark.parametrize("string", FAMILIES)
def test_every_family_finds_by_inner_product(string):
    vectors, queries = clustered(), clustered(50, seed=1)
    built = factory.build(vectors, factory.Config(string))
    built.set(most(built))
    assert recall(built, vectors, queries, 10) >= FAMILIES[string]
    scores, rows = built.search(queries, 10)
    assert (np.diff(scores, axis=1) <= 1e-4).all()
    assert (rows >= 0).all()
    assert (built.size, built.dim, built.kind) == (2000, 16, "factory")
    assert built.max_norm == pytest.approx(np.linalg.norm(vectors, axis=1).max(), rel=1e-6)
    assert built.exact == (string == "Flat")
    if _faiss.num_gpus() == 0:
        assert (built.device, built.max_depth) == ("cpu", 2000)


def test_pca_keeps_the_order_of_inner_products_where_the_mean_is_far_from_zero():
    """FAISS's own PCA subtracts the mean, which changes the order: here half of the neighbours are others."""
    vectors, queries = clustered(shift=3.0), clustered(50, seed=1)
    ours = factory.build(vectors, factory.Config("PCA14,Flat"))
    module = _faiss.faiss()
    theirs = module.index_factory(16, "PCA14,Flat", module.METRIC_INNER_PRODUCT)
    theirs.train(vectors)
    theirs.add(vectors)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = theirs.search(queries, 10)[1]
    share = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found, truth, strict=True)])
    assert recall(ours, vectors, queries, 10) > share + 0.1


@pytest.mark.parametrize("string", ["Flat", "SQ8", "HNSW8", "IVF1,Flat", "IVF1,SQ8", "HNSW4,SQ8"])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_odd_sizes(string, rows):
    vectors = clustered(rows)
    built = factory.build(vectors, factory.Config(string))
    built.set(most(built))
    assert built.max_depth <= rows
    found = built.search(vectors, rows)[1]
    assert set(found.ravel().tolist()) <= set(range(rows))
    if "SQ" not in string and "HNSW" not in string:
        assert (np.sort(found, axis=1) == np.arange(rows)).all()


def test_slots_without_a_result_are_empty():
    vectors = clustered(300)
    built = factory.build(vectors, factory.Config("IVF16,Flat"))
    built.set(SearchSettings(nprobe=1))
    scores, rows = built.search(vectors[:20], 290)
    assert (rows == -1).any()
    assert (scores[rows == -1] < -1e30).all()
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in rows)


@pytest.mark.parametrize("string", [*FAMILIES, "IVF16,Flat,Refine(SQfp16)"])
def test_the_same_bytes_twice_and_back(string, tmp_path):
    vectors = clustered(600)
    config = factory.Config(string, seed=3)
    first, second = (factory.build(vectors, config) for _ in range(2))
    assert first.dumps() == second.dumps()
    first.write(tmp_path / "index.bin")
    assert (tmp_path / "index.bin").read_bytes() == first.dumps()
    again = factory.read(tmp_path / "index.bin", first.about)
    assert again.dumps() == first.dumps()
    assert (again.factory, again.config, again.max_norm) == (string, config, first.max_norm)
    assert np.array_equal(again.search(vectors[:9], 5)[1], first.search(vectors[:9], 5)[1])


@pytest.mark.parametrize("string", ["IVF16,Flat", "IVF16,SQ8", "IVF16,PQ4x4fs", "IVF16,PQ4x4fs,RFlat", "SQ8", "Flat"])
def test_bytes_do_not_depend_on_threads_blocks_or_shards(string, monkeypatch, tmp_path):
    vectors = clustered(3000)
    config = factory.Config(string)
    whole = factory.build(vectors, config)
    _faiss.set_threads(2)
    assert factory.build(vectors, config).dumps() == whole.dumps()
    mapped = tmp_path / "vectors.npy"
    np.save(mapped, vectors)
    assert factory.build(np.load(mapped, mmap_mode="r"), config).dumps() == whole.dumps()
    trained = factory.empty(vectors, config)
    shards = [factory.filled(trained, vectors[start : start + 1000]) for start in range(0, 3000, 1000)]
    merged = factory.merged(shards)
    assert (merged.size, merged.max_norm) == (whole.size, whole.max_norm)
    assert np.array_equal(merged.search(vectors[:50], 20)[1], whole.search(vectors[:50], 20)[1])
    if "fs" not in string:  # which leave what was there before in unused places
        assert merged.dumps() == whole.dumps()
    monkeypatch.setattr("miner.index._grown.BLOCK", 1)
    assert factory.build(vectors, config).dumps() == whole.dumps()


def test_what_depends_on_threads_is_known():
    """Turned vectors and graphs; the others are shown not to, above."""
    steady = {string for string in FAMILIES if factory.steady(factory.Config(string), 2000, 16)}
    assert steady == {s for s in FAMILIES if not any(word in s for word in ("PCA", "OPQ", "RR", "HNSW"))}
    assert factory.steady(factory.Config("auto"), 5_000_000, 16)
    assert not factory.steady(factory.Config("auto"), 100_000_000, 16)  # its centres are found by a graph


def test_seed_and_training_sample_count():
    vectors = clustered(5000)
    made = {
        factory.build(vectors, factory.Config("IVF16,Flat", sample, seed)).dumps()
        for sample, seed in ((0, 0), (0, 1), (500, 0), (500, 1))
    }
    assert len(made) == 4
    half = factory.build(vectors.astype("f2"), factory.Config("IVF16,Flat"))
    assert half.size == 5000


def test_graphs_cannot_be_merged():
    vectors = clustered(200)
    trained = factory.empty(vectors, factory.Config("HNSW8"))
    with pytest.raises(BadInput, match="cannot be merged"):
        factory.merged([factory.filled(trained, vectors[:100]), factory.filled(trained, vectors[100:])])


def test_auto_goes_by_the_number_of_vectors():
    assert automatic(1) == automatic(AUTO_FROM - 1) == "Flat"
    assert automatic(AUTO_FROM) == "IVF1024,SQ8"
    assert automatic(1_000_000) == "IVF4096,SQ8"
    assert automatic(10_000_000) == "IVF16384,SQ8"
    assert automatic(100_000_000) == "IVF32768_HNSW32,SQ8"
    assert factory.build(clustered(50), factory.Config("auto")).exact


REFUSED = {
    "nonsense": "could not parse",
    "": "could not parse",
    "IVF16,Flat;rm -rf": "could not parse",
    "IVF4096,SQ8": "trained on at least 4,096 vectors.*there are 100.*IVF2,SQ8",
    "IVF0,Flat": "lists",
    "IVF99999999999999999999,Flat": "lists",
    "PQ7x4fs": "PQ7 cuts 16 numbers into 7 equal parts; PQ2, PQ4, PQ8 would fit",
    "OPQ5_10,IVF2,PQ4x4fs": "cuts 10 numbers into 5|cuts 10 numbers into 4",
    "IVF2,PQ8": "256 vectors",
    "IVF2,PQ8x16": "bits",
    "HNSW0": "2 to 256 links",
    "HNSW32,PQ8x4": "Euclidean|could not parse",
    "HNSW32_PQ8": "Euclidean",
    "LSH": "inner products",
    "IMI2x4,Flat": "inner prod",
    "IVF2,PQ8+8": "inner product",
    "PCAW8,Flat": "whitening",
    "PCA64,Flat": "dim 16, which cannot become 64",
    "IDMap,Flat": "leave IDMap out",
    "L2norm,Flat": "--metric cosine",
    "NSG16": "all vectors at once",
    "CAGRA32": "CAGRA",
}


@pytest.mark.parametrize("string", REFUSED)
def test_what_cannot_work_is_refused_with_what_fits(string):
    with pytest.raises(BadInput, match=REFUSED[string]) as refused:
        factory.build(clustered(100), factory.Config(string))
    assert string in str(refused.value)
    assert "project/faiss" not in str(refused.value)
    with pytest.raises(BadInput, match=REFUSED[string]):
        factory.estimate(factory.Config(string), 100, 16)


def test_settings_are_checked():
    vectors = clustered(500)
    lists, graph = (factory.build(vectors, factory.Config(string)) for string in ("IVF16,Flat", "HNSW8"))
    assert (set(lists.knobs), set(graph.knobs)) == ({"nprobe"}, {"ef_search"})
    assert set(factory.build(vectors, factory.Config("IVF16,SQ8")).knobs) == {"nprobe", "k_factor"}
    assert factory.build(vectors, factory.Config("Flat")).knobs == {}
    with pytest.raises(BadInput, match="HNSW8 has no nprobe; it takes ef_search"):
        graph.set(SearchSettings(nprobe=3))
    for nprobe in (0, 17):
        with pytest.raises(BadInput, match=f"nprobe = {nprobe}.*1 to 16"):
            lists.set(SearchSettings(nprobe=nprobe))
    with pytest.raises(BadInput, match=r"train_sample = 3.*16 lists"):
        factory.build(vectors, factory.Config("IVF16,Flat", train_sample=3))
    with pytest.raises(BadInput, match="no vectors"):
        factory.build(vectors[:0], factory.Config("IVF16,Flat"))
    with pytest.raises(BadInput, match="unexpected keyword"):
        index.build("factory", vectors, {"strings": "Flat"})
    lists.set(SearchSettings(nprobe=5))
    assert lists.settings == SearchSettings(nprobe=5)


@pytest.mark.parametrize("string", [*FAMILIES, "IVF16,Flat,Refine(SQfp16)"])
def test_the_file_is_as_large_as_foretold(string):
    vectors = clustered(3000, dim=32)
    config = factory.Config(string)
    foretold = factory.estimate(config, 3000, 32)
    assert foretold.disk == pytest.approx(len(factory.build(vectors, config).dumps()), rel=0.03)
    assert foretold.disk <= foretold.search <= 1.5 * foretold.disk
    assert foretold.build >= foretold.search
    assert factory.estimate(config, 300_000, 32).disk > 50 * foretold.disk


def test_a_damaged_file_is_refused_and_an_intact_one_read(tmp_path):
    vectors = clustered(400)
    built = factory.build(vectors, factory.Config("IVF8,SQ8"))
    draft = Draft(LocalStore(tmp_path), "text", index.INDEX, {"kind": "factory"})
    artifact = index.save(draft, built, {"side": "text"})
    assert artifact.manifest.meta["factory"] == "IVF8,SQ8"
    assert [path.name for path in sorted((tmp_path / "text").iterdir())] == ["index.bin", "manifest.json"]
    again = index.load(open_artifact(tmp_path / "text", index.INDEX))
    assert again.dumps() == built.dumps()
    assert again.max_norm == built.max_norm
    path = tmp_path / "text" / "index.bin"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 50):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedArtifact, match=r"index\.bin"):
            index.load(open_artifact(tmp_path / "text", index.INDEX))
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedArtifact):
        index.load(open_artifact(tmp_path / "text", index.INDEX))


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_build_index_by_a_string(problem, tmp_path):
    folder: Path = problem(images=200).write(tmp_path / "vectors")
    out = tmp_path / "index"
    first = run("build-index", folder, "--factory", "IVF8,SQ8", "--out", out)
    assert first.exit_code == 0, first.output
    assert "building IVF8,SQ8 over 200 vectors; takes about" in first.output
    device = "gpu" if _faiss.num_gpus() else "cpu"
    assert f"searched on the {device}" in first.output
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = run("build-index", folder, "--factory", "IVF8,SQ8", "--out", out)
    assert again.output.count("already done") == 2
    for other in (["--factory", "IVF4,SQ8"], ["--factory", "IVF8,SQ8", "--seed", 1], []):
        refused = run("build-index", folder, *other, "--out", out)
        assert refused.exit_code == 3
        assert "nothing is overwritten" in refused.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    auto = run("build-index", folder, "--factory", "auto", "--out", tmp_path / "auto", "--side", "image")
    assert auto.exit_code == 0, auto.output
    assert "index of images: Flat, 200 vectors" in auto.output
    assert open_artifact(tmp_path / "auto" / "image", index.INDEX).manifest.meta["kind"] == "flat"
    bad = run("build-index", folder, "--factory", "IVF500,SQ8", "--out", tmp_path / "bad", "--side", "image")
    assert bad.exit_code == 3
    assert "500 lists are trained on at least 500 vectors" in bad.output


@pytest.mark.skipif("_faiss.num_gpus() == 0", reason="needs a GPU and faiss-gpu")
@pytest.mark.parametrize("string", ["IVF16,Flat", "IVF16,SQ8", "HNSW16"])
def test_on_a_gpu(string):
    vectors, queries = clustered(), clustered(50, seed=1)
    built = factory.build(vectors, factory.Config(string))
    built.set(most(built))
    assert recall(built, vectors, queries, 10) >= FAMILIES[string]
    if string == "HNSW16":
        assert built.device == "cpu"
        assert "not on the GPU" in built.note
    else:
        assert (built.device, built.note) == ("gpu", "")
        assert built.max_depth <= _faiss.MAX_GPU_DEPTH
