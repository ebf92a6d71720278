"""`miner check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import TABLE, LocalPath
from miner.commands.shown import progress, refuse, summary

if TYPE_CHECKING:
    from miner.artifacts.pairs import Pairs
    from miner.artifacts.place import Place
    from miner.audit import Check, Finding, Subject
    from miner.audit_alone import Hubs
    from miner.folder import Folder
    from miner.rows import Rows

__all__ = ["check"]

_FILE = LocalPath()


@click.command()
@click.argument("table", type=TABLE)
@click.option(
    "--pairs",
    "pairs_from",
    type=TABLE,
    help="pairs.csv, .tsv or .parquet that TABLE was mined for, or its run's pairs/.",
)
@click.option("--vectors", type=_FILE, help="The folder of vectors, with its pairs, that TABLE was mined from.")
@click.option("--texts", type=_FILE, help="Table of id (or text_id) and text: finds positives in the same words.")
@click.option(
    "--direction",
    type=click.Choice(["i2t", "t2i", "i2i", "t2t"]),
    help="Which side anchors and negatives are of, for a file that does not say. [default: as the ids fit]",
)
@click.option(
    "--metric",
    type=click.Choice(["ip", "cosine"]),
    help="Of the scores, for a file that does not say: inner product or cosine. [default: ip]",
)
@click.option(
    "--hub-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of the anchors, to warn of a hub."
)
@click.option(
    "--sample", type=click.IntRange(min=1), default=1000, show_default=True, help="Anchors to compute the scores of."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which anchors these are.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(
    table: Place,
    pairs_from: Place | None,
    vectors: Path | None,
    texts: Path | None,
    direction: str | None,
    metric: str | None,
    hub_share: float,
    sample: int,
    seed: int,
    as_json: bool,
) -> None:
    """Look for everything that can be wrong with a negative table.

    \b
    Examples:
        miner check tables/i2t
        miner check tables/i2t --vectors vectors/ --texts captions.csv
        miner check theirs.parquet --pairs pairs.csv --direction t2i

    TABLE is the folder of one direction, every file of which is hashed again; or any Parquet file with the columns
    anchor_id, rank, negative_id, score and lowest_positive.

    \b
    alone       ranks, scores, duplicates, short rows, hubs
    --pairs     and ids, anchors that are missing, positives among the negatives
    --vectors   and the same, stale fingerprints, and scores computed again
    --texts     and negatives in the words of a positive (needs --pairs or --vectors)

    What is bad ends the command with exit code 3, what is damaged with 4; a warning does not.
    """
    from miner.artifacts.errors import BadInput
    from miner.audit import Subject, audit
    from miner.audit_against import direction_of
    from miner.audit_alone import Hubs, of_the_table
    from miner.rows import Lookup, open_rows

    if pairs_from is not None and vectors is not None:
        raise click.UsageError("give --pairs or --vectors, not both: a folder of vectors has its own pairs.")
    if texts is not None and pairs_from is None and vectors is None:
        raise click.UsageError("--texts needs --pairs or --vectors: they say whose positives the texts are.")
    refuse(
        vectors is None, "is for scores computed again from --vectors, and none are given", "metric", "sample", "seed"
    )
    rows = open_rows(table)
    folder, pairs = _opened(pairs_from, vectors)
    found = direction_of(rows, direction, pairs)
    subject = Subject(rows, found)
    if pairs is not None:
        anchors, gallery = subject.sides
        subject = Subject(rows, found, Lookup(pairs.ids(anchors)), Lookup(pairs.ids(gallery)))
    hubs = Hubs(subject, hub_share)
    checks: list[Check] = [*of_the_table(subject), hubs]
    more, findings, left_out = _beside(subject, pairs, folder, texts, metric, sample, seed)
    findings += audit(subject, [*checks, *more], progress(table.last, "rows", brief=True))
    findings.sort(key=lambda finding: not finding.bad)
    checked = [each.name for each in (*checks, *more)]
    if as_json:
        _print_json(subject, hubs, findings, checked, left_out)
    else:
        _print(subject, hubs, findings, checked, left_out)
    bad = [finding.name for finding in findings if finding.bad]
    if bad:
        raise BadInput(
            f"{rows.where}: {len(bad)} kind(s) of bad rows or inputs ({', '.join(bad)}); do not train on it as it is."
        )


def _opened(pairs_from: Place | None, vectors: Path | None) -> tuple[Folder | None, Pairs | None]:
    from miner.export._mined import _open_pairs
    from miner.folder import open_folder

    if vectors is not None:
        folder = open_folder(vectors)
        return folder, folder.pairs
    return None, _open_pairs(pairs_from) if pairs_from is not None else None


def _beside(
    subject: Subject,
    pairs: Pairs | None,
    folder: Folder | None,
    texts: Path | None,
    metric: str | None,
    sample: int,
    seed: int,
) -> tuple[list[Check], list[Finding], list[str]]:
    """(checks beside what was given, findings before any row, what is not checked and why)."""
    from miner.artifacts.errors import BadInput
    from miner.audit_against import beside_pairs, beside_texts
    from miner.audit_vectors import Recomputed, stale

    checks: list[Check] = []
    findings: list[Finding] = []
    left_out: list[str] = []
    if pairs is None:
        left_out.append("ids and positives (give --pairs or --vectors)")
    else:
        checks += beside_pairs(subject, pairs)
    if pairs is None or (texts is None and not pairs.texts):
        left_out.append("the words of texts (give --texts, with --pairs or --vectors)")
    else:
        checks += beside_texts(subject, pairs, _texts(texts, pairs))
        if subject.direction == "i2i":
            left_out.append("the words of texts (images alone are compared)")
    if folder is None:
        left_out.append("fingerprints and scores (give --vectors)")
        return checks, findings, left_out
    fingerprints = stale(subject.rows, folder)
    if fingerprints is None:
        left_out.append("fingerprints (the table does not say from which vectors it was mined)")
    findings += fingerprints or []
    said = subject.rows.provenance.get("metric")
    if said is not None and metric is not None and said != metric:
        raise BadInput(f"{subject.rows.where}: its scores are of metric {said!r}, but --metric {metric} was asked for.")
    used = said or metric or "ip"
    if used in ("ip", "cosine"):
        checks.append(Recomputed(subject, folder, used, sample, seed))
    else:
        left_out.append(f"scores (they are those of the model {used!r}, not of vectors)")
    return checks, findings, left_out


def _texts(path: Path | None, pairs: Pairs) -> list[str] | tuple[str, ...]:
    from miner.artifacts.errors import BadInput
    from miner.export._contents import Contents

    if path is None:
        return pairs.texts
    contents = Contents.read(path, "text", pairs.text_ids)
    if contents.kind != "text":
        raise BadInput(f"{path}: it has paths in place of texts; give the columns id (or text_id) and text.")
    return list(contents.values)


def _print(subject: Subject, hubs: Hubs, findings: list[Finding], checked: list[str], left_out: list[str]) -> None:
    rows = subject.rows
    if rows.artifact is not None:
        click.echo(f"{rows.where}: every file is as it was committed")
        summary(subject.direction or "", rows.artifact)
    else:
        click.echo(f"{rows.where}: {rows.notes[0]}")
        _sum_up(subject, rows)
    for note in rows.notes[subject.rows.artifact is None :]:
        click.echo(f"    note: {note}")
    top = ", ".join(f"{each['negative_id']!r} {each['share']:.1%}" for each in hubs.top())
    click.echo(f"    negatives that serve most anchors: {top or 'none'}")
    click.echo(f"checked: {', '.join(checked)}")
    for each in left_out:
        click.echo(f"not checked: {each}")
    for finding in findings:
        click.echo(f"{'BAD' if finding.bad else 'warning'}: {finding.name}: {finding.said}")
        for example in finding.examples:
            click.echo(f"    {', '.join(f'{key} {value!r}' for key, value in example.items())}")
        click.echo(f"    {finding.advice}")
    if not any(finding.bad for finding in findings):
        click.echo(f"nothing bad found{f', {len(findings)} warning(s)' if findings else ''}")


def _sum_up(subject: Subject, rows: Rows) -> None:
    click.echo(
        f"{subject.direction or 'direction unknown'}: {len(subject.counts)} anchors x {subject.k} negatives at most, "
        f"{rows.num_rows} rows"
    )
    click.echo(
        f"    hardness (score - lowest positive) {subject.hardness:+.4f} on average; "
        f"{subject.share_above:.1%} of the negatives score above a positive"
    )


def _print_json(subject: Subject, hubs: Hubs, findings: list[Finding], checked: list[str], left_out: list[str]) -> None:
    from dataclasses import asdict

    from miner.artifacts.manifest import canonical_json

    artifact = subject.rows.artifact
    said: dict[str, Any] = {
        "table": subject.rows.where,
        "committed": artifact is not None,
        "fingerprint": None if artifact is None else artifact.manifest.fingerprint,
        "direction": subject.direction,
        "anchors": len(subject.counts),
        "k": subject.k,
        "negatives": subject.rows.num_rows,
        "hardness_mean": round(subject.hardness, 6),
        "share_above_lowest_positive": round(subject.share_above, 6),
        "hubs": hubs.top(),
        "notes": subject.rows.notes,
        "checked": checked,
        "not_checked": left_out,
        "findings": [asdict(finding) for finding in findings],
        "good": not any(finding.bad for finding in findings),
    }
    click.echo(canonical_json(said).decode(), nl=False)
