"""Reads still images by one rule, whether they are copied, re-encoded or shown.

An image is its first picture, upright by its EXIF tag, with transparent pixels over white and
16-bit values scaled to 8 bits. FFmpeg shows most JPEGs, PNGs, WebPs and BMPs exactly so and decodes
them; Pillow decodes the rest.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allinone.data.decoding.codecs import (
    IMAGES,
    MAGIC_BYTES,
    PixelLimitError,
    image_kind,
    require_pixels,
)

UNREADABLE_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that it cannot read or refuses to read."""
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")
"""Pillow's names of the formats that are read. JPEG includes MPO, a JPEG with further pictures."""
ORIENTATION = 0x0112
"""EXIF tag, which XMP may state instead."""
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes it upright (CIPA DC-008, section 4.6.4). 1, and everything that the
standard does not define, is upright."""
_MIRRORED = (2, 4, 5, 7)
# Reader processes would print a line for many a file of a web-scale set (damaged EXIF, sizes near
# the limit); what matters is raised.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(content: bytes | Path, max_pixels: int = 0) -> Image.Image:
    """Open an image; its pixels are decoded later.

    Args:
        content: The file or its path.
        max_pixels: Most pixels; 0: Pillow's own limit, 179 million.

    Raises:
        PixelLimitError: It has more pixels.
        OSError, ValueError, SyntaxError: See UNREADABLE_IMAGE.
    """
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    image = Image.open(source, formats=PILLOW_FORMATS)  # noqa: TID251
    try:
        require_pixels(*image.size, max_pixels)
    except PixelLimitError:
        image.close()
        raise
    return image


def is_image(content: bytes, extension: str) -> bool:
    """Whether a file is a still image: an image format, or a GIF with one picture.

    Args:
        content: The file.
        extension: What `codecs.image_extension` returns for it.
    """
    if extension != "gif":
        return extension in IMAGES
    try:
        with open_image(content) as image:
            return image.format == "GIF" and not _animated(image)
    except UNREADABLE_IMAGE:  # FFmpeg gives the reason
        return False


def _animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except (*UNREADABLE_IMAGE, EOFError):  # its second picture is damaged
        return True


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, from 1 to 8; 1 if there is none or if it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (*UNREADABLE_IMAGE, struct.error, TypeError, KeyError):
        return 1
    return value if isinstance(value, int) and value in TRANSPOSES else 1


def _ffmpeg_orientation(image: Image.Image) -> int | None:
    """The tag as FFmpeg reads it: not from XMP, and only of the standard's type, SHORT."""
    content = image.info.get("exif", b"")
    exif = Image.Exif()
    exif.load(content)
    short = any(struct.pack(f"{order}HH", ORIENTATION, 3) in content for order in "<>")
    return exif.get(ORIENTATION) if short else None


def needs_pillow(image: Image.Image) -> bool:
    """Whether FFmpeg would show an opened image differently from `upright_rgb`."""
    turned = orientation(image)
    if image.format in ("JPEG", "MPO"):
        # FFmpeg applies rotations of EXIF, but takes mirrored ones for rotations (PyAV 18.1 hides
        # the display matrix of such frames)
        applied = turned == 1 or (turned not in _MIRRORED and turned == _ffmpeg_orientation(image))
        return not applied or image.mode not in ("L", "RGB")
    if image.format in ("PNG", "WEBP", "BMP"):
        shown = image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data
        return turned > 1 or not shown or _animated(image)
    return True


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return the first picture of an opened image: RGB, 8 bits, upright, over white.

    Raises:
        UNREADABLE_IMAGE: The image is damaged, or its values have no defined range.
    """
    image.load()
    # after loading, which turns TIFFs upright
    turned = orientation(image)
    upright = image.transpose(TRANSPOSES[turned]) if turned in TRANSPOSES else image
    if upright.mode == "F":
        raise ValueError("floating-point values have no defined range; convert it to 8 or 16 bits")
    if upright.mode.startswith("I"):
        return _eight_bits(upright, image.info.get("transparency")).convert("RGB")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def _eight_bits(image: Image.Image, transparent: Any) -> Image.Image:
    """Scale 16-bit grey values to 8 bits; Pillow's own conversion clips them at 255.

    Args:
        image: An image of mode "I" or "I;16".
        transparent: The grey value that is shown as white; None if there is none.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("values of more than 16 bits; convert it to 8 or 16 bits")
    scaled = (values * 255 + 0x7FFF) // 0xFFFF
    if transparent is not None:
        scaled[values == transparent] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def picture_unlike_ffmpeg(content: bytes | Path, max_pixels: int = 0) -> NDArray[np.uint8] | None:
    """Read an image that FFmpeg would not show as `upright_rgb` does.

    Args:
        content: The bytes of a video or image, or its path.
        max_pixels: As for `open_image`.

    Returns:
        uint8 [H, W, 3]; None for videos and for images that FFmpeg shows rightly.

    Raises:
        UNREADABLE_IMAGE: The image is damaged.
    """
    if image_kind(_head(content)) is None:
        return None
    try:
        image = open_image(content, max_pixels)
    except PixelLimitError:
        raise
    except UNREADABLE_IMAGE:  # FFmpeg decides
        return None
    with image:
        if not needs_pillow(image) or (image.format == "GIF" and _animated(image)):
            return None
        return np.asarray(upright_rgb(image))


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:MAGIC_BYTES]
    try:
        with content.open("rb") as file:
            return file.read(MAGIC_BYTES)
    except OSError:  # decoding opens the file again and reports the reason
        return b""
