"""Interactive of Chapter 6: agreement on the order of labels."""

__all__ = ["Dial"]

import numpy as np

from fedlib import linear
from fedlib.widgets.base import Interactive, number, whole


class Dial(Interactive, module="dial"):
    """One step and several, as more and more clients agree on the order of their labels.

    A hundred clients, d = 4, k = 2, five outputs. Those that do not keep the common order have the
    five cyclic ones, equally often, which cancel in the mean.

    Args:
        share: of the clients that keep the common order.
        local_steps: gradient steps τ of FedAvg's clients in a round.
        lr: step size α.

    Example:
        >>> private, shared = Dial(share=0.0).numbers(), Dial(share=1.0).numbers()
        >>> bool(private["one"][-1] > 0.9 > 0.01 > shared["one"][-1])
        True

    Reference:
        Theorem 5.4 (thm-matrix-heads), Proposition 6.4 (prop-private-moment). Chapter 6.
    """

    CLIENTS, OUTPUTS, STEPS, EVERY = 100, 5, 600, 5

    share = number(0.25, 0.0, 1.0, "share with the common order", step=0.05)
    local_steps = whole(5, 2, 20, "local steps τ of FedAvg")
    lr = number(0.4, 0.1, 0.6, "step size α")

    def numbers(self) -> dict:
        """Distances of both runs, the mean head's singular values and the one-step floor."""
        turn = 2 * np.pi * np.arange(self.OUTPUTS) / self.OUTPUTS
        common = np.array([np.cos(turn), np.cos(2 * turn)]) / np.sqrt(self.OUTPUTS)
        kept = round(self.share * self.CLIENTS)
        orders = [0] * kept + [i % self.OUTPUTS for i in range(self.CLIENTS - kept)]
        heads = np.stack([np.roll(common, order, axis=1) for order in orders])
        tasks = linear.LinearTasks(np.eye(4)[:, :2], heads)
        cos, sin = np.cos(np.radians([70, 50])), np.sin(np.radians([70, 50]))
        start = np.vstack([np.diag(cos), np.diag(sin)]) / np.sqrt(self.lr)

        def distance(steps):
            options = dict(local_steps=steps, lr=self.lr, num_rounds=self.STEPS // steps)
            return linear.run(tasks, start, np.zeros((2, self.OUTPUTS)), **options).distance

        return {
            "one": distance(1)[:: self.EVERY],
            "several": distance(self.local_steps),
            "sigma": np.linalg.svd(tasks.mean_head, compute_uv=False),
            "floor": linear.one_step_floor(tasks, start),
        }
