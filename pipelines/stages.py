"""The loop as data: which stages a run has, what each is made from, and what it will cost. Pure.

round 0     fit -> evaluate, analyze (if asked)
round r     encode-{image,text} (fit r-1) -> index-{image,text} -> mine-{i2t,t2i} -> fit -> evaluate, analyze
            with an approximate index tune-{i2t,t2i} before mine-{i2t,t2i}
at the end  report

With refresh = "async" a fit reads the tables of the round before, so that its own round's can be mined beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Side, sides
from pipelines.settings import Settings

__all__ = ["SHAPES_NOTHING", "Branch", "Data", "Stage", "Work", "declare"]

Work = Literal["encode", "index", "tune", "mine", "fit", "evaluate", "analyze", "report"]
Branch = Literal["training", "refresh"]
# Raised when what a stage writes for the same inputs changes: artifacts of older code are then not reused.
_REVISION: Mapping[str, int] = {
    "encode": 2, "index": 1, "tune": 1, "mine": 2, "fit": 4, "evaluate": 2, "analyze": 1, "report": 2,
}  # fmt: skip
_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "encode": ("torch",),
    "index": ("faiss-cpu", "faiss-gpu"),
    "tune": (),
    "mine": (),
    "fit": ("torch",),
    "evaluate": ("torch",),
    "analyze": ("torch",),
    "report": (),
}
SHAPES_NOTHING = ("executor", "stop", "watch")  # sections of a run file that no artifact depends on
_RUNS_MODEL = ("encode", "mine", "fit", "evaluate", "analyze")


@dataclass(frozen=True)
class Data:
    """What planning needs to know of the data: fingerprint per split, and how many items the training set has."""

    fingerprints: Mapping[str, str]
    num_images: int
    num_texts: int
    num_pairs: int
    # For the costs alone: bytes of a model's weights, how many elements an item has on average, and how many images and
    # texts the larger of dev and test has.
    weights: int = field(default=0, compare=False)
    elements: Mapping[Side, float] = field(default_factory=dict, compare=False)
    ranked: tuple[int, int] = field(default=(0, 0), compare=False)

    def rows(self, side: Side) -> int:
        return self.num_images if side == "image" else self.num_texts


@dataclass(frozen=True)
class Stage:
    """One artifact to make. `parents` maps a role to the name of the stage whose artifact plays it."""

    round: int
    work: Work
    target: str
    kind: str
    parents: tuple[tuple[str, str], ...]
    parameters: Mapping[str, Any] = field(compare=False)
    parts: int = 1
    unit: str = "task"
    disk: int = 0
    memory: int = 0
    libraries: tuple[str, ...] = ()  # of the model, beside what the work itself needs

    @property
    def label(self) -> str:
        """Its name inside the round: `mine-i2t`."""
        return f"{self.work}-{self.target}" if self.target else self.work

    @property
    def name(self) -> str:
        """Its name in the run: `r3/mine-i2t`."""
        return f"r{self.round}/{self.label}"

    @property
    def branch(self) -> Branch:
        """What it belongs to where tables are mined while a model trains."""
        return "refresh" if self.work in ("encode", "index", "tune", "mine") else "training"

    @property
    def folder(self) -> str:
        """Where its artifacts lie, one folder each, named by the first digits of their input key."""
        return f"rounds/{self.round:03d}/{self.label}"

    def inputs(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Everything that determines the artifact, given the fingerprints of the parents by role."""
        return {
            "parents": dict(fingerprints),
            "parameters": dict(self.parameters),
            "versions": {"stage": _REVISION[self.work], **_versions((*_LIBRARIES[self.work], *self.libraries))},
        }


