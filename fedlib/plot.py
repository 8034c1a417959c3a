"""The book's look, and results drawn onto a given ``Axes``. Nothing here shows or saves."""

__all__ = ["COLORS", "show_images", "use_style"]

import sys
from collections.abc import Sequence
from importlib import resources

import numpy as np
from jaxtyping import Float
from matplotlib import style
from matplotlib.axes import Axes
from numpy import ndarray

from fedlib._checks import check_array, check_int, check_type

COLORS = {
    "fedavg": "#0072B2",
    "one_step": "#D55E00",
    "one_step_more": "#E69F00",
    "reference": "#777777",
    "truth": "#009E73",
}
"""One colour per role, the same in every chapter; told apart by colour-blind readers."""


def use_style() -> None:
    """Use the book's style sheet for the figures that follow; in a notebook, at twice its dots."""
    with resources.as_file(resources.files("fedlib") / "book.mplstyle") as sheet:
        style.use(sheet)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")  # 220 dpi, shown as large as 110 are


def show_images(
    axes: Axes, images: Float[ndarray, "n c h w"], titles: Sequence[str] = (), *, columns: int = 12
) -> Axes:
    """Draw images side by side as one picture, row after row.

    Args:
        axes: where to draw.
        images: shape (n, channels, height, width), channels 1 or 3; cut off outside [0, 1].
        titles: one short text per image, written above it; or none.
        columns: images per row.

    Returns:
        The same axes.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if images are not of this shape, or not finite, or there is not one title each.
    """
    check_type("axes", axes, Axes, "Use plt.subplots()[1], say.")
    images = check_array("images", images, (None, None, None, None))
    images = np.clip(images, np.float32(0), 1.0)  # integers would be read as bytes
    columns = check_int("columns", columns, 1, 10_000)
    n, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"Invalid images: {channels} channels. Use 1 for grey, or 3 for colours.")
    titles = check_type("titles", titles, Sequence, "Use a list of short texts.")
    if len(titles) not in (0, n):
        raise ValueError(f"Invalid titles: {len(titles)} for {n} images. Use one each, or none.")
    gap = 5 if len(titles) else 1
    rows = -(-n // columns)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, top = column * (width + 1), row * (height + gap)
        axes.imshow(
            image.transpose(1, 2, 0), extent=(left, left + width, top + height, top), vmin=0, vmax=1
        )
        if len(titles):
            axes.text(left + width / 2, top - 0.4, titles[i], ha="center", va="bottom", fontsize=8)
    axes.set(
        xlim=(0, columns * (width + 1) - 1), ylim=(rows * (height + gap), -gap), aspect="equal"
    )
    axes.set_axis_off()
    return axes
