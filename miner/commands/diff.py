"""`miner diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import TABLE

if TYPE_CHECKING:
    from miner.artifacts.place import Place
    from miner.difference import Difference, Verdict
    from miner.rows import Rows

__all__ = ["diff"]


@click.command()
@click.argument("old", type=TABLE)
@click.argument("new", type=TABLE)
@click.option("--k", type=click.IntRange(min=1), help="Compare the k hardest. [default: as many as both tables hold]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(old: Place, new: Place, k: int | None, as_json: bool) -> None:
    """Compare two negative tables: what another round of mining changed.

    \b
    Examples:
        miner diff tables/1 tables/2
        miner diff tables/1/i2t tables/2/i2t --k 10 --json
        miner diff runs/demo/rounds/001 runs/demo/rounds/002
        miner diff s3://bucket/runs/nightly/rounds/001 s3://bucket/runs/nightly/rounds/002

    OLD and NEW are tables, folders that hold one per direction, rounds of a run, or Parquet files with the columns of
    a table. Anchors are matched by id, so the tables may be of different k and of different pairs.

    \b
    overlap      share of the k hardest in NEW that are among the k hardest in OLD, mean over anchors
    rank-biased  the same, weighted to the hardest
    score shift  of the negatives in both: new score - old score
    hardness     score - lowest positive

    The verdict goes by overlap: from 80% on another round will change little, below 50% it is worth it.
    """
    from miner.artifacts.manifest import canonical_json
    from miner.difference import compare, verdict

    pairs_of, notes = _matched(old, new)
    said: dict[str, Any] = {"old": str(old), "new": str(new), "notes": notes, "directions": {}}
    for direction, (before, after) in pairs_of.items():
        found = compare(before, after, k)
        told = verdict(found)
        about = _about(before, after, k)
        said["directions"][direction] = {
            **found.numbers(), "changes": told.changes, "reason": told.reason, "notes": about,
        }  # fmt: skip
        if not as_json:
            _print(direction, found, told, about)
    if as_json:
        click.echo(canonical_json(said).decode(), nl=False)
    else:
        for note in notes:
            click.echo(f"note: {note}")


def _matched(old: Place, new: Place) -> tuple[dict[str, tuple[Rows, Rows]], list[str]]:
    """(the tables of both by direction, what was left out). Raises BadInput when no direction is in both."""
    from miner.artifacts.errors import BadInput

    before, after = _tables(old), _tables(new)
    if "" in before and len(after) == 1:
        before = {next(iter(after)): before[""]}
    if "" in after and len(before) == 1:
        after = {next(iter(before)): after[""]}
    both = [name for name in before if name in after]
    if not both:
        listed = [" and ".join(name or "an unknown direction" for name in each) for each in (before, after)]
        raise BadInput(f"{old} holds {listed[0]}, {new} holds {listed[1]}; give two tables of one direction.")
    notes = [
        f"{name or 'a direction that is not known'} is in {place} alone and was left out"
        for place, mine in ((old, before), (new, after))
        for name in mine
        if name not in both
    ]
    return {name: (before[name], after[name]) for name in both}, notes


def _tables(place: Place) -> dict[str, Rows]:
    """The tables at a place by direction, "" for a file that does not say which. Raises BadInput, DamagedArtifact."""
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import MANIFEST
    from miner.rows import DIRECTIONS, open_rows

    found: dict[str, Rows] = {}
    if (place.local is None or place.local.is_dir()) and not (place / MANIFEST).exists():
        for name in DIRECTIONS:
            # A round of a run keeps each table below the start of its key.
            kept = place / f"mine-{name}"
            known = (place / name, *(kept / key for key in kept.names()))
            here = [each for each in known if (each / MANIFEST).exists()]
            if len(here) > 1:
                raise BadInput(f"{place}: {len(here)} tables of {name}: {', '.join(map(str, here))}; give one of them.")
            if here:
                found[name] = open_rows(here[0])
    if found:
        return found
    rows = open_rows(place)
    return {rows.direction or "": rows}


def _about(old: Rows, new: Rows, k: int | None) -> list[str]:
    """What to know of two tables before comparing their figures."""
    notes = []
    if old.artifact and new.artifact and old.artifact.manifest.fingerprint == new.artifact.manifest.fingerprint:
        notes.append("these are the same table")
    for rows in (old, new):
        if rows.artifact is None:
            notes.append(f"{rows.where}: not a committed table, so no hash says whether it is whole")
    said = [(rows.provenance, rows.k()) for rows in (old, new)]
    (before, k_old), (after, k_new) = said
    if k is None and k_old != k_new:
        notes.append(
            f"OLD holds {k_old} negatives per anchor, NEW {k_new}: the {min(k_old, k_new)} hardest are compared"
        )
    if _differ(before, after, "pairs"):
        notes.append(
            "they were mined for different pairs: only anchors in both count, and a negative may be new or gone"
        )
    if _differ(before, after, "metric"):
        notes.append(f"scores are {before['metric']} before and {after['metric']} now: their shift means nothing")
    if before.get("filter", {}).get("rules", []) != after.get("filter", {}).get("rules", []):
        notes.append("they were chosen by different rules, which alone makes their negatives differ")
    if before.get("checkpoint") is not None and before.get("checkpoint") == after.get("checkpoint"):
        notes.append("both are of the same model: what differs is the search or its rules, not training")
    return notes


def _differ(before: dict[str, Any], after: dict[str, Any], key: str) -> bool:
    return None not in (before.get(key), after.get(key)) and before[key] != after[key]


def _print(direction: str, found: Difference, told: Verdict, notes: list[str]) -> None:
    numbers = found.numbers()
    spread, shift = numbers["overlap_quantiles"], numbers["score_shift_quantiles"]
    click.echo(f"{direction or 'direction unknown'}: {found.anchors} anchors in both, {found.k} hardest negatives each")
    click.echo(
        f"    overlap {numbers['overlap']:.1%} of the new negatives were there before; by anchor "
        f"{spread['0.05']:.0%} | {spread['0.25']:.0%} | {spread['0.5']:.0%} | {spread['0.75']:.0%} | "
        f"{spread['0.95']:.0%} (5, 25, 50, 75, 95 in a hundred)"
    )
    most = max(numbers["overlap_tenths"])
    for tenth, many in enumerate(numbers["overlap_tenths"]):
        bar = "#" * round(40 * many / most)
        click.echo(f"        {10 * tenth:3d}-{10 * tenth + 10:3d}% {many / found.anchors:6.1%} {bar}".rstrip())
    click.echo(
        f"    weighted to the hardest (rank-biased) {numbers['rank_biased_overlap']:.1%}; the hardest is the same for "
        f"{numbers['same_hardest']:.1%} of the anchors"
    )
    if shift:
        click.echo(
            f"    score shift of those in both {numbers['score_shift']:+.4f}; by anchor {shift['0.05']:+.4f} to "
            f"{shift['0.95']:+.4f} (5 to 95 in a hundred)"
        )
    click.echo(
        f"    hardness (score - lowest positive) {numbers['hardness_old']:+.4f} before, {numbers['hardness_new']:+.4f} "
        f"now; above a positive {numbers['share_above_lowest_positive_old']:.1%} before, "
        f"{numbers['share_above_lowest_positive_new']:.1%} now"
    )
    for name in ("old", "new"):
        if found.only[name]:
            first = ", ".join(map(repr, found.examples[name]))
            click.echo(f"    {found.only[name]} anchor(s) have negatives in {name.upper()} alone, first {first}")
    for note in notes:
        click.echo(f"    note: {note}")
    click.echo(f"    {told.changes} change: {told.reason}")