def declare(settings: Settings, data: Data, last: int | None = None) -> list[Stage]:
    """All stages of a run, parents before children; of one that is stopped, up to its `last` round.

    Raises BadInput for a k that no gallery can fill.
    """
    last = settings.run.rounds if last is None else last
    if settings.loss.needs_tables:
        for direction in get_args(Direction):
            _check_counts(settings, data, direction)
    stages: list[Stage] = []
    trained_on = {round: settings.run.tables_of(round) for round in range(1, last + 1) if settings.loss.needs_tables}
    for round in range(last + 1):
        tables: tuple[tuple[str, str], ...] = ()
        if round in trained_on.values():
            stages += _mining(settings, data, round)
        if round in trained_on:
            tables = tuple((d, f"r{trained_on[round]}/mine-{d}") for d in get_args(Direction))
        start = (("start", f"r{round - 1}/fit"),) if round > 0 and not settings.run.restart else ()
        # On disk: weights, raw weights and two moments, and that twice more as epoch files while it trains.
        cost = (12 * data.weights, 2**29 + 6 * data.weights)
        parameters, epochs = _fit(settings, data, round, bool(tables)), settings.run.epochs_of(round)[1]
        stages.append(Stage(round, "fit", "", "checkpoint", start + tables, parameters, epochs, "epoch", *cost))
        parent = ("checkpoint", f"r{round}/fit")
        ranked: dict[str, Any] = {"data": dict(data.fingerprints)}
        stages.append(Stage(round, "evaluate", "", "metrics", (parent,), ranked, memory=_ranking(settings, data)))
        if settings.analyze.rounds == "all" or (settings.analyze.rounds == "last" and round == last):
            look = {key: parameters[key] for key in ("data", "loss")} | settings.analyze.model_dump(exclude={"rounds"})
            # A small set is counted in one smaller batch.
            look["batch_size"] = min(look["batch_size"] or settings.fit_config(round).batch_size, data.num_images)
            stages.append(Stage(round, "analyze", "", "counts", (parent, *tables), look, memory=2**29))
    sections = {name: section for name, section in settings.dump().items() if name not in SHAPES_NOTHING}
    look = {"data": data.fingerprints["train"], "settings": sections}
    shown = tuple((s.name, s.name) for s in stages if s.work in ("mine", "evaluate"))
    stages.append(Stage(last, "report", "", "report", shown, look, disk=2**24, memory=2**29))
    used = getattr(settings.model, "libraries", ())
    return [replace(stage, libraries=used) if stage.work in _RUNS_MODEL else stage for stage in stages]


def _check_counts(settings: Settings, data: Data, direction: Direction) -> None:
    mine, gallery = settings.mine.of(direction, 0), data.rows(sides(direction)[1])
    if mine.k > gallery:
        raise BadInput(
            f"mine.k = {mine.k} is larger than the gallery of {direction}: {data.num_images} images, {data.num_texts} "
            f"texts; ask for at most {gallery} of {direction}."
        )
    skipped = "skip_t" if direction == "i2t" else "skip_v"
    if getattr(settings.loss, skipped) >= mine.k:
        raise BadInput(
            f"loss.{skipped} = {getattr(settings.loss, skipped)}: mine.k = {mine.k} negatives of {direction} are all "
            "passed over; mine more, or skip fewer."
        )
    if settings.two_stage and mine.candidates(gallery) < mine.k:
        raise BadInput(
            f"mine.num_candidates = {mine.num_candidates} is smaller than mine.k = {mine.k} of {direction}: the "
            "model's own score picks the negatives among the candidates; search for several times k."
        )


def _ranking(settings: Settings, data: Data) -> int:
    """Bytes in memory to rank dev or test, pictures and features not counted: blocks of dot products, or every score
    of a cross-attention model with the elements that it compares.
    """
    dim, rows = 4 * int(settings.model.dim), dict(zip(get_args(Side), data.ranked, strict=True))
    if not settings.two_stage:
        return int(2**29 + data.weights + dim * sum(data.ranked))
    elements = sum(rows[side] * (1 + data.elements.get(side, 1)) * dim for side in rows)
    scores = 4 * data.ranked[0] * data.ranked[1]
    return int(2**29 + data.weights + elements + scores + _comparing(settings))


def _comparing(settings: Settings) -> int:
    """Bytes that a cross-attention model may hold to compare, and as much again for what is attended to; a model of the
    user's does not say."""
    return 2 * int(getattr(settings.model, "memory_mib", 0)) << 20


