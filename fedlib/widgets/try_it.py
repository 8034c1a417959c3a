"""Sliders for a function of the reader's own, in a live kernel."""

__all__ = ["try_it"]

import contextlib
import html
import io
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt


class _TryIt(ipywidgets.VBox):
    """Sliders, and below them what the function printed, drew or returned."""

    def __init__(self, function: Callable, controls: dict):
        self._function, self._names = function, list(controls)
        self._text, self._picture = ipywidgets.HTML(), ipywidgets.VBox()
        # ipywidgets makes the sliders; its own place for output would need a front end.
        made = ipywidgets.interactive(lambda **_: None, {"manual": True}, **controls)
        self._sliders = made.kwargs_widgets
        super().__init__([*self._sliders, self._text, self._picture])
        for slider in self._sliders:
            slider.observe(self._show, names="value")
        self._show()

    def _show(self, change: object = None) -> None:
        before = set(plt.get_fignums())
        values = dict(zip(self._names, (slider.value for slider in self._sliders), strict=True))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result = self._function(**values)
        said = printed.getvalue() + ("" if result is None else f"{result!r}")
        self._text.value = f"<pre>{html.escape(said)}</pre>"
        pictures = []
        for number in sorted(set(plt.get_fignums()) - before):
            figure, png = plt.figure(number), io.BytesIO()
            figure.savefig(png, format="png", bbox_inches="tight")
            plt.close(figure)
            pictures.append(ipywidgets.Image(value=png.getvalue()))
        self._picture.children = pictures

    def __repr__(self) -> str:
        return f"Needs a live kernel (Colab or Jupyter): sliders for {', '.join(self._names)}."


def try_it(function: Callable, **controls) -> ipywidgets.VBox:
    """Return sliders for a function's arguments; it runs when one is moved.

    What the function prints, draws with Matplotlib or returns is shown below them. Without a
    kernel, as on the book's website, there is only a line that says so.

    Args:
        function: any function with keyword arguments.
        **controls: for each argument what ``ipywidgets.interact`` takes: ``(low, high, step)``,
            a list of choices, a number, True, or a widget.

    Returns:
        The widget; put it at the end of a cell.

    Example:
        >>> try_it(lambda n: print(n * n), n=(1, 9))
        Needs a live kernel (Colab or Jupyter): sliders for n.
    """
    return _TryIt(function, controls)
