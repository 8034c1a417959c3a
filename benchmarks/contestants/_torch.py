"""The models in plain torch, for the contestants that are built on it. Counted as nobody's code."""

__all__ = ["build", "loss"]

import math
from collections import OrderedDict

import torch
from torch import nn

from benchmarks.contestants._common import Work


def build(work: Work) -> nn.Module:
    """Return the model at its starting point; its parameters are named ``body…`` and ``head…``."""
    if work.model == "linear":
        body, head = (
            nn.Linear(*work.shape, work.hidden, bias=False),
            nn.Linear(work.hidden, 1, False),
        )
        parts = OrderedDict(body=body, head=head, squeeze=nn.Flatten(0))
    elif work.model == "mlp":
        width = math.prod(work.shape)
        body = nn.Sequential(nn.Flatten(), nn.Linear(width, work.hidden), nn.ReLU())
        parts = OrderedDict(body=body, head=nn.Linear(work.hidden, 10))
    else:
        body = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        parts = OrderedDict(body=body, head=nn.Linear(84, 10))
    model = nn.Sequential(parts)
    model.load_state_dict({name: torch.from_numpy(p) for name, p in work.start.items()})
    return model


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, or for real targets half the mean squared error."""
    if targets.is_floating_point():
        return 0.5 * nn.functional.mse_loss(outputs, targets)
    return nn.functional.cross_entropy(outputs, targets)