def _mining(settings: Settings, data: Data, round: int) -> list[Stage]:
    stages = []
    width = int(settings.model.dim) * 4
    two_stage = settings.two_stage
    either = settings.mine.of("i2t", round)
    # What only a two-stage search reads does not make a plain one stale; `recall` is read by tuning alone. Of verdicts
    # the bytes count, not where they lay.
    unread = {"recall", "recall_sample", "verdicts", "verdicts_from"} | ({"element_dtype"} if not two_stage else set())
    unread |= {"num_candidates"} if not (two_stage or either.selective) else set()
    unread |= {name for name in ("rules", "verdicts_sha256") if not getattr(either, name)}
    train = {"data": data.fingerprints["train"]}
    encoded = {side: (side, f"r{round}/encode-{side}") for side in get_args(Side)}
    for side in get_args(Side):
        parents = (("checkpoint", f"r{round - 1}/fit"),)
        parameters = train | {"side": side, **settings.encode.model_dump(mode="json", exclude=unread)}
        rows, per = data.rows(side), settings.encode.shard_rows
        each = width
        if two_stage:
            size = 2 if settings.encode.element_dtype == "float16" else 4
            each += int(data.elements.get(side, 1) * settings.model.dim * size)
        cost: dict[str, Any] = {"disk": rows * each, "memory": 2**29 + 3 * per * each}
        stages.append(Stage(round, "encode", side, "embeddings", parents, parameters, -(-rows // per), "shard", **cost))
    indexes = {side: _index(settings, data, side) for side in get_args(Side)}
    for side in get_args(Side):
        parents = (("embeddings", encoded[side][1]),)
        made = indexes[side]
        cost = {"disk": made.disk, "memory": data.rows(side) * width + made.build}
        stages.append(Stage(round, "index", side, "index", parents, made.parameters, **cost))
    mined = []  # after what is tuned: both directions are then mined by the same workers
    for direction in get_args(Direction):
        mine = settings.mine.of(direction, round)
        anchor, gallery = sides(direction)
        sources = (*encoded.values(), ("index", f"r{round}/index-{gallery}"))
        memory = 2**28 + (data.num_images + data.num_texts) * width + indexes[gallery].search
        if indexes[gallery].approximate:
            searched = mine.searched(data.rows(gallery), two_stage)
            sample = {"recall_sample": mine.recall_sample or 1000, "seed": settings.run.seed}
            parameters = train | {"direction": direction, "k": searched, "recall": mine.recall, **sample}
            stages.append(Stage(round, "tune", direction, "tuned", sources, parameters, memory=memory))
            sources = (*sources, ("tuned", f"r{round}/tune-{direction}"))
        mining = mine.model_dump(mode="json", exclude=unread)
        parameters = train | {"direction": direction, "round": round, **mining}
        if two_stage:
            sources = (*sources, ("checkpoint", f"r{round - 1}/fit"))
            parameters |= {"recall_sample": mine.recall_sample or 100, "seed": settings.run.seed}
        rows, per = data.rows(anchor), mine.shard_anchors
        # Elements are memory-mapped.
        cost = {"disk": rows * mine.k * 10, "memory": memory + (_comparing(settings) if two_stage else 0)}
        mined.append(
            # Of a two-stage search, one part more measures what its first stage missed.
            Stage(
                round, "mine", direction, "negatives", sources, parameters, -(-rows // per) + two_stage, "shard", **cost
            )
        )
    return stages + mined


@dataclass(frozen=True)
class _Index:
    """What an index is made from, and bytes: on disk, in memory when it is searched, and when it is built."""

    parameters: Mapping[str, Any]
    disk: int
    search: int
    build: int

    @property
    def approximate(self) -> bool:
        return bool(self.parameters["index"] != "flat")


def _index(settings: Settings, data: Data, side: Side) -> _Index:
    """Raises BadInput for a factory string that cannot work with so many vectors."""
    from miner.index.factory import Config, estimate

    rows, dim = data.rows(side), int(settings.model.dim)
    vectors, factory = 4 * rows * dim, settings.index.of(rows)
    if factory == "Flat":
        return _Index({"index": "flat"}, vectors, vectors, vectors)
    config = Config(factory, settings.index.train_sample or 0, settings.run.seed)
    try:
        needed = estimate(config, rows, dim)
    except BadInput as wrong:
        raise BadInput(f"[index] over {rows} {side}s: {wrong}") from wrong
    return _Index({"index": "factory", **asdict(config)}, needed.disk, needed.search, needed.build)


def _fit(settings: Settings, data: Data, round: int, mined: bool) -> dict[str, Any]:
    """Round 0 sees no offline negative, so that changing an offline setting leaves it done."""
    loss, fit = settings.loss, settings.fit_config(round)
    if not mined:
        loss, fit = loss.online, fit.model_copy(update={"online_epochs": 0})
    return {
        "data": data.fingerprints["train"],
        "model": _section(settings, "model"),
        "loss": {"name": type(loss).__module__.rpartition(".")[2], **loss.model_dump(mode="json")},
        "fit": fit.model_dump(mode="json"),
        "first_epoch": settings.run.epochs_of(round)[0],
        "round": round,
    }


def _section(settings: Settings, section: str) -> dict[str, Any]:
    dumped: dict[str, Any] = settings.dump()[section]
    return dumped


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
