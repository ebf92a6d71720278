"""The plot of counts: every line is drawn, with what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from trainer.plots import COLOURS, plot_counts


def row(label: str, direction: str, negatives: str, threshold: float, share: float) -> dict[str, Any]:
    about = {"label": label, "direction": direction, "negatives": negatives, "threshold": threshold}
    return about | {"share": share, "share_std": share / 4}


def sweep(label: str, negatives: str = "online", directions: tuple[str, ...] = ("i2t", "t2i")) -> list[dict[str, Any]]:
    return [
        row(label, direction, negatives, threshold, 10 / (1 + 100 * threshold) + 2 * number)
        for number, direction in enumerate(directions)
        for threshold in (0.1, 0.0, 0.01)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they are saved."""
    found: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def kept(self: Any, *arguments: Any, **settings: Any) -> None:
        found.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", kept)
    return found


def test_a_line_for_every_label_and_kind_of_negative(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [*sweep("one"), *sweep("two"), *sweep("two", "offline"), *sweep("two", "c_1", ("both",))]
    plot_counts(rows, tmp_path / "counts.png", batch_size=20, title="a title")
    (figure,) = drawn
    assert figure.get_suptitle() == "a title"
    assert [axis.get_title() for axis in figure.axes] == ["image queries", "text queries"]
    assert "weight a negative must exceed" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel() == "contributing negatives per query"
    for number, axis in enumerate(figure.axes):
        *lines, chance = axis.lines
        assert [line.get_label() for line in lines] == ["one", "two", "two, offline"]
        assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]
        assert [line.get_color() for line in lines] == [COLOURS[0], COLOURS[1], COLOURS[1]]
        for line in lines:
            assert line.get_xdata() == pytest.approx([0.01 / 3, 0.01, 0.1])  # sorted; 0 stands at the left edge
            assert line.get_ydata() == pytest.approx([10 + 2 * number, 5 + 2 * number, 10 / 11 + 2 * number])
        assert list(chance.get_xdata()) == [1 / 20, 1 / 20]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["one", "two", "two, offline"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("thresholds", [[0.0], [0.3], [0.0, 0.3]])
def test_few_thresholds_and_no_contribution_are_drawn(tmp_path: Path, suffix: str, thresholds: list[float]) -> None:
    path = tmp_path / f"counts.{suffix}"
    plot_counts([row("one", "t2i", "online", at, 0.0) for at in thresholds], path, batch_size=8, title="")
    if suffix == "svg":
        assert "text queries" in path.read_text()
        assert "image queries" not in path.read_text()  # no panel without a line
        return
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_no_two_lines_look_alike(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [one for number in range(2 * len(COLOURS) + 1) for one in sweep(f"loss {number}")]
    plot_counts(rows, tmp_path / "counts.png", batch_size=8, title="many")
    *lines, _ = drawn[0].axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 15
