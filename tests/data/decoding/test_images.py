"""Images are their first picture, upright, over white, in 8 bits: copied, encoded, and shown."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.index import Index
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.data.prepare.worker import ClipTask, examine
from allinone.data.processor import AllInOneProcessor
from tests.data.helpers import prepare_source
from tests.data.media import write_video

WIDTH, HEIGHT = 96, 64
CORNERS = ((220, 40, 40), (40, 200, 60), (50, 60, 210), (230, 220, 60))


def picture() -> Image.Image:
    """Four coloured quarters: every orientation looks different."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, colour in enumerate(CORNERS):
        y, x = number // 2 * HEIGHT // 2, number % 2 * WIDTH // 2
        pixels[y : y + HEIGHT // 2, x : x + WIDTH // 2] = colour
    return Image.fromarray(pixels)


def other() -> Image.Image:
    """A second picture, which must never be shown."""
    return Image.new("RGB", (WIDTH, HEIGHT), "white")


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    target = io.BytesIO()
    (image or picture()).save(target, "JPEG", quality=95, subsampling=0, **options)
    return target.getvalue()


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def half_transparent() -> Image.Image:
    """The left half is transparent; its hidden colours are black, as editors leave them."""
    pixels = np.dstack([np.asarray(picture()), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    pixels[:, : WIDTH // 2] = 0
    return Image.fromarray(pixels)


def grey16() -> Image.Image:
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


def raw_exif(kind: int, value: bytes, order: str = "<") -> bytes:
    """EXIF with one entry, an orientation of the given TIFF type."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    entry = struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + value.ljust(4, b"\0")
    return b"Exif\0\0" + head + entry + bytes(4)


def save(image: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
    b'"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff='
    b'"http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
TILES: dict[str, Callable[[Path], object]] = {
    **{f"exif{number}.jpg": write(jpeg(exif=oriented(number))) for number in range(1, 9)},
    **{f"exif{number}.png": save(picture(), exif=oriented(number)) for number in (2, 6, 7)},
    **{f"exif{n}.webp": save(picture(), exif=oriented(n), lossless=True) for n in (4, 5, 8)},
    **{f"exif{number}.tiff": save(picture(), tiffinfo={0x0112: number}) for number in (3, 5)},
    "exif0.jpg": write(jpeg(exif=raw_exif(3, struct.pack("<H", 0)))),
    "exif9.jpg": write(jpeg(exif=raw_exif(3, struct.pack("<H", 9)))),
    "exif_ascii.jpg": write(jpeg(exif=raw_exif(2, b"6"))),
    "exif_long.jpg": write(jpeg(exif=raw_exif(4, struct.pack("<I", 6)))),
    "exif_big_endian.jpg": write(jpeg(exif=raw_exif(3, struct.pack(">H", 5), ">"))),
    "exif_damaged.jpg": write(jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\x09")),
    "xmp.jpg": write(jpeg(xmp=XMP[29:])),
    "stereo.jpg": save(picture(), format="MPO", save_all=True, append_images=[other()]),
    "gain_map.jpg": save(
        picture(), format="MPO", save_all=True, append_images=[other().resize((24, 16))]
    ),
    "joined.jpg": write(jpeg() + jpeg(other())),
    "mirrored_stereo.jpg": save(
        picture(), format="MPO", save_all=True, append_images=[other()], exif=oriented(2)
    ),
    "trailing.jpg": write(jpeg() + bytes(777) + b"SEFT"),
    "animated.png": save(picture(), save_all=True, append_images=[other()] * 3),
    "animated.webp": save(picture(), save_all=True, append_images=[other()] * 3, lossless=True),
    "pages.tiff": save(picture(), save_all=True, append_images=[other()]),
    "alpha.png": save(half_transparent()),
    "alpha.webp": save(half_transparent(), lossless=True),
    "alpha.tiff": save(half_transparent()),
    "grey_alpha.png": save(half_transparent().convert("LA")),
    "palette.png": save(picture().quantize(8)),
    "palette_alpha.png": save(picture().quantize(8), transparency=0),
    "colour_key.png": save(picture(), transparency=CORNERS[0]),
    "grey16.png": save(grey16()),
    "grey16.tiff": save(grey16()),
    "cmyk.jpg": write(jpeg(picture().convert("CMYK"))),
    "grey.jpg": write(jpeg(picture().convert("L"))),
    "photo.tiff": save(picture()),
    "photo.tif": save(picture(), compression="tiff_deflate"),
    "photo.jfif": write(jpeg()),
    "photo.jpe": write(jpeg()),
    "photo.avif": save(picture(), quality=95),
    "photo.jp2": save(picture()),
    "photo.bmp": save(picture()),
    "still.gif": save(picture().quantize(8)),
    "transparent.gif": save(picture().quantize(8), transparency=0),
    "gif_named.jpg": save(picture().quantize(8), format="GIF"),
    "png_named.gif": save(picture(), format="PNG"),
    "avif_named.png": save(picture(), format="AVIF", quality=95),
    "without_extension": write(jpeg()),
    "photo.unknown": save(picture(), format="PNG"),
    "photo.v2": save(picture(), format="TIFF"),
}


def expected(path: Path) -> NDArray[np.int64]:
    """The image as Pillow shows it."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I;16":
            return np.asarray(upright)[..., None].repeat(3, -1).astype(int) // 257
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            upright = Image.alpha_composite(white, layer)
        return np.asarray(upright.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, make in TILES.items():
        make(folder / name)
    lines = [f"{name},caption of {name}" for name in TILES]
    (folder / "my.csv").write_text("\n".join(["path,caption", *lines]))
    return folder


@pytest.mark.parametrize("options", [{}, {"short_side": 4096}], ids=["copied", "encoded"])
def test_images_are_shown_as_pillow_shows_them(
    folder: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    summary, good, bad = prepare_source(folder / "my.csv", tmp_path / "out", **options)
    assert bad == {}
    assert summary.clips == {"train": len(TILES)}
    for name in TILES:
        row = good[f"train/{name}"]
        assert (row["media"], row["frames"]) == ("image", 1), name
        with (tmp_path / "out" / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            content = file.read(row["size"])
        shown = decode_frames(content, [0], Timeline.of(row))[0].astype(int)
        wanted = expected(folder / name)
        assert shown.shape == wanted.shape == (row["height"], row["width"], 3), name
        # JPEG's chroma is subsampled at the quarters' borders
        assert np.median(np.abs(shown - wanted)) <= 3, name
        assert np.abs(shown - wanted).mean() < 6, name


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_training_never_shows_another_picture(
    tmp_path: Path, decoder: Literal["pyav", "dali"]
) -> None:
    names = ["stereo.jpg", "gain_map.jpg", "joined.jpg", "animated.png", "animated.webp"]
    for name in names:
        TILES[name](tmp_path / name)
    lines = "\n".join(["path,caption", *(f"{name},a photo" for name in names)])
    (tmp_path / "my.csv").write_text(lines)
    prepare(PrepareOptions(tmp_path / "my.csv", tmp_path / "out", workers=1), progress=False)
    config = DataConfig(workers=0, dali_threads=1, color_jitter=0.0, decoder=decoder)
    stream = TrainStream([DatasetSpec(tmp_path / "out")], ClipConfig(1, 32, 8), config, seed=0)
    batches = stream.batches(first=0, rank=0, world=1, micro_batch=5, device=torch.device("cpu"))
    mean, std = np.array(config.mean), np.array(config.std)
    for _ in range(6):
        batch = next(batches)
        assert not batch.bad
        pixels = batch.pixels[:, 0].permute(0, 2, 3, 1).numpy() * std + mean
        # no colour of the first picture has all channels bright
        assert pixels.min(-1).max() < 0.75
    batches.close()


def test_an_index_of_further_pictures_shows_the_first(tmp_path: Path) -> None:
    """Folders of earlier versions count the pictures of an animated PNG as frames."""
    TILES["animated.png"](tmp_path / "a.png")
    shown = decode_frames((tmp_path / "a.png").read_bytes(), [0, 2], Timeline((0,), None, 25.0))
    assert np.array_equal(shown, np.stack([np.asarray(picture())] * 2))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif", "jp2"])
def test_a_cut_image_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    assert probe(content, suffix, Limits())["media"] == "image"
    with pytest.raises(ProbeError) as error:
        probe(content[: len(content) // 2], suffix, Limits())
    assert error.value.reason == "undecodable"


@pytest.mark.parametrize(
    ("name", "content", "reason", "match"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(40), "unknown_format", "HEIC"),
        ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "unknown_format", "HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(40), "unknown_format", "JPEG XL"),
        ("a.psd", b"8BPS\0\1" + bytes(40), "unknown_format", "Photoshop"),
        ("paper", b"%PDF-1.7\n" + bytes(40), "unknown_format", "PDF"),
        ("a.xyz", b"\x01\x02nothing known" + bytes(40), "undecodable", "begins with"),
        ("a.png", b"\x01\x02nothing known" + bytes(40), "undecodable", "begins with"),
        ("a.mp4", jpeg(), "not_a_video", "jpg"),
        ("a.mkv", b"GIF89a" + bytes(40), "not_a_video", "gif"),
    ],
    ids=["heic", "heic_jpg", "jxl", "psd", "pdf", "xyz", "png", "jpg_mp4", "gif_mkv"],
)
def test_an_unknown_or_wrong_format_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str, match: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "my.csv").write_text(f"path,caption\n{name},a photo\n")
    _, good, bad = prepare_source(tmp_path / "my.csv", tmp_path / "out")
    assert good == {}
    assert bad[f"train/{name}"][0] == reason
    assert match in bad[f"train/{name}"][1]


def test_a_video_under_an_images_name_is_named(tmp_path: Path) -> None:
    for name, codec in (("a.jpg", "libx264"), ("b.png", "libvpx")):
        video = write_video(tmp_path / {"libx264": "v.mp4", "libvpx": "v.webm"}[codec], codec=codec)
        video.rename(tmp_path / name)
        with pytest.raises(ProbeError, match="under an image's name") as error:
            examine(ClipTask((tmp_path / name,), 0, None, name[-3:]), Limits())
        assert error.value.reason == "not_an_image"


def test_a_video_without_extension_stays_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    write_video(tmp_path / "animated.gif", codec="gif", rate=10)
    (tmp_path / "raw.mjpeg").write_bytes(b"".join(jpeg() for _ in range(24)))
    (tmp_path / "my.csv").write_text("path,caption\nclip,a\nanimated.gif,b\nraw.mjpeg,c\n")
    _, good, bad = prepare_source(tmp_path / "my.csv", tmp_path / "out")
    assert bad == {}
    found = {
        row["source"]: (row["media"], row["container"], row["frames"]) for row in good.values()
    }
    assert found == {
        "clip": ("video", "mp4", 24),
        "animated.gif": ("video", "gif", 24),
        "raw.mjpeg": ("video", "mjpeg", 24),
    }


def test_an_avif_of_heifs_container_brand_is_read(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.avif", quality=95)
    content = bytearray((tmp_path / "a.avif").read_bytes())
    assert content[4:12] == b"ftypavif"
    content[8:12] = b"mif1"  # the compatible brands still name avif
    assert probe(bytes(content), "avif", Limits())["codec"] == "av1"
    shown = decode_frames(bytes(content), [0])[0].astype(int)
    assert np.median(np.abs(shown - np.asarray(picture()))) <= 3


def test_values_without_a_defined_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tiff")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(tmp_path / "b.tiff")
    for name in ("a.tiff", "b.tiff"):
        content = (tmp_path / name).read_bytes()
        with pytest.raises(ProbeError, match="convert it to 8 or 16 bits"):
            probe(content, "tiff", Limits())
        with pytest.raises(DecodeError):
            decode_frames(content, [0])


def test_the_processor_shows_files_and_memory_alike(tmp_path: Path) -> None:
    processor = AllInOneProcessor.of(ClipConfig(2, 32, 8))
    for name in ("alpha.png", "grey16.png", "still.gif", "exif5.jpg"):
        TILES[name](tmp_path / name)
        with Image.open(tmp_path / name) as image:
            inside = processor(image)["pixels"]
        assert torch.equal(processor(tmp_path / name)["pixels"], inside), name
        assert inside.shape == (1, 1, 3, 32, 32), name


def test_an_index_row_of_a_still_gif_is_an_image(tmp_path: Path) -> None:
    TILES["still.gif"](tmp_path / "a.gif")
    (tmp_path / "my.csv").write_text("path,caption\na.gif,a drawing\n")
    prepare(PrepareOptions(tmp_path / "my.csv", tmp_path / "out", workers=1), progress=False)
    row = Index(tmp_path / "out", "train")[0]
    assert (row["codec"], row["container"], row["pixel_format"]) == ("gif", "gif", "rgb24")
