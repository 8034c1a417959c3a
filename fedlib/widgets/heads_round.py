"""Interactive of Chapter 6: the prior weight of a round."""

__all__ = ["HeadsInRound"]

import numpy as np

from fedlib import linear
from fedlib.widgets.base import Interactive, number, whole
from fedlib.widgets.planes import arc, tilted


class HeadsInRound(Interactive, module="heads_round"):
    """The clients' heads in a round, and what it keeps of the body: the prior weight P.

    Twelve clients, d = 3, k = 2; the server's head is what the mean client would fit.

    Args:
        local_steps: gradient steps τ of the round.
        spread: angle over which the clients' heads are spread, degrees.
        lr: step size α.
        tilt: angle between the server's plane and the clients', degrees.

    Example:
        >>> kept = HeadsInRound().numbers()["largest"]
        >>> bool(abs(kept[1] - 1) < 1e-9), bool(kept[2] < 0.99)
        (True, True)

    Reference:
        Proposition 6.2 (prop-prior-signal), Corollary 6.1 (cor-prior-shrinks). Chapter 6.
    """

    CLIENTS, MOST = 12, 20

    local_steps = whole(1, 1, MOST, "local steps τ")
    spread = number(180.0, 0.0, 360.0, "spread of the heads", step=5.0, unit="°")
    lr = number(0.5, 0.1, 0.7, "step size α")
    tilt = number(40.0, 0.0, 85.0, "angle of the planes", step=1.0, unit="°")

    def numbers(self) -> dict:
        """P, its singular values and the clients' heads after 0 … 20 local steps."""
        tasks = linear.LinearTasks(np.eye(3)[:, :2], arc(self.CLIENTS, self.spread, 30.0))
        B = tilted(self.tilt, self.lr)
        w = self.lr * B.T @ (tasks.B_star @ tasks.mean_head)
        rounds = [
            linear.one_round(tasks, B, w, local_steps=steps, lr=self.lr)
            for steps in range(1, self.MOST + 1)
        ]
        priors = np.stack([np.eye(2), *(played.P for played in rounds)])
        sigma = np.linalg.svd(priors, compute_uv=False)
        return {
            "priors": priors,
            "largest": sigma[:, 0],
            "least": sigma[:, 1],
            "heads": rounds[-1].heads.transpose(1, 0, 2),
        }
