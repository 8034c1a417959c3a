"""What a picture draws, written into its PNG, so that two pictures can be compared.

Pixels differ between versions of Matplotlib (text, and with it the layout) and say little about
what is missing. So the figure is drawn a second time, onto a recorder: every path, image and text
that reaches the page, in fractions of its axes. Where text is only takes room, every font does so
alike; where a legend lies is not compared, for "best" may be a near tie.
"""

import base64
import functools
import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

TOLERANCE = 0.01
"""Of the axes' width or height (a line of 1.8 points is as wide), and of a colour's range.

A text may lie three times as far off, since its distance from a point is in points of the page.
"""

KEY = "Drawn"  # the name of the PNG's text

_CODE = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import pictures"
START = f"exec({f'{_CODE}; pictures.record()'!r}, {{}})"
"""Lets a kernel record, and leaves no name behind in it."""


def record() -> None:
    """From now on, every PNG that this process draws carries what it draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL.PngImagePlugin import PngInfo

    plain = FigureCanvasAgg.print_png

    @functools.wraps(plain)
    def print_png(self, filename_or_obj, *, metadata=None, pil_kwargs=None):
        FigureCanvasAgg.draw(self)  # stops here where Matplotlib asks for the renderer only
        info = PngInfo()
        drawn = describe(self.figure) | {"pixels": fingerprint(self.buffer_rgba())}
        info.add_text(KEY, json.dumps(drawn), zip=True)
        plain(self, filename_or_obj, pil_kwargs={"pnginfo": info} | (pil_kwargs or {}))

    FigureCanvasAgg.print_png = print_png


def fingerprint(rgba) -> int:
    return zlib.crc32(np.ascontiguousarray(rgba))


def describe(figure) -> dict[str, list[list[int]]]:
    """What a figure draws: for each kind of mark, place and colour of each, in thousandths."""
    from matplotlib.backend_bases import RendererBase
    from matplotlib.path import Path as Outline

    class Recorder(RendererBase):
        """Draws nothing, and notes what it is asked to draw."""

        def __init__(self):
            super().__init__()
            self.marks, self.groups = {}, []
            self.name, self.box = "figure", figure.bbox

        def note(self, kind, points, *colours):
            places = (np.reshape(points, (-1, 2)) - self.box.p0) / self.box.size
            if "legend" in self.groups:
                places = []
            values = np.concatenate([np.ravel(places).clip(-1, 2), *colours])
            label = " ".join([self.name, *self.groups[-1:], kind])
            self.marks.setdefault(label, []).append(np.rint(1000 * values).astype(int).tolist())

        def draw_path(self, gc, path, transform, rgbFace=None):
            points = transform.transform(path.vertices)
            codes = np.zeros(len(points)) if path.codes is None else path.codes
            drawn = np.isfinite(points).all(1) & (codes != Outline.CLOSEPOLY)
            if self.groups[-1:] == ["QuadContourSet"] and len(points):
                # Rounding decides whether a loop is closed by a code or by its first point.
                ends = [*np.flatnonzero(codes == Outline.MOVETO)[1:], len(points)]
                for start, end in zip([0, *ends], ends, strict=False):
                    drawn[end - 1] &= not np.allclose(points[start], points[end - 1])
            points = points[drawn]
            if not len(points):
                return
            hollow = rgbFace is None or len(points) < 3
            fill = [0, 0, 0, 0] if hollow else rgbFace
            kind = f"{len(points)} points, width {gc.get_linewidth():.1f}"
            if gc.get_dashes()[1] is not None:
                kind += f", dashes {np.round(gc.get_dashes()[1], 1).tolist()}"
            if gc.get_hatch():
                kind += f", hatch {gc.get_hatch()}"
            curved = Outline.CURVE3 in codes or Outline.CURVE4 in codes
            if curved or len(points) > 100:  # the box around it, or around each fiftieth of it
                parts = np.array_split(points, 1 if curved else 50)
                points = [corner for part in parts for corner in (part.min(0), part.max(0))]
            self.note(kind, points, gc.get_rgb(), fill)

        def draw_image(self, gc, x, y, im, transform=None):
            height, width = im.shape[:2]
            self.note("place", [x, y, x + width, y + height])

        def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
            self.note(f"{s!r} {prop.get_size_in_points():.1f} {angle:.0f}", [x, y], gc.get_rgb())

        def get_text_width_height_descent(self, s, prop, ismath):
            size = self.points_to_pixels(prop.get_size_in_points())
            return 0.6 * size * len(s), size, 0.2 * size

        def get_canvas_width_height(self):
            return figure.bbox.size

        def points_to_pixels(self, points):
            return points * figure.dpi / 72

        def flipy(self):
            return False

        def open_group(self, s, gid=None):
            self.groups.append(s)

        def close_group(self, s):
            self.groups.pop()

    recorder = Recorder()
    for number, axes in enumerate(figure.axes, 1):
        recorder.name, recorder.box = f"axes {number}", axes.get_window_extent()
        axes.draw(recorder)
        for image in axes.get_images():  # their values, which no size in pixels changes
            rgba = Image.fromarray(image.to_rgba(image.get_array(), bytes=True))
            small = rgba.resize([min(n, 8) for n in rgba.size], Image.Resampling.BOX)
            recorder.note("image", [], np.ravel(small) / 255)
    recorder.name, recorder.box = "figure", figure.bbox
    for artist in figure.get_children():
        if artist not in figure.axes:
            artist.draw(recorder)
    return recorder.marks


def of(outputs: list[dict]) -> list[str]:
    """The pictures among a cell's outputs, as a notebook holds them (base64)."""
    return [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]


def drawn(png: str) -> dict[str, list[list[int]]]:
    """What a notebook's picture draws; empty if nobody wrote it down for these pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    marks = json.loads(image.text.get(KEY, "{}"))
    return marks if marks.pop("pixels", None) == fingerprint(image) else {}


def deviations(stored: str, new: str) -> dict[str, float]:
    """How far each kind of mark is off; infinitely, where there are more or fewer of it."""
    was, now = drawn(stored), drawn(new)
    off = {}
    for kind in [*was, *(now.keys() - was.keys())]:
        pair = [was.get(kind, []), now.get(kind, [])]
        same = [len(mark) for mark in pair[0]] == [len(mark) for mark in pair[1]]
        off[kind] = np.abs(np.subtract(*map(np.concatenate, pair))).max() / 1000 if same else np.inf
    return off


def is_text(kind: str) -> bool:
    return " text " in kind


def difference(stored: str, new: str) -> str:
    """Say in a sentence where two pictures (base64) differ; empty where they draw the same."""
    if not drawn(stored):
        return "the stored picture does not say what it draws. Run `make refresh`."
    off = deviations(stored, new)
    far = {kind: size for kind, size in off.items() if size > TOLERANCE * (1 + 2 * is_text(kind))}
    words = [
        f"{kind}: " + (f"off by {100 * size:.1f} %" if np.isfinite(size) else "more or fewer")
        for kind, size in sorted(far.items(), key=lambda item: -item[1])
    ]
    return "; ".join(words[:5])
