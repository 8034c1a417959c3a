"""Interactive of Chapter 10: exact risks of a new client."""

__all__ = ["FineTuning"]

import numpy as np

from fedlib import linear
from fedlib.widgets.base import Interactive, number, whole


class FineTuning(Interactive, module="risk"):
    """A head on learned features, all weights from scratch, or a head on the true features.

    Args:
        num_samples: examples n of the new client.
        distance: of the learned features from the truth, in the new client's direction.
        noise_std: standard deviation σ of the noise.
        k: features.
        d: inputs.

    Example:
        >>> numbers = FineTuning(distance=0.0).numbers()
        >>> bool((numbers["fine_tuned"] == numbers["oracle"]).all()), numbers["crossing"]
        (True, 0)

    Reference:
        Theorem 10.1 (thm-fine-tuning). Chapter 10.
    """

    num_samples = whole(10, 1, 200, "examples n")
    distance = number(0.3, 0.0, 1.0, "distance of the features")
    noise_std = number(0.5, 0.0, 2.0, "noise σ", step=0.05)
    k = whole(2, 1, 10, "features k")
    d = whole(20, 12, 60, "inputs d")

    def numbers(self) -> dict:
        """Risks for n = 1 … 200, and from which n on scratch is better (0: never)."""
        counts, theta = np.arange(1, 201), np.eye(self.d)[0]
        B = np.eye(self.d)[:, : self.k].copy()
        B[0, 0], B[self.k, 0] = np.sqrt(1 - self.distance**2), self.distance
        options = dict(num_samples=counts, noise_std=self.noise_std)
        fine_tuned = linear.fine_tuning_risk(B, theta, **options)
        scratch = linear.scratch_risk(self.d, theta, **options)
        ahead = (scratch < (1 - 1e-9) * fine_tuned) & (counts > self.d + 1)  # a tie is none
        return {
            "fine_tuned": fine_tuned,
            "scratch": scratch,
            "oracle": linear.fine_tuning_risk(np.eye(self.d)[:, : self.k], theta, **options),
            "crossing": int(counts[ahead.argmax()]) if ahead.any() else 0,
        }
