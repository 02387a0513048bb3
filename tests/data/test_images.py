"""Hostile and odd pictures are refused with a reason before they cost anything; good ones decode to exact pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from sidray.data import images
from sidray.data.images import ImageError, check_image, decode_rgb
from tests.data.makers import animation, bomb, noise, picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_good_pictures_pass(kind: str) -> None:
    data = noise((40, 30), kind)
    assert check_image(data) is None
    assert decode_rgb(data, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG or WebP"),
        (picture(kind="GIF"), "not a JPEG, PNG or WebP"),
        (picture(kind="TIFF"), "not a JPEG, PNG or WebP"),
        (noise((64, 64), "PNG")[:-5000], "damaged or truncated"),
        (noise((64, 64), "JPEG")[:-500], "damaged or truncated"),
        (noise((64, 64), "WEBP")[:-500], "damaged or truncated"),
        (animation("PNG"), "animated"),
        (animation("WEBP"), "animated"),
        (bomb(100_000, 100_000), "more pixels than Pillow opens"),
    ],
)
def test_bad_pictures_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    assert reason in str(check_image(data))
    with pytest.raises(ImageError, match=reason):
        decode_rgb(data, 32)


def test_a_bomb_is_never_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """81 million pixels, whole and valid, in a file of 10 kB: refused by its header alone."""
    out = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(out, "PNG")
    assert len(out.getvalue()) < 20_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert "more than" in str(check_image(out.getvalue()))


def test_the_limit_is_the_caller_s() -> None:
    data = picture(size=(20, 10))
    assert check_image(data, max_pixels=200) is None
    assert "more than 199 pixels" in str(check_image(data, max_pixels=199))
    large = picture(size=(7_200, 7_200), kind="JPEG")
    assert "more than 50,000,000 pixels" in str(check_image(large))
    assert check_image(large, max_pixels=60_000_000) is None
    assert decode_rgb(large, 8).shape == (3, 8, 8)


def test_a_wide_picture_is_centred_on_white() -> None:
    square = decode_rgb(picture((10, 20, 30), size=(40, 20)), 16)
    assert square.dtype == np.uint8
    assert (square[:, :4] == 255).all()
    assert (square[:, 12:] == 255).all()
    assert (square[:, 4:12] == np.array([10, 20, 30])[:, None, None]).all()


def test_a_small_picture_is_enlarged() -> None:
    assert (decode_rgb(picture((10, 20, 30), size=(4, 4)), 16) == np.array([10, 20, 30])[:, None, None]).all()


def test_scaling_equals_pillow_s_on_the_full_picture() -> None:
    data = noise((64, 64), "PNG")
    wanted = Image.open(io.BytesIO(data)).resize((16, 16), Image.Resampling.BICUBIC)
    difference = decode_rgb(data, 16).astype(int) - np.asarray(wanted).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 4  # reducing_gap: Pillow's own approximation of the same filter


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    out = io.BytesIO()
    image.convert(mode).save(out, "PNG")
    decoded = decode_rgb(out.getvalue(), 8)
    assert (decoded[:, :, 4:] == 255).all()
    assert decoded[0, 0, 0] < 60


def test_half_transparent_red_on_white() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(out, "PNG")
    assert np.abs(decode_rgb(out.getvalue(), 4).astype(int) - np.array([255, 127, 127])[:, None, None]).max() <= 1


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(out, "PNG")
    assert (decode_rgb(out.getvalue(), 4) == 40_000 >> 8).all()


def test_cmyk_jpeg_decodes() -> None:
    out = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(out, "JPEG")
    assert (decode_rgb(out.getvalue(), 8) > 250).all()


def test_photos_are_turned_upright() -> None:
    image = Image.new("RGB", (16, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 8))  # black above white, to be turned by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, quality=95)
    decoded = decode_rgb(out.getvalue(), 16)
    assert decoded[:, :6].min() > 240
    assert decoded[:, 10:].max() < 15


def test_broken_exif_does_not_cost_the_photo() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 9, 9)).save(out, "JPEG", exif=b"Exif\0\0no TIFF header")
    assert check_image(out.getvalue()) is None
    assert decode_rgb(out.getvalue(), 16).max() < 20


@given(mode=st.sampled_from(["RGBA", "LA", "PA", "P"]), width=st.integers(1, 9), height=st.integers(1, 9))
def test_what_is_transparent_becomes_white_whatever_the_strips(mode: str, width: int, height: int) -> None:
    values = np.random.default_rng(width + 9 * height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = 3
    elif mode != "RGBA":
        image = image.convert("LA").convert(mode)
    layer = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_STRIP", 2)
        assert images._on_white(image).tobytes() == whole.tobytes()
