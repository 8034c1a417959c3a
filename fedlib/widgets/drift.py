"""Interactive of Chapter 2: where FedAvg comes to rest."""

__all__ = ["Drift"]

import numpy as np

from fedlib.widgets.base import Interactive, number, whole


class Drift(Interactive, module="drift"):
    """FedAvg on three quadratic losses in the plane: paths, surrogate loss, fixed point.

    Args:
        local_steps: gradient steps τ of a client in a round.
        lr: step size α; 2/L is 0.79 here.
        share: weight of the third client; the other two share the rest.
        round: the round that is shown.

    Example:
        >>> round(Drift(local_steps=1).numbers()["drift"], 9)
        0.0
        >>> bool(Drift(local_steps=20).numbers()["drift"] > 0.1)
        True

    Reference:
        Theorem 2.1 (thm-drift-fixed-point). Chapter 2.
    """

    ROUNDS, MOST = 60, 40
    CURVATURE = np.array(
        [[[0.4, 0.2], [0.2, 1.4]], [[2.5, -0.3], [-0.3, 0.3]], [[0.3, 0], [0, 0.4]]]
    )
    OPTIMA = np.array([[-2, 1.5], [2, 1], [0.5, -1.5]])
    START = np.array([-1.5, 0.5])

    local_steps = whole(10, 1, MOST, "local steps τ")
    lr = number(0.2, 0.01, 0.75, "step size α")
    share = number(0.4, 0.1, 0.9, "weight of client 3", step=0.05)
    round = whole(3, 0, ROUNDS, "round")

    @property
    def weights(self) -> np.ndarray:
        """Weights of the three clients."""
        return np.array([(1 - self.share) / 2, (1 - self.share) / 2, self.share])

    def numbers(self) -> dict:
        """Play the rounds client by client; solve for minimum and fixed points."""
        A, c, p = self.CURVATURE, self.OPTIMA, self.weights

        def rest(W):
            return np.linalg.solve(np.einsum("i,ijk->jk", p, W), np.einsum("i,ijk,ik->j", p, W, c))

        def curvature(steps):
            return np.eye(2) - np.linalg.matrix_power(np.eye(2) - self.lr * A, steps)

        server = [self.START]
        for _ in range(self.ROUNDS):
            x = np.tile(server[-1], (3, 1))
            for _ in range(self.local_steps):
                x = x - self.lr * np.einsum("ijk,ik->ij", A, x - c)
            server.append(p @ x)
        minimum, limit = rest(A), rest(curvature(self.local_steps))
        left = np.eye(2) - np.einsum("i,ijk->jk", p, curvature(self.local_steps))
        return {
            "minimum": minimum,
            "limit": limit,
            "server": np.array(server),
            "rests": np.array([rest(curvature(i + 1)) for i in range(self.MOST)]),
            "drift": float(np.linalg.norm(limit - minimum)),
            "kept": float(np.linalg.norm(left, 2)),
        }
