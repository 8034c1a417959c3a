"""Pictures are compared by what they draw: another drawing fails, another font does not."""

import base64
import copy
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pictures
import pytest
import refresh
from chapters import Chapter, images
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from repository import ROOT, notebooks

import fedlib.plot

NOTEBOOKS = [Chapter(path) for path in notebooks()]


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    monkeypatch.setattr(FigureCanvasAgg, "print_png", FigureCanvasAgg.print_png)  # afterwards
    pictures.record()
    with matplotlib.rc_context():
        fedlib.plot.use_style()
        plt.rcParams["figure.constrained_layout.use"] = False  # for speed
        yield
    plt.close("all")


def figure() -> plt.Figure:
    """Two axes with a bit of everything that the book draws."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(5, 2))
    x = np.linspace(0, 10, 200)
    left.plot(x, np.sin(x), label="first")
    left.plot(x, np.cos(x), "o--", markevery=40, label="second")
    left.scatter([1, 2, 3], [0.5, 0.2, 0.1], c=[1, 2, 3])
    left.fill_between(x, np.sin(x) - 0.1, np.sin(x) + 0.1, alpha=0.2)
    left.annotate("here", (5, 0), (6, 0.5), arrowprops={"arrowstyle": "->"})
    left.set(xlabel="round", ylabel="loss", title="A")
    left.legend()
    right.imshow(np.arange(12.0).reshape(3, 4))
    right.axhline(1, color="red")
    return fig


def png(fig: plt.Figure, **how) -> str:
    file = io.BytesIO()
    fig.savefig(file, format="png", **how)
    return base64.b64encode(file.getvalue()).decode()


def move_curve(fig, share):
    curve = fig.axes[0].lines[0]
    low, high = fig.axes[0].get_ylim()
    curve.set_ydata(curve.get_ydata() + share * (high - low))
    fig.axes[0].set_ylim(low, high)


def swap_colours(fig):
    one, two = fig.axes[0].lines
    colours = one.get_color(), two.get_color()
    one.set_color(colours[1])
    two.set_color(colours[0])


def move_one_point(fig):
    dots = fig.axes[0].collections[0]
    dots.set_offsets(np.add(dots.get_offsets(), [[0, 0], [0.3, 0], [0, 0]]))


OTHER = {
    "a line more": lambda fig: fig.axes[0].plot([0, 10], [0, 0], lw=0.5),
    "a line less": lambda fig: fig.axes[0].lines[1].remove(),
    "two colours swapped": swap_colours,
    "a curve moved by five per cent": lambda fig: move_curve(fig, 0.05),
    "a curve moved by two per cent": lambda fig: move_curve(fig, 0.02),
    "one marker less": lambda fig: fig.axes[0].lines[1].set_markevery([0, 40, 80, 120]),
    "another marker": lambda fig: fig.axes[0].lines[1].set_marker("s"),
    "a dashed line made solid": lambda fig: fig.axes[0].lines[1].set_linestyle("-"),
    "one point moved": move_one_point,
    "points of a scatter in other colours": lambda fig: (
        fig.axes[0].collections[0].set_array([3, 2, 1])
    ),
    "another title": lambda fig: fig.axes[0].set_title("B"),
    "another label": lambda fig: fig.axes[0].set_xlabel("rounds"),
    "another text of the legend": lambda fig: fig.axes[0].get_legend().texts[0].set_text("frst"),
    "no legend": lambda fig: fig.axes[0].get_legend().remove(),
    "another tick": lambda fig: fig.axes[0].set_xticks([0, 3, 6, 9]),
    "another limit": lambda fig: fig.axes[0].set_xlim(-0.5, 11),
    "another scale": lambda fig: fig.axes[0].set_xscale("symlog"),
    "a note moved": lambda fig: fig.axes[0].texts[0].set_position((6.5, 0.5)),
    "an image turned": lambda fig: (
        fig.axes[1].images[0].set_data(np.arange(12.0).reshape(3, 4)[::-1])
    ),
    "another colour map": lambda fig: fig.axes[1].images[0].set_cmap("viridis"),
    "axes removed": lambda fig: fig.axes[1].remove(),
}
SAME = {
    "nothing": lambda fig: None,
    "a curve moved by less than its width": lambda fig: move_curve(fig, 0.005),
    "other fonts, as in another version": lambda fig: [
        text.set_fontname("DejaVu Serif") for text in fig.findobj(matplotlib.text.Text)
    ],
    "the legend elsewhere, as in a near tie": lambda fig: fig.axes[0].legend(loc="lower left"),
    "a finer grid of pixels": lambda fig: fig.set_dpi(120),
    "axes a little smaller, as wider labels make them": lambda fig: fig.subplots_adjust(left=0.13),
}


@pytest.mark.parametrize("change", OTHER)
def test_another_drawing_is_noticed(change):
    fig = figure()
    before = png(fig)
    OTHER[change](fig)
    assert pictures.difference(before, png(fig))


@pytest.mark.parametrize("change", SAME)
def test_what_differs_between_machines_is_overlooked(change):
    fig = figure()
    before = png(fig)
    SAME[change](fig)
    assert pictures.difference(before, png(fig)) == ""


def test_a_spike_in_a_long_curve_is_noticed():
    fig = figure()
    curve = fig.axes[0].lines[0]
    before = png(fig)
    y = curve.get_ydata().copy()
    y[117] += 0.3
    curve.set_ydata(y)
    assert "line2d 200 points" in pictures.difference(before, png(fig))


def test_the_difference_says_what_and_how_far():
    fig = figure()
    before = png(fig)
    move_curve(fig, 0.05)
    assert re.match(
        r"axes 1 line2d 200 points.*: off by 5\.\d %", pictures.difference(before, png(fig))
    )


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_recording_leaves_the_pixels_alone(layout, monkeypatch):
    def picture() -> str:
        fig = figure()
        fig.set_layout_engine(layout)
        return png(fig, bbox_inches="tight")  # as a notebook does

    recorded = picture()
    monkeypatch.setattr(FigureCanvasAgg, "print_png", FigureCanvasAgg.print_png.__wrapped__)
    plain = picture()
    assert np.array_equal(*(np.asarray(open_png(picture)) for picture in (plain, recorded)))


def open_png(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


@pytest.mark.parametrize("keep_text", [True, False])
def test_pixels_that_nobody_described_are_noticed(keep_text):
    """A picture that was drawn on, or stored by an editor, is not what its text says."""
    picture = png(figure())
    image, info = open_png(picture), PngInfo()
    if keep_text:
        info.add_text(pictures.KEY, image.text[pictures.KEY])
    image.putpixel((50, 50), (255, 0, 0, 255))
    file = io.BytesIO()
    image.save(file, format="png", pnginfo=info)
    edited = base64.b64encode(file.getvalue()).decode()
    assert "make refresh" in pictures.difference(edited, picture)


def test_refreshing_keeps_the_bytes_of_a_picture_that_draws_the_same():
    def notebook(picture):
        return {"cells": [{"id": "a", "outputs": [{"data": {"image/png": picture}}]}]}

    fig = figure()
    stored = png(fig)
    for share, kept in [(0.005, True), (0.05, False)]:
        move_curve(fig, share)
        new = notebook(png(fig))
        refresh.keep_unchanged_pictures(notebook(stored), new)
        assert (new == notebook(stored)) == kept


def test_a_closed_contour_is_the_same_however_it_is_closed():
    x = np.linspace(-1, 1, 30)
    fig, ax = plt.subplots()
    contours = ax.contour(x, x, np.hypot(x, x[:, None]), levels=[0.5])
    by_code = pictures.describe(fig)
    (loop,) = contours.get_paths()
    assert loop.codes[-1] == loop.CLOSEPOLY
    loop.codes[-1] = loop.LINETO
    assert pictures.describe(fig) == by_code
    loop.vertices[3] += 0.1
    assert pictures.describe(fig) != by_code


@pytest.mark.slow
def test_nbval_compares_pictures(tmp_path):
    notebook = new_notebook(
        cells=[
            new_code_cell("import matplotlib.pyplot as plt"),
            new_code_cell("plt.plot([0, 1, 3])\nplt.show()"),
            new_code_cell("plt.plot([3, 1, 0])\nplt.show()"),
        ]
    )
    start = f"--IPKernelApp.exec_lines={pictures.START}"
    NotebookClient(notebook, kernel_name="python3", extra_arguments=[start]).execute()
    swapped, changed, plain = (copy.deepcopy(notebook) for _ in range(3))
    swapped.cells[1].outputs = notebook.cells[2].outputs
    changed.cells[1].source = "plt.plot([0, 1.2, 3])\n" + changed.cells[2].source
    plain.cells[2].outputs[0].data["image/png"] = without_text(*pictures.of(plain.cells[2].outputs))
    for name, book in dict(same=notebook, swapped=swapped, changed=changed, plain=plain).items():
        nbformat.write(book, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-q", tmp_path]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "3 failed, 9 passed" in run.stdout, run.stdout + run.stderr
    assert "same.ipynb" not in run.stdout
    for place, how in [
        ("swapped.ipynb, cell 1", "axes 1 line2d 3 points, width 1.5: off by 91.0 %"),
        ("changed.ipynb, cell 1", "axes 1 line2d 3 points, width 1.5: more or fewer"),
        ("plain.ipynb, cell 2", "the stored picture does not say what it draws"),
    ]:
        assert f"{place}: the picture is not the stored one\n{how}" in run.stdout
    # A set: where CI is set, pytest says everything again in its summary.
    for new in set(re.findall(r"The new picture is (.*)\.$", run.stdout, re.MULTILINE)):
        assert Image.open(io.BytesIO(Path(new).read_bytes())).size[0] > 100
        Path(new).unlink()


def without_text(picture: str) -> str:
    file = io.BytesIO()
    open_png(picture).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=lambda chapter: chapter.path.stem)
def test_stored_pictures_say_what_they_draw(chapter):
    for cell in chapter.code:
        stored = pictures.of(cell["outputs"])
        assert len(stored) == len(images(cell)), "a picture that is no PNG would not be compared"
        for picture in stored:
            assert pictures.drawn(picture), f"not in the cell {cell['id']}: run `make refresh`"
