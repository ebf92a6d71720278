"""`miner calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.commands.shown import FOLDER, progress

if TYPE_CHECKING:
    from miner.calibration import Calibration, Source
    from miner.ladder import Rung

__all__ = ["calibrate"]

_PATH = LocalPath()


@click.command()
@FOLDER
@click.option(
    "--candidates", "candidates_from", required=True, type=_PATH, help="Candidates or a table, or a folder of them."
)
@click.option(
    "--direction",
    type=click.Choice(["i2t", "t2i", "both", "i2i", "t2t"]),
    help="This one alone; both: i2t and t2i. [default: those that were searched]",
)
@click.option("--k", type=click.IntRange(min=1), help="Negatives to keep. [default: 50, or half of the candidates]")
@click.option("--judgements", type=_PATH, help="Judged pairs: anchor_id, negative_id (or image_id, text_id), match.")
@click.option("--verdicts", type=_PATH, help="Verdicts from the report page: the same, as false_negative or not.")
@click.option("--match-at", type=float, help="The grade from which two items match. [default: 0.5, for 0 to 1]")
@click.option(
    "--target", type=click.FloatRange(0, 1), help="Propose for this share of false negatives. [default: best balance]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(
    folder: Path,
    candidates_from: Path,
    direction: str | None,
    k: int | None,
    judgements: Path | None,
    verdicts: Path | None,
    match_at: float | None,
    target: float | None,
    as_json: bool,
) -> None:
    """Show what each threshold on the score would keep of this model's candidates, and propose one.

    \b
    Examples:
        miner calibrate vectors/ --candidates candidates/
        miner calibrate vectors/ --candidates tables/t2i --judgements judged.csv --target 0.05
        miner calibrate vectors/ --candidates candidates/ --verdicts runs/demo/verdicts.jsonl

    FOLDER holds the vectors and pairs that were searched. Margins do not carry over from one model to another: the
    same 5% may drop 8% of the candidates of one and 84% of another's. A rule drops a candidate with score s when

    \b
        relative-margin:margin=M   s > lowest_positive - M * |lowest_positive|
        absolute-margin:margin=M   s > lowest_positive - M
        max-score:score=S          s > S

    Judged pairs (.csv, .tsv or .parquet; match is 0, 1 or a grade) give the share of false negatives among the k that
    a rule leaves. Each is weighted by the candidates of its rank that it stands for; the interval takes the pairs of
    one anchor as dependent.

    Of i2i (t2t) the positives are the images (texts) that share a text (an image) with the anchor. Who has none is
    counted, and a margin drops none of its candidates.
    """
    from miner.artifacts.manifest import canonical_json
    from miner.calibration import calibrate as calibrated
    from miner.folder import open_folder
    from miner.judged import read_judged
    from miner.sources import positives, sources
    from miner.verdicts import judged as judged_by

    if judgements is not None and verdicts is not None:
        raise click.UsageError("--judgements and --verdicts both say what was judged; give one of them.")
    if target is not None and judgements is None and verdicts is None:
        raise click.UsageError(
            "--target needs --judgements or --verdicts: without judged pairs no share of false negatives is known."
        )
    if match_at is not None and judgements is None:
        raise click.UsageError("--match-at says how to read --judgements; give both.")
    opened = open_folder(folder)
    said: dict[str, Any] = {"folder": str(folder), "directions": {}}
    for source in sources(candidates_from, opened, direction):
        kept = _kept(source, k)
        judged = read_judged(judgements, opened.pairs, source.direction, match_at) if judgements else None
        if verdicts is not None:
            judged = judged_by(verdicts, opened.pairs, source.direction)
        lowest, known = positives(source, opened)
        shown = progress(source.direction, "anchors", brief=True)
        found = calibrated(source, lowest, known, kept, judged, target, shown)
        said["directions"][source.direction] = found.numbers()
        if not as_json:
            _print(found)
    if as_json:
        click.echo(canonical_json(said).decode(), nl=False)


def _kept(source: Source, k: int | None) -> int:
    from miner.artifacts.errors import BadInput

    if k is None:
        return min(50, max(1, source.num_candidates // 2))
    if k > source.num_candidates:
        raise BadInput(
            f"{source.where}: {source.num_candidates} candidates per anchor cannot give --k {k} negatives; search for "
            "several times k."
        )
    return k


def _print(found: Calibration) -> None:
    from miner.artifacts.command import align

    source = found.source
    click.echo(
        f"{source.direction}: {found.anchors} anchors x {source.num_candidates} candidates, metric {source.metric}; "
        f"k = {found.k} to keep"
    )
    for note in source.notes:
        click.echo(f"    note: {note}")
    quantiles = list(next(iter(found.curves.values())))
    rows = [["score", *(f"{100 * float(q):g}%" for q in quantiles)]]
    rows += [[name, *(f"{value:.4f}" for value in curve.values())] for name, curve in found.curves.items()]
    click.echo(align(rows))
    click.echo()
    click.echo(_plot(found))
    click.echo()
    judged = any(rung.false_negatives for rung in found.rungs)
    head = ["rule", "kept", "hardest kept", "anchors full", "positives gone"]
    head += ["false left (95%)", "false gone", "true gone"] if judged else []
    click.echo(align([head, *(_row(rung, judged) for rung in found.rungs)]))
    click.echo(
        f"kept: of all candidates; hardest kept: of the {found.k} hardest of each anchor; anchors full: left with "
        f"{found.k} or more (`miner filter` searches deeper for the others); positives gone: of {found.like_positives} "
        f"that would be among the {found.k} hardest"
    )
    if judged:
        click.echo(
            f"false left: false negatives among the {found.k} that the rule leaves; false gone, true gone: of the "
            f"false and of the true negatives among the {found.k} hardest"
        )
    if found.judged is not None:
        _print_judged(found, found.judged)
    if found.proposal is None:
        click.echo(f"proposal: none; {found.why}")
    else:
        click.echo(f"proposal: --rule {found.proposal.rule}")
        click.echo(f"    {found.why}")
    click.echo()


def _row(rung: Rung, judged: bool) -> list[str]:
    def share(name: str) -> str:
        value = rung.shares.get(name)
        return "-" if value is None else f"{value:.1%}"

    row = [rung.rule or "none"]
    row += [share(name) for name in ("candidates_kept", "hardest_kept", "anchors_with_k", "positives_dropped")]
    if judged:
        left = rung.false_negatives
        row.append("-" if left is None else f"{left.share:.1%} ({100 * left.low:.1f} to {100 * left.high:.1f})")
        row += [share("false_negatives_dropped"), share("true_negatives_dropped")]
    return row


def _print_judged(found: Calibration, judged: dict[str, Any]) -> None:
    click.echo(
        f"judged: {judged['pairs']} pairs, {judged['among_candidates']} of them among the candidates "
        f"({judged['share_of_candidates']:.2%} of these), {judged['among_hardest']} among the {found.k} hardest of "
        f"{judged['anchors']} anchors, with {judged['matches']} matches"
    )
    if judged["deepest_rank"] is not None:
        plain = "" if judged["unweighted"] is None else f"; unweighted {judged['unweighted']:.1%} of them would match"
        click.echo(
            f"    median rank {judged['median_rank']:.0f}, deepest {judged['deepest_rank']}: weighted by rank to stand "
            f"for all candidates{plain}. What was judged is seldom a random sample: if it was chosen by what it looked "
            "like, the figures lean that way"
        )
    for note in judged["notes"]:
        click.echo(f"    {note}")


def _plot(found: Calibration, lines: int = 16, width: int = 22) -> str:
    """The scores of the lowest positives, the hardest candidates and the k-th, as bars beside each other."""
    import numpy as np

    last = [name for name in found.samples if name.startswith("candidate ")]
    near = min(last, key=lambda name: abs(int(name.split()[1]) - found.k))
    names = list(dict.fromkeys(["lowest positive", "candidate 1", near]))
    samples = [found.samples[name] for name in names if len(found.samples[name])]
    names = [name for name in names if len(found.samples[name])]
    low, high = (float(f(np.quantile(each, q) for each in samples)) for f, q in ((min, 0.005), (max, 0.995)))
    edges = np.linspace(low, high if high > low else low + 1, lines + 1)
    shares = [np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0] / len(each) for each in samples]
    most = max(float(each.max()) for each in shares)
    drawn = [f"{'score':>8}  " + "".join(f"{name:<{width + 2}}" for name in names).rstrip()]
    for line in reversed(range(lines)):
        bars = "".join(f"{'#' * round(width * float(each[line]) / most):<{width + 2}}" for each in shares)
        drawn.append(f"{edges[line]:8.3f}  {bars}".rstrip())
    return "\n".join(drawn)
