"""Interactive of Chapter 8: the theorem's step sizes and rounds beside measured ones."""

__all__ = ["Promise"]

import numpy as np

from fedlib import linear
from fedlib.widgets.base import Interactive, number, whole


class Promise(Interactive, module="promise"):
    """Which step sizes Theorem 7.1 admits, the rounds that it promises, and those taken.

    Two clients with heads ±1, d = 2, k = 1: the kindest federation there is.

    Args:
        local_steps: gradient steps τ of a client in a round.
        lr: step size α.
        distance: of the matched start from the truth; asked for is a tenth of it.

    Example:
        >>> inside, outside = Promise(lr=0.03).numbers(), Promise(lr=0.3).numbers()
        >>> inside["admitted"], outside["admitted"], inside["taken"] < inside["promised"]
        (1, 0, True)

    Reference:
        Theorem 7.1 (thm-representation), Theorem 8.1 (thm-asymptotic-rate). Chapter 8.
    """

    MOST = 4000

    lr = number(0.05, 0.005, 1.0, "step size α", log=True)
    local_steps = whole(5, 2, 20, "local steps τ")
    distance = number(0.3, 0.05, 0.95, "distance at the start")

    def numbers(self) -> dict:
        """Largest step size, rate, rounds promised and taken (-1: none, or not within 4,000)."""
        tasks = linear.LinearTasks(np.eye(2)[:, :1], np.array([[1.0], [-1.0]]))
        angle = np.arcsin(self.distance)
        B = start = np.array([[np.cos(angle)], [np.sin(angle)]]) / np.sqrt(self.lr)
        promise = linear.guarantee(tasks, start, local_steps=self.local_steps, lr=self.lr)
        target = self.distance / 10
        most = linear.largest_lr(tasks, distance=self.distance, local_steps=self.local_steps)
        promised, taken, distances = promise.rounds(target), -1, np.array([self.distance])
        options = dict(local_steps=self.local_steps, lr=self.lr, num_rounds=100)
        try:
            while len(distances) <= self.MOST and taken < 0:
                run = linear.run(tasks, B, np.zeros(1), **options)
                distances, B = np.append(distances, run.distance[1:]), run[-1][0]
                if (distances <= target).any():
                    taken = int(np.argmax(distances <= target))
        except FloatingPointError:
            taken = -2
        return {
            "largest": most,
            "admitted": int(self.lr <= most),
            "rate": promise.rate,
            "promised": int(promised) if np.isfinite(promised) else -1,
            "taken": taken,
            "distances": distances[: taken + 1] if taken > 0 else distances,
        }
