"""Images of characters, drawn with the fonts inside Matplotlib: many classes, no download."""

__all__ = ["load_glyphs"]

import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedlib._checks import check_int, check_positive_int
from fedlib.data import ImageSet

# Matplotlib's own text fonts. The Computer Modern ones place punctuation as TeX does, not as ASCII
# does, so they draw letters and digits only.
_TEX_FONTS = ["cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"]
_FONTS = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"]
_FONTS += [
    f"DejaVu{family}{style}"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
]
_SIZE, _EM, _ZOOM = 16, 15, 4  # pixels a side; pixels of a font's em; finer grid of the drawings
_BLUR = [0.3, 0.65]  # standard deviation of the sharpest and the softest strokes, pixels
_NOISE = 0.05  # standard deviation of each pixel's noise, intensity
_RANGES = {  # of what is drawn for each image, uniformly
    "font": (0, 1),  # fraction of the list of fonts
    "blur": (0, 1),  # sharpest to softest
    "angle": (-np.pi / 12, np.pi / 12),  # radians
    "shear": (-0.25, 0.25),  # pixels right per pixel down
    "width": (0.85, 1.15),  # factor
    "height": (0.85, 1.15),  # factor
    "down": (-1.5, 1.5),  # pixels
    "right": (-1.5, 1.5),  # pixels
    "paper": (0, 0.2),  # intensity
    "ink": (0.7, 1),  # intensity
}


def load_glyphs(
    characters: Sequence[str] = string.ascii_letters + string.digits, *, per_class: int, seed: int
) -> ImageSet:
    """Draw characters in Matplotlib's fonts, bent, blurred and noisy: 1x16x16, and no download.

    Each image has its own font, rotation (up to 15 degrees), shear, scale, shift, blur, contrast
    and noise. A character's images depend on ``seed`` alone, not on the other characters, and the
    first ones stay the same when ``per_class`` grows. Pixels are multiples of 1/255.

    Args:
        characters: distinct characters; their order is the order of the labels.
        per_class: number of images of each character.
        seed: any integer >= 0.

    Raises:
        ValueError: if a character occurs twice, or no font has it.

    Example:
        >>> load_glyphs("abc", per_class=5, seed=0)
        ImageSet(glyphs: 15 images 1x16x16, 3 classes)
    """
    check_positive_int("per_class", per_class)
    check_int("seed", seed, minimum=0)
    if not characters or any(len(c) != 1 for c in characters):
        raise ValueError(
            f"Invalid characters={characters!r}: must be single characters, at least one. "
            'Use a string such as "abc".'
        )
    images = [
        _warp(drawings, per_class, np.random.default_rng([seed, ord(c)]))
        for c, drawings in zip(characters, _draw(characters), strict=True)
    ]
    labels = np.repeat(np.arange(len(characters)), per_class)
    return ImageSet(np.concatenate(images), labels, class_names=tuple(characters), name="glyphs")


def _draw(characters: Sequence[str]) -> Iterable[np.ndarray]:
    """Draw each character in every font that has it, sharp and soft: (fonts, 2, rows, columns)."""
    from matplotlib import ft2font, get_data_path
    from scipy.ndimage import gaussian_filter

    folder = Path(get_data_path()) / "fonts" / "ttf"
    fonts = {name: ft2font.FT2Font(str(folder / f"{name}.ttf")) for name in _FONTS + _TEX_FONTS}
    for font in fonts.values():
        font.set_size(_EM * _ZOOM, 72)
    side = 2 * _SIZE * _ZOOM  # room for the widest letter and its blur
    baseline = side // 2 + round(0.33 * _EM * _ZOOM)  # centres capitals
    for c in characters:
        alphanumeric = c.isascii() and c.isalnum()
        drawings = []
        for name, font in fonts.items():
            if not font.get_char_index(ord(c)) or (name in _TEX_FONTS and not alphanumeric):
                continue
            font.set_text(c, 0, flags=ft2font.LoadFlags.NO_HINTING)
            font.draw_glyphs_to_bitmap(antialiased=True)
            ink = np.asarray(font.get_image()) / 255
            top = baseline + round(font.get_descent() / 64) - ink.shape[0]
            left = (side - ink.shape[1]) // 2
            page = np.zeros((side, side))
            page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
            drawings.append([gaussian_filter(page, sigma * _ZOOM) for sigma in _BLUR])
        if not drawings or not np.any(drawings):
            raise ValueError(
                f"Invalid characters with {c!r}: no font draws it. Use printable characters."
            )
        yield np.array(drawings)


def _warp(drawings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample ``count`` images (count, 1, 16, 16) from one character's drawings."""
    from scipy.ndimage import map_coordinates

    rng, noise_rng = rng.spawn(2)  # two streams, so that more images only append
    low, high = np.array(list(_RANGES.values())).T
    draws = rng.uniform(low, high, (count, len(_RANGES)))[:, :, None, None]
    font, blur, angle, shear, width, height, down, right, paper, ink = np.moveaxis(draws, 1, 0)
    grid = np.arange(_SIZE) - (_SIZE - 1) / 2
    y, x = grid[:, None] - down, grid - right
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.cos(angle) * x + np.sin(angle) * y
    y, x = y / height, x / width + shear * y
    centre = (drawings.shape[-1] - 1) / 2
    where = np.floor(font * len(drawings)), blur, centre + _ZOOM * y, centre + _ZOOM * x
    stroke = map_coordinates(drawings, np.broadcast_arrays(*where), order=1)
    images = paper + (ink - paper) * stroke
    images += _NOISE * noise_rng.standard_normal(images.shape)
    # 256 levels, so that rounding in the last digit, which differs between CPUs, cannot show
    return (np.rint(255 * images.clip(0, 1)) / 255).astype(np.float32)[:, None]
