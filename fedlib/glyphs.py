"""Images of characters, drawn with the fonts inside Matplotlib: many classes, no download."""

__all__ = ["load_glyphs"]

import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedlib._checks import check_int, refuse
from fedlib.data import ImageSet

# Matplotlib's own text fonts, whose files are the same in all its versions. The Computer Modern
# ones place punctuation as TeX does, not as ASCII does, so they draw letters and digits only.
_TEX_FONTS = ["cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"]
_OWN, _OWN_FONTS = Path(__file__).parent / "fonts", ["cmti10"]  # Matplotlib 3.10 lacks it
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
    and noise. A character's images depend on ``seed`` alone, not on the other characters, nor on
    the version of Matplotlib, and the first ones stay the same when ``per_class`` grows. Pixels
    are multiples of 1/255.

    Args:
        characters: distinct characters; their order is the order of the labels.
        per_class: number of images of each character, up to a million.
        seed: any integer >= 0.

    Raises:
        ValueError: if a character occurs twice, or no font has it.

    Example:
        >>> load_glyphs("abc", per_class=5, seed=0)
        ImageSet(glyphs: 15 images 1x16x16, 3 classes)
    """
    per_class = check_int("per_class", per_class, 1, 10**6)
    seed = check_int("seed", seed, minimum=0)
    listed = isinstance(characters, str | list | tuple)
    if (
        not listed
        or not characters
        or any(not isinstance(c, str) or len(c) != 1 for c in characters)
    ):
        error = ValueError if listed else TypeError
        why = "must be single characters, at least one"
        refuse("characters", characters, why, 'a string such as "abc"', error=error)
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
    fonts = {
        name: ft2font.FT2Font(str((_OWN if name in _OWN_FONTS else folder) / f"{name}.ttf"))
        for name in _FONTS + _TEX_FONTS
    }
    for c in characters:
        alphanumeric = c.isascii() and c.isalnum()
        drawings = []
        for name, font in fonts.items():
            if not font.get_char_index(ord(c)) or (name in _TEX_FONTS and not alphanumeric):
                continue
            page = _ink(_outline(font, c))
            drawings.append([gaussian_filter(page, sigma * _ZOOM) for sigma in _BLUR])
        if not drawings or not np.any(drawings):
            refuse("characters", c, "no font draws it", "printable characters")
        yield np.array(drawings)


def _outline(font, character: str) -> np.ndarray:
    """Starts, control points and ends of the quadratic curves around a character's ink.

    Read in the font's own units and scaled here, since FreeType's scaling differs between its
    versions. Returns (3, curves, 2): pixels of the drawing, right and up from the baseline, in
    64ths, as FreeType has them.
    """
    from matplotlib.ft2font import LoadFlags
    from matplotlib.path import Path as Codes

    font.set_size(font.units_per_EM, 72)
    font.load_char(ord(character), flags=LoadFlags.NO_HINTING)
    points, codes = (np.asarray(part) for part in font.get_path())
    points = 64 * _EM * _ZOOM / font.units_per_EM * points.reshape(-1, 2)
    points = np.trunc(points + np.copysign(0.5, points)) / 64
    rows = np.arange(len(codes))
    opening = np.maximum.accumulate(np.where(codes == Codes.MOVETO, rows, 0))
    points = np.where((codes == Codes.CLOSEPOLY)[:, None], points[opening], points)
    curved = codes == Codes.CURVE3  # two rows each: control point and end
    knots = rows[~(curved & (np.cumsum(curved) % 2 == 1))]
    start, end = knots[:-1], knots[1:]
    start, end = (side[codes[end] != Codes.MOVETO] for side in (start, end))
    middle = (points[start] + points[end]) / 2
    control = np.where((end - start == 2)[:, None], points[end - 1], middle)
    return np.stack([points[start], control, points[end]])


def _ink(outline: np.ndarray) -> np.ndarray:
    """Share of each pixel inside an outline, in 255ths, on a page of its own: (rows, columns).

    Drawn in plain arithmetic, so that every version of FreeType, and every machine, sees the same.
    """
    side = 2 * _SIZE * _ZOOM  # room for the widest letter and its blur
    if not outline.size:
        return np.zeros((side, side))
    (west, south), (east, north) = (end(outline, axis=(0, 1)) for end in (np.min, np.max))
    # Where FreeType's bitmaps, in whole pixels, stood when the stored results were computed.
    right = (side - int(east - west) - 2) // 2 - np.floor(west)
    baseline = side // 2 + round(0.33 * _EM * _ZOOM)  # centres capitals
    baseline += round(-south) + np.floor(north) - np.floor(north - south) - 1
    curves = outline * [1, -1] + [right, baseline]

    # Chords, halved until they are within a sixteenth of a pixel of the curve (and 1 / 64 more).
    bend = 4 * np.abs(curves[0] - 2 * curves[1] + curves[2]).max(axis=1)
    counts = 1 + sum(2**k * (bend >= 65 / 64 * 4**k) for k in range(8))
    which, k = _repeat(counts)
    start, control, end = curves[:, which]
    t = np.stack([k, k + 1])[..., None] / counts[which][:, None]
    chords = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end

    # Signed widths to the right of each crossing of 64 lines a pixel, summed along the rows.
    low, high = np.ceil(64 * np.sort(chords[..., 1], axis=0) - 0.5).astype(int)
    which, k = _repeat(high - low)
    line = low[which] + k
    start, end = chords[:, which]
    rise = end[:, 1] - start[:, 1]
    x = start[:, 0] + ((line + 0.5) / 64 - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
    pixel = line // 64 * side + np.floor(x).astype(int)
    after = x - np.floor(x)
    weights = np.sign(rise) / 64 * np.stack([1 - after, after])
    steps = np.bincount(np.concatenate([pixel, pixel + 1]), weights.ravel(), side**2)
    covered = np.abs(np.cumsum(steps.reshape(side, side), axis=1))
    return np.minimum(np.floor(256 * covered), 255) / 255


def _repeat(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index as often as ``counts`` says, and how often it occurred before."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - (np.cumsum(counts) - counts)[which]


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
