"""[executor]: where stages run, and what a worker takes of a node. Nothing here changes a byte of what they produce."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from miner.artifacts.errors import BadInput

__all__ = ["ActorConfig", "ExecutorConfig", "head_of"]


class ActorConfig(BaseModel):
    """What one worker of a kind of stage takes of a node: `cpus`, on which `mine` searches with as many threads
    (`encode` computes with one, whose bits differ from those of two), and `gpus`, whole ones or a share of one.

    [default: a GPU where the cluster has one and the stage can use it: `mine` only with a faiss that sees it]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus: int = Field(default=1, ge=1)
    gpus: float | None = Field(default=None, ge=0)

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("more than one GPU is a whole number of them")
        return gpus


class ExecutorConfig(BaseModel):
    """`ray` joins the cluster at `address`, or starts a local one with `workers` processes (0: one per core); `inline`
    runs everything in this process. On a joined cluster at most `workers` work on a stage at once (0: as many as it has
    room for, and as many more as join), and a stage that fits no node waits `patience` seconds for one that does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["ray", "inline"] = "ray"
    workers: int = Field(default=0, ge=0)
    address: str = ""
    patience: float = Field(default=600, gt=0)
    encode: ActorConfig = ActorConfig()
    mine: ActorConfig = ActorConfig()


def head_of(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's head; None for what Ray finds by itself. Raises BadInput for what is no address."""
    if address in ("auto", "local") or address.startswith("ray://"):
        return None
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise BadInput(
            f"{address!r} is no address of a Ray cluster; give HOST:PORT of its head (6379), or auto; its dashboard "
            "(8265) is for `pipelines submit`."
        )
    return host.strip("[]"), int(port)
