"""Decoding: every kind of file that turns up in a folder of pictures, what is refused, and that nobody's bits depend on
who decodes.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from miner.artifacts.command import CommandGroup
from miner.artifacts.errors import BadInput
from trainer.data._decode import GREY, Unreadable, content, decode, decode_all
from trainer.data._links import inside
from trainer.data._pictures import Pictures, PictureSettings
from trainer.data._places import NOTHING, Places

LIMIT = 10_000
RNG = np.random.default_rng(0)
# Smooth, so that JPEG keeps it nearly as it is: red grows to the right, green downwards.
RAMP = np.stack(np.broadcast_arrays(np.arange(16)[None, :] * 16, np.arange(16)[:, None] * 16, 40), 2).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def near(found: np.ndarray, wanted: np.ndarray, levels: int = 6) -> bool:
    return bool(np.abs(found.astype(int) - wanted.astype(int)).max() <= levels)


def ramp() -> Image.Image:
    return Image.fromarray(RAMP)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG"])
def test_common_files_give_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    found = decode(saved(ramp(), kind, **options), 16, "crop", LIMIT)
    assert near(found, RAMP, 6 if kind == "JPEG" else 0)


def test_other_modes_become_rgb() -> None:
    grey = RAMP[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, 2)
    assert np.array_equal(decode(saved(Image.fromarray(grey)), 16, "crop", LIMIT), as_rgb)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    assert np.array_equal(decode(saved(wide), 16, "crop", LIMIT), as_rgb)
    assert np.array_equal(decode(saved(wide, "TIFF"), 16, "crop", LIMIT), as_rgb)
    longer = Image.fromarray(grey.astype(np.int32) * 257)
    assert longer.mode == "I"
    assert np.array_equal(decode(saved(longer, "TIFF"), 16, "crop", LIMIT), as_rgb)
    bits = Image.fromarray(grey > 100)
    assert np.array_equal(decode(saved(bits), 16, "crop", LIMIT)[..., 0], (grey > 100) * 255)
    few = ramp().quantize(16)
    assert np.array_equal(decode(saved(few), 16, "crop", LIMIT), np.asarray(few.convert("RGB")))
    cmyk = ramp().convert("CMYK")
    assert near(decode(saved(cmyk, "JPEG", quality=98), 16, "crop", LIMIT), RAMP, 12)
    assert np.array_equal(decode(saved(cmyk, "TIFF"), 16, "crop", LIMIT), np.asarray(cmyk.convert("RGB")))


def test_what_is_transparent_is_white() -> None:
    alpha = np.tile(np.array([0, 255], np.uint8), (16, 8))
    wanted = np.where(alpha[..., None] == 0, 255, RAMP)
    assert np.array_equal(decode(saved(Image.fromarray(np.dstack([RAMP, alpha]))), 16, "crop", LIMIT), wanted)
    grey = decode(saved(Image.fromarray(np.dstack([RAMP[..., 0], alpha]))), 16, "crop", LIMIT)
    assert np.array_equal(grey[..., 0], np.where(alpha == 0, 255, RAMP[..., 0]))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 8, 16))
    found = decode(saved(palette, transparency=0), 16, "crop", LIMIT)
    assert (found[:, :8] == [0, 0, 255]).all()
    assert (found[:, 8:] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(stored, 16, "crop", LIMIT) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(ramp(), "JPEG", quality=98, subsampling=0, exif=exif), 16, "crop", LIMIT)
    assert near(found, turned[orientation](RAMP))


def test_a_damaged_exif_block_is_passed_over() -> None:
    stored = saved(ramp(), "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert near(decode(stored, 16, "crop", LIMIT), RAMP)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 33), (7, 5), (1, 9)])
def test_crop_and_fit(size: tuple[int, int]) -> None:
    width, height = size
    array = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, stored = Image.fromarray(array), saved(Image.fromarray(array))
    short = min(size)
    left, top = (width - short) / 2, (height - short) / 2
    wanted = image.resize((10, 10), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    assert np.array_equal(decode(stored, 10, "crop", LIMIT), np.asarray(wanted))
    found = decode(stored, 10, "fit", LIMIT)
    inner_width, inner_height = (max(1, round(length * 10 / max(size))) for length in size)
    x, y = (10 - inner_width) // 2, (10 - inner_height) // 2
    small = image.resize((inner_width, inner_height), Image.Resampling.BICUBIC)
    assert np.array_equal(found[y : y + inner_height, x : x + inner_width], np.asarray(small))
    outside = np.ones((10, 10), bool)
    outside[y : y + inner_height, x : x + inner_width] = False
    assert (found[outside] == GREY).all()


def test_a_large_jpeg_that_is_shrunk_while_decoding_looks_the_same() -> None:
    large = np.asarray(ramp().resize((512, 384), Image.Resampling.BICUBIC))
    stored = saved(Image.fromarray(large), "JPEG", quality=98, subsampling=0)
    box = (64, 0, 448, 384)
    wanted = Image.fromarray(large).resize((16, 16), Image.Resampling.BICUBIC, box=box)
    assert near(decode(stored, 16, "crop", 10**6), np.asarray(wanted))


def damaged_png() -> bytes:
    stored = bytearray(saved(ramp()))
    stored[stored.index(b"IDAT") + 20] ^= 0xFF
    return bytes(stored)


def declared_png(width: int, height: int) -> bytes:
    """A file of a few bytes that claims to be that large."""
    stored = bytearray(saved(Image.new("L", (1, 1))))
    stored[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    stored[29:33] = zlib.crc32(bytes(stored[12:29])).to_bytes(4, "big")
    return bytes(stored)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not a picture of a kind"),
        (saved(ramp(), "JPEG")[:-40], "[Tt]runcated"),
        (saved(ramp())[:-40], "truncated|broken|incomplete"),
        (damaged_png(), "OSError|SyntaxError"),
        (declared_png(200, 100), "200 x 100 pixels, more than max_pixels = 10000"),
        (declared_png(12_000, 12_000), "12000 x 12000 pixels, more than max_pixels"),
        (declared_png(60_000, 60_000), "DecompressionBombError"),
        (saved(Image.fromarray(RAMP[..., 0].astype(np.float32)), "TIFF"), "floating-point"),
        (None, "there is no image"),
    ],
)
def test_what_cannot_be_read_has_a_reason(stored: bytes | None, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(stored, 16, "crop", LIMIT)


def test_places_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    path = str(tmp_path / "f")
    assert content((path, 0, -1)) == b"0123456789"
    assert content((path, 3, 4)) == b"3456"
    for place, reason in (
        ((path, 8, 4), "the file ends 2 bytes early"),
        ((str(tmp_path / "g"), 0, -1), "No such file"),
        ((str(tmp_path), 0, -1), "directory"),
        ((path, 0, 2**40), "more than"),
    ):
        with pytest.raises(Unreadable, match=reason):
            content(place)


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "", "a\0b", "..", "c:\\x.jpg", "..\\x.jpg"]
)
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="refused"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b..c.jpg") == tmp_path / "a" / "b..c.jpg"
    assert inside(tmp_path, str(tmp_path / "a" / "b.jpg")) == tmp_path / "a" / "b.jpg"
    with pytest.raises(BadInput, match="refused"):
        inside(tmp_path, f"{tmp_path}x/b.jpg")


def folder_of(tmp_path: Path, count: int, broken: tuple[int, ...] = (), missing: tuple[int, ...] = ()) -> Places:
    paths = []
    for row in range(count):
        paths.append(tmp_path / f"{row}.png")
        if row not in missing:
            paths[-1].write_bytes(b"broken" if row in broken else saved(Image.new("RGB", (9, 9), (row, 0, 0))))
    return Places.of_files(paths)


def settings(**values: object) -> PictureSettings:
    return PictureSettings(**{"image_size": 4, "decode_workers": 0, "max_pixels": LIMIT, **values})  # type: ignore[arg-type]


def test_broken_pictures_are_grey_and_counted_as_long_as_they_are_few(tmp_path: Path) -> None:
    places = folder_of(tmp_path, 10, broken=(2, 5), missing=(7,))
    with pytest.warns(UserWarning, match=r"7\.png: No such file.*; a grey picture stands for it"):
        pictures = Pictures(places, settings(max_broken=0.3), "set train")
    assert pictures.broken == {7: "No such file or directory"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        found = pictures[np.array([7, 2, 2, 1])]
    assert (found[:3] == GREY).all()
    assert (found[3] == [1, 0, 0]).all()
    assert set(pictures.broken) == {7, 2}
    pictures[np.array([2, 7])]
    pictures[np.arange(5, 6)]
    assert set(pictures.broken) == {7, 2, 5}
    strict = Pictures(places, settings(max_broken=0.2), "set train")
    strict[np.array([2])]
    with pytest.raises(
        BadInput, match=r"3 of 10 pictures cannot be read, more than the share max_broken = 0\.2; first"
    ):
        strict[np.array([5])]
    with pytest.raises(BadInput, match=r"1 of 10 pictures .*7\.png: No such file.*exclude"):
        Pictures(places, settings(), "set train")


def test_every_place_of_an_image_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    places = Places.of(
        [str(tmp_path / "empty"), str(tmp_path / "gone")], [(0, 0, -1), (1, 0, -1), (0, 0, NOTHING), (0, 0, 9)]
    )
    assert places.missing() == {0: "the file is empty", 1: "No such file or directory", 2: "there is no image"}
    assert places.fetch(np.array([3, 2])) == [(str(tmp_path / "empty"), 0, 9), None]


def test_processes_decode_what_this_one_does(tmp_path: Path) -> None:
    """Also a picture that kills none of them, rows asked for twice, and from two threads."""
    places = folder_of(tmp_path, 40, broken=(11,))
    here, there = (Pictures(places, settings(max_broken=1, decode_workers=workers), "set") for workers in (0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (np.arange(40), np.array([39, 3, 3, 11, *range(20)]), np.arange(3)):
            assert np.array_equal(there[rows], here[rows])
    assert here.broken.keys() == there.broken.keys() == {11}
    slow, reasons, _ = decode_all(places.fetch(np.arange(40)), 4, "crop", LIMIT)
    assert np.array_equal(here[np.arange(40)], slow)
    assert [row for row, reason in enumerate(reasons) if reason] == [11]


@pytest.mark.skipif(not hasattr(os, "kill") or sys.platform == "win32", reason="needs SIGKILL, which is not here")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Killed, so that it cannot tell them."""
    folder_of(tmp_path, 10)
    probe = f"""
import os, signal
import numpy as np
from multiprocessing import active_children
from pathlib import Path
from trainer.data._pictures import Pictures, PictureSettings
from trainer.data._places import Places
if __name__ == "__main__":
    places = Places.of_files([Path({str(tmp_path)!r}) / f"{{row}}.png" for row in range(10)])
    Pictures(places, PictureSettings(image_size=4, decode_workers=1), "set")[np.arange(10)]
    print(*[child.pid for child in active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "probe.py").write_text(probe)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, tmp_path / "probe.py"], stdout=subprocess.PIPE, text=True, env=environment)
    (pid,) = (int(word) for word in done.stdout.split())
    # The worker holds the pipe's other end until it ends, so `run` returning is already most of the proof.
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[-1]:
            return
        os.sched_yield()
    pytest.fail(f"process {pid} is still there")


def test_a_fingerprint_is_of_the_files_and_of_how_they_are_read(tmp_path: Path) -> None:
    places = folder_of(tmp_path, 300)
    plain = list(Pictures(places, settings(), "a").stored())
    assert plain == list(Pictures(places, settings(decode_workers=1, max_broken=0.5), "b").stored())
    assert len(plain) == 301
    assert plain[0] != next(Pictures(places, settings(image_size=5), "a").stored())
    assert plain[0] != next(Pictures(places, settings(image_mode="fit"), "a").stored())
    (tmp_path / "299.png").write_bytes(b"other")
    changed = list(Pictures(places, settings(), "a").stored())
    assert [row for row in range(301) if changed[row] != plain[row]] == [300]


def test_only_kinds_of_pictures_are_opened(tmp_path: Path) -> None:
    """Pillow gives what it takes for EPS to Ghostscript, a program of its own."""
    for kind in ("EPS", "PDF", "TGA", "ICO"):
        with pytest.raises(Unreadable, match=r"not a picture of a kind that is read \(JPEG, PNG"):
            decode(saved(ramp(), kind), 16, "crop", LIMIT)
    assert near(
        decode(saved(ramp(), "MPO", save_all=True, append_images=[ramp()], quality=98), 16, "crop", LIMIT), RAMP, 12
    )


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="not a regular file"):
        content((str(tmp_path / "pipe"), 0, -1))
    assert "not a regular file" in Places.of_files([tmp_path / "pipe"]).missing()[0]


def test_a_command_shows_a_warning_as_a_sentence(tmp_path: Path) -> None:
    """Of a broken picture, without the line of code that warns; outside of a command as before."""

    @click.group(cls=CommandGroup)
    def group() -> None: ...

    @group.command()
    @click.option("--end", is_flag=True)
    def read(end: bool) -> None:
        Pictures(folder_of(tmp_path, 3, missing=(1,)), settings(max_broken=1), "set train")
        if end:
            raise BadInput("the end")

    for arguments, ending in (([], ""), (["--end"], "error: the end\n")):
        before = warnings.showwarning
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            shown = CliRunner().invoke(group, ["read", *arguments]).stderr
        assert shown.startswith(f"warning: set train: {tmp_path / '1.png'}: No such file or directory; a grey picture")
        assert shown.endswith(f"lists them.\n{ending}")
        assert len(shown.splitlines()) == 1 + bool(ending)
        assert warnings.showwarning is before
