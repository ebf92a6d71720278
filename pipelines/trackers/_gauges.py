"""What an event changes of the figures that monitoring shows, for a Prometheus file and for Ray alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.trackers import Event

__all__ = ["GAUGES", "gauges"]

# name -> (what it is, labels)
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "quintain_running": ("1 while the run is at work, else 0", ("run",)),
    "quintain_failed": ("1 when the run ended with an error, else 0", ("run",)),
    "quintain_last_event_timestamp_seconds": ("When something last happened, seconds since 1970", ("run",)),
    "quintain_round": ("The last finished round", ("run",)),
    "quintain_metric": ("A metric of the last finished round, or of its tables", ("run", "split", "metric")),
    "quintain_stage_seconds": ("How long a stage took", ("run", "round", "stage")),
    "quintain_stage_shards_done": ("Finished shards of a stage", ("run", "round", "stage")),
    "quintain_epoch": ("The last finished epoch, counted over all rounds", ("run",)),
    "quintain_epoch_seconds": ("How long the last epoch took", ("run",)),
    "quintain_loss": ("Mean loss of the last epoch", ("run",)),
    "quintain_pairs_per_second": ("Pairs trained on per second in the last epoch", ("run",)),
}


def gauges(event: Event) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of everything that the event sets."""
    run = {"run": event.run}
    stage = {**run, "round": str(event.round), "stage": str(event.stage)}
    yield "quintain_last_event_timestamp_seconds", run, event.time
    match event.kind:
        case "run_start":
            yield "quintain_running", run, 1
            yield "quintain_failed", run, 0
        case "run_done" | "run_failed":
            yield "quintain_running", run, 0
            yield "quintain_failed", run, event.kind == "run_failed"
        case "shard_done":
            yield "quintain_stage_shards_done", stage, event.shard or 0
        case "stage_done":
            yield "quintain_stage_seconds", stage, event.seconds or 0.0
            yield from _metrics(run, event)
        case "epoch":
            yield "quintain_epoch", run, event.step or 0
            yield "quintain_epoch_seconds", run, event.seconds or 0.0
            for name in ("loss", "pairs_per_second"):
                if name in event.figures:
                    yield f"quintain_{name}", run, event.figures[name]
        case "round_done":
            yield "quintain_round", run, event.round or 0
            yield from _metrics(run, event)


def _metrics(run: Mapping[str, str], event: Event) -> Iterator[tuple[str, dict[str, str], float]]:
    for name, value in event.figures.items():
        split, _, metric = name.partition("/")
        yield "quintain_metric", {**run, "split": split, "metric": metric}, value
