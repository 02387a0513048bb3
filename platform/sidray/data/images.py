"""Pictures as bytes from outside: checked before they are decoded, and decoded to square RGB arrays.

    check_image(data, max_pixels=50_000_000)  # None, or the reason for refusing it
    decode_rgb(data, size=224)  # uint8 [3, 224, 224]

Only JPEG, PNG and WebP are opened; the size in the header is compared with the limit before any pixel is decoded, so a
decompression bomb costs nothing; animations are refused.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
_STRIP = 256  # lines that are composited at a time: whole, a picture would be held five times
_FORMATS = ("JPEG", "PNG", "WEBP")


class ImageError(ValueError):
    """The picture cannot be used; the message is the reason."""


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> str | None:
    """The reason why `data` cannot be used as a picture, or None when it decodes whole."""
    try:
        with _open(data, max_pixels) as image:
            image.draft("RGB", (1, 1))  # JPEG: reads the whole stream but computes 1/64 of the pixels
            image.load()
    except ImageError as error:
        return str(error)
    except Exception as error:  # whatever a decoder raises on hostile bytes means the same
        return _damaged(error)
    return None


def decode_rgb(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """The whole picture, turned upright (EXIF), scaled to fit and centred on white: uint8 [3, size, size].

    How many pixels it may have is for `check_image` to say. Transparent parts become white. Raises ImageError
    (a ValueError) with the reason when it cannot be decoded."""
    try:
        with _open(data) as image:
            longest = max(image.size)
            image.draft("RGB", _fit(image.size, longest, size))  # JPEG: decodes at 1/2, 1/4 or 1/8 where that is enough
            image.load()
            opaque = _on_white(_upright(image))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_damaged(error)) from error
    width, height = _fit(opaque.size, max(opaque.size), size)
    scaled = opaque.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))


def _open(data: bytes, max_pixels: float = math.inf) -> Image.Image:
    """Reads the header alone. Raises ImageError for what is refused by it."""
    if not data:
        raise ImageError("image: no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("image: not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, where max_pixels is set above it
        raise ImageError("image: more pixels than Pillow opens") from error
    if image.width * image.height > max_pixels:
        raise ImageError(f"image: more than {max_pixels:,} pixels")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a JPEG with a preview behind it
        raise ImageError("image: animated")
    return image


def _damaged(error: Exception) -> str:
    return f"image: damaged or truncated ({type(error).__name__})"


def _fit(shape: tuple[int, int], longest: int, size: int) -> tuple[int, int]:
    """`shape` scaled so that a side of length `longest` becomes `size`; no side falls below one pixel."""
    width, height = shape
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; EXIF that cannot be read says nothing."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        return image


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, composited on white where it is transparent; 16-bit greys are scaled to 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    opaque = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        layer = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        opaque.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque
