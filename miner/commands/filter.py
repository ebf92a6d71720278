"""`miner filter`, and the same selection for whoever has candidates at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import files_in
from miner.commands.shown import ALOUD, FOLDER, OUT, THREADS, Voice, refuse, summary
from miner.commands.stored import deeper, finders
from miner.spoken import Described

if TYPE_CHECKING:
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.manifest import Artifact, Draft
    from miner.artifacts.pairs import Direction, Side, Within
    from miner.filters import Chosen
    from miner.folder import Folder
    from miner.select import Selection

__all__ = ["RULES", "Rules", "check_looks", "filter_candidates", "filter_direction"]

_FILE = LocalPath()
_DIRECTIONS: tuple[Direction | Within, ...] = ("i2t", "t2i", "i2i", "t2t")


class Rules(Described):
    """A command whose help ends with the rules."""

    section = "Rules, each with its settings"
    place = Path(__file__).parents[1] / "filters"


RULES = click.option(
    "--rule",
    "said",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    shell_complete=files_in(Rules.place, "default", dashed=True),
    help="Drop candidates by this rule; several are gone through in their order. `default` is look-alike:share=0.25, "
    "measured on human judgements.",
)


@click.command("filter", cls=Rules)
@FOLDER
@OUT
@click.option("--candidates", "source", required=True, type=_FILE, help="Folder with candidates, one per direction.")
@RULES
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@click.option("--direction", type=click.Choice(_DIRECTIONS), help="This one alone. [default: those that were searched]")
@click.option("--texts", type=_FILE, help="Table of id (or text_id) and text, for rules that look at texts.")
@click.option("--images", type=_FILE, help="Table of id (or image_id) and path, for rules that look at pictures.")
@click.option(
    "--max-candidates",
    type=click.IntRange(min=1),
    help="Search no deeper for an anchor that is left with fewer than k. [default: 16 times the candidates]",
)
@click.option(
    "--index",
    "index_folder",
    type=_FILE,
    help="The index that found the candidates, where it is an approximate one: to search deeper through.",
)
@click.option("--no-deepen", is_flag=True, help="Search no deeper at all.")
@THREADS
def filter_candidates(
    folder: Path,
    out: Path,
    source: Path,
    said: tuple[str, ...],
    k: int,
    direction: Direction | Within | None,
    texts: Path | None,
    images: Path | None,
    max_candidates: int | None,
    index_folder: Path | None,
    no_deepen: bool,
    threads: int | None,
) -> None:
    """Choose the k hardest negatives of every anchor from candidates that were searched before, without those that a
    rule drops: per direction one table below --out.

    \b
    Examples:
        miner filter vectors/ --candidates candidates/ --rule default --k 50 --out tables/
        miner filter vectors/ --candidates candidates/ --rule same-text --rule relative-margin:margin=0.05 \\
            --rule hub-cap:most=100 --texts captions.csv --k 50 --out tables/

    FOLDER holds the vectors that the candidates were searched in. What was dropped, and by which rule, is listed in
    dropped.parquet beside the table. An anchor that is left with fewer than k is searched deeper (where an approximate
    index found the candidates, with that --index); who still has fewer is listed with the reason in shortfalls.parquet,
    and nothing is padded.
    """
    from miner.artifacts.lock import hold
    from miner.filters import chosen
    from miner.folder import open_folder
    from miner.index._faiss import set_threads

    rules = chosen(said)
    refuse(no_deepen, "bounds how deep is searched, and --no-deepen is there", "max_candidates")
    refuse(no_deepen, "is to search deeper, and --no-deepen is there", "index_folder")
    check_looks(rules)
    opened = open_folder(folder)
    found = _candidates(source, opened, direction)
    wanted = [direction] if direction else list(found)
    threads = set_threads(threads)
    through = partial(deeper, opened, finders(index_folder, source, opened, found), threads) if index_folder else None
    filtering = Filtering(opened, found, rules, k, max_candidates, not no_deepen, texts, images, threads, through)
    click.get_current_context().with_resource(hold(out))
    for each in wanted:  # before the first is written
        filtering.selection(each)
    for each in wanted:
        filter_direction(out, filtering, each)


def check_looks(rules: Sequence[Chosen]) -> None:
    """Raise BadInput for texts or pictures that no rule looks at."""
    looked = {side for rule in rules for side in rule.contents}
    for side in ("text", "image"):
        refuse(side not in looked, f"are for rules that look at {side}s, and there is none", f"{side}s")


@dataclass
class Filtering:
    """What `miner filter` was asked for. `candidates` were searched in the vectors of `opened`, by direction; `deeper`
    searches those of an approximate index deeper, where that is at hand. `texts` and `images` are tables of what items
    are; by row, `at_hand` says it without one."""

    opened: Folder
    candidates: Mapping[Direction | Within, Candidates]
    rules: Sequence[Chosen]
    k: int
    max_candidates: int | None = None
    deepen: bool = True
    texts: Path | None = None
    images: Path | None = None
    threads: int = 1
    deeper: Callable[[Candidates], Callable[..., Any]] | None = None
    at_hand: Mapping[Side, Sequence[str]] = field(default_factory=dict)
    _held: dict[Any, Any] = field(default_factory=dict)

    def selection(self, direction: Direction | Within) -> Selection:
        """Raises BadInput for candidates of other vectors, and for a rule that lacks something."""
        from miner.filters.agreement import opposite
        from miner.select import Selection

        candidates = self.candidates[direction]
        self._check_vectors(candidates)
        # What an approximate index found is not the beginning of an exact search.
        deeper = self._deepener if candidates.provenance["index"] == "flat" else self.deeper
        return Selection(
            candidates,
            self.opened.pairs,
            self.rules,
            self.k,
            vectors={"image": self._vectors("image", candidates), "text": self._vectors("text", candidates)},
            opposite=self.candidates.get(opposite(direction)) if any(rule.opposite for rule in self.rules) else None,
            contents=self.contents,
            deepen=deeper(candidates) if self.deepen and deeper else None,
            max_candidates=self.max_candidates,
            threads=self.threads,
        )

    def check(self) -> None:
        """Raise BadInput for files that the rules name, texts or pictures that they look at, that are not there."""
        for rule in self.rules:
            rule.settings()
            for side in rule.contents:
                self.contents(side)

    def contents(self, side: Side) -> Sequence[str]:
        """The texts, or the paths of the pictures, by row. Raises BadInput where nobody said what they are."""
        found: Sequence[str] = self._once(("contents", side), lambda: self._read_contents(side))
        return found

    def outside(self) -> dict[str, str]:
        """Hashes of the texts and pictures that the rules look at. Raises BadInput."""
        looked_at = sorted({side for rule in self.rules for side in rule.contents})
        return {side: self._once(("hash", side), partial(self._hash, side)) for side in looked_at}

    def _read_contents(self, side: Side) -> Sequence[str]:
        from miner.artifacts.errors import BadInput
        from miner.export._contents import Contents

        if side in self.at_hand:
            return self.at_hand[side]
        path = self.texts if side == "text" else self.images
        what = "text" if side == "text" else "path"
        if path is None:
            raise BadInput(f"a rule looks at the {side}s themselves; give a table of id and {what} with --{side}s.")
        found = Contents.read(path, side, self.opened.pairs.ids(side))
        if found.kind != what:
            raise BadInput(
                f"{path}: holds a {found.kind} for every {side}, but rules need its {what}; name that column."
            )
        return found.values if side == "text" else [str(path.parent / each) for each in found.values]

    def _hash(self, side: Side) -> str:
        import hashlib

        values = self.contents(side)
        if side == "image":
            from miner.filters._pictures import digest, each_file

            values = each_file(values, digest, self.threads)
        whole = hashlib.sha256()
        for row in self.opened.pairs.order(side):
            encoded = values[row].encode("utf-8", "surrogatepass")
            whole.update(len(encoded).to_bytes(8, "little") + encoded)
        return whole.hexdigest()

    def _check_vectors(self, candidates: Candidates) -> None:
        from miner.artifacts.errors import BadInput

        searched = candidates.provenance.get("vectors")
        if searched != self.opened.fingerprints:
            raise BadInput(
                f"{self.opened.pairs.name}: the vectors beside it are not those in which the candidates of "
                f"{candidates.direction} were searched; give that folder, or search in this one."
            )

    def _vectors(self, side: Side, candidates: Candidates) -> Any:
        metric = str(candidates.provenance["metric"])
        return self._once((side, metric), lambda: self.opened.vectors(side, metric))

    def _deepener(self, candidates: Candidates) -> Callable[..., Any]:
        from miner.artifacts.pairs import sides
        from miner.index import build
        from miner.nearest import mine_block

        anchors, gallery = (self._vectors(side, candidates) for side in sides(candidates.direction))

        def deepen(rows: Any, depth: int) -> Any:
            index = self._once(("index", candidates.direction), lambda: build("flat", gallery))
            pairs, direction = self.opened.pairs, candidates.direction
            return mine_block(anchors[rows], index, gallery, pairs, direction, depth, rows, threads=self.threads)

        return deepen

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]


def filter_direction(out: Path, filtering: Filtering, direction: Direction | Within, voice: Voice = ALOUD) -> Artifact:
    """Write the table of one direction below `out`, which the caller holds, and say what came of it."""
    from miner.select import write_selection

    selection = filtering.selection(direction)
    draft = _draft(out, filtering, selection)
    done = draft.committed()
    if done is not None:
        done.verify()
        voice.say(f"{direction}: already done")
    else:
        known = selection.candidates.provenance
        provenance = {name: known.get(name) for name in ("round", "metric", "index", "checkpoint", "vectors")}
        provenance |= {name: known[name] for name in ("factory", "search", "recall") if name in known}
        if outside := filtering.outside():
            provenance["contents"] = outside
        done = write_selection(draft, selection, provenance, voice.progress(str(direction), "anchors", brief=True))
    summary(direction, done, voice.say)
    _show_dropped(done, voice.say)
    voice.say(
        f"    hand it on: miner export {done.where} --pairs {filtering.opened.pairs.name} --format jsonl "
        f"--out {direction}.jsonl"
    )
    return done


def _draft(out: Path, filtering: Filtering, selection: Selection) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NEGATIVES
    from miner.artifacts.store import LocalStore

    inputs = {
        "pairs": filtering.opened.pairs.fingerprint,
        **filtering.opened.fingerprints,
        "direction": selection.direction,
        "k": selection.k,
        **selection.about(),
        "deepen": filtering.deepen,
        "contents": filtering.outside(),
    }
    return Draft(LocalStore(out), str(selection.direction), NEGATIVES, inputs)


def _candidates(
    source: Path, opened: Folder, direction: Direction | Within | None
) -> dict[Direction | Within, Candidates]:
    """The candidates in a folder, by direction. Raises BadInput when there are none, or not those of `direction`."""
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import MANIFEST

    found: dict[Direction | Within, Candidates] = {
        each: Candidates.open(source / each, opened.pairs)
        for each in _DIRECTIONS
        if (source / each / MANIFEST).exists()
    }
    if not found:
        raise BadInput(
            f"{source}: no candidates here; give the folder that holds {' or '.join(_DIRECTIONS[:2])}: OUT/candidates "
            "of `miner mine --rule ... --out OUT`."
        )
    if direction is not None and direction not in found:
        raise BadInput(f"{source}: no candidates of {direction}, only of {', '.join(found)}; search that direction.")
    return found


def _show_dropped(artifact: Artifact, say: Callable[[str], object]) -> None:
    """Who dropped how many, and how much deeper had to be searched."""
    meta = artifact.manifest.meta
    dropped: dict[str, int] = meta["dropped"]
    looked = meta["negatives"] + sum(dropped.values())
    for rule, count in dropped.items():
        say(f"    {count:>12,} candidates ({count / max(looked, 1):.1%} of those looked at) dropped by {rule}")
    say(f"    {meta['negatives']:>12,} kept ({meta['negatives'] / max(looked, 1):.1%})")
    for depth, anchors in sorted((int(depth), anchors) for depth, anchors in meta["deepened"].items()):
        say(f"    {anchors:,} anchors were searched {depth:,} deep")
    say(f"    what was dropped, and why: {artifact.where}/dropped.parquet")
