"""Interactive figures: they compute in the browser, so they live on a page without a kernel, too.

Each one is an `anywidget <https://anywidget.dev>`_ whose state can be set and read from Python::

    planes = fl.widgets.TwoPlanes(local_steps=1)
    planes  # at the end of a cell: drag, press Play
    planes.round = 40  # from Python; reading it gives what the reader set
    planes.numbers()["distance"]  # what is drawn, computed by fedlib

They need anywidget, which Colab has; elsewhere ``pip install anywidget``. ``import fedlib`` does
not need it.
"""

try:
    import anywidget as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fl.widgets needs the package anywidget, which is not installed. "
        "Run `pip install anywidget` and restart the kernel."
    ) from error

from fedlib.widgets.base import Interactive
from fedlib.widgets.dial import Dial
from fedlib.widgets.drift import Drift
from fedlib.widgets.heads_round import HeadsInRound
from fedlib.widgets.horizon import Horizon
from fedlib.widgets.labels import Labels
from fedlib.widgets.planes import Angle, TwoPlanes
from fedlib.widgets.promise import Promise
from fedlib.widgets.risk import FineTuning
from fedlib.widgets.try_it import try_it

KINDS = (TwoPlanes, Drift, Angle, HeadsInRound, Dial, Promise, FineTuning, Labels, Horizon)
"""All interactives."""

__all__ = [
    "KINDS",
    "Angle",
    "Dial",
    "Drift",
    "FineTuning",
    "HeadsInRound",
    "Horizon",
    "Interactive",
    "Labels",
    "Promise",
    "TwoPlanes",
    "try_it",
]
