"""Interactives in space: two planes, and what their angle costs."""

__all__ = ["Angle", "TwoPlanes", "arc", "tilted"]

import numpy as np

from fedlib import linear
from fedlib.widgets.base import Interactive, number, whole


def arc(count: int, spread: float, centre: float) -> np.ndarray:
    """Heads of length 1 in the plane, spread evenly over an arc (degrees), shape (count, 2)."""
    angle = np.radians(centre + spread * ((np.arange(count) + 0.5) / count - 0.5))
    return np.column_stack([np.cos(angle), np.sin(angle)])


def tilted(degrees: float, lr: float) -> np.ndarray:
    """Turn the plane of the first two axes about the first: a matched start, shape (3, 2)."""
    angle = np.radians(degrees)
    return np.array([[1, 0], [0, np.cos(angle)], [0, np.sin(angle)]]) / np.sqrt(lr)


class TwoPlanes(Interactive, module="two_planes"):
    """The server's plane in space, which turns onto the clients' plane or does not.

    Twelve clients, d = 3, k = 2. The planes meet in a line, the hinge; the
    start is tilted about it.

    Args:
        local_steps: gradient steps τ of a client in a round.
        spread: angle over which the clients' heads are spread, degrees.
        mean_angle: angle between the mean head and the hinge, degrees.
        tilt: angle between the planes at the start, degrees.
        lr: step size α.
        round: the round that is shown.
        view: from where it is seen, degrees.

    Example:
        >>> planes = TwoPlanes(local_steps=1, spread=360.0)
        >>> planes
        TwoPlanes(local_steps=1, spread=360.0)
        >>> print(f"{planes.numbers()['distance'][-1]:.6f} {planes.numbers()['floor']:.6f}")
        0.866025 0.866025
        >>> bool(TwoPlanes().numbers()["distance"][-1] < 0.01)
        True

    Reference:
        Theorems 5.1 (thm-one-step-floor) and 7.1 (thm-representation). Chapters 5 to 7.
    """

    ROUNDS, CLIENTS = 120, 12

    local_steps = whole(5, 1, 20, "local steps τ")
    round = whole(10, 0, ROUNDS, "round")
    spread = number(180.0, 0.0, 360.0, "spread of the heads", step=5.0, unit="°")
    mean_angle = number(45.0, 0.0, 90.0, "mean head, from the hinge", step=5.0, unit="°")
    tilt = number(60.0, 5.0, 85.0, "angle at the start", step=1.0, unit="°")
    lr = number(0.2, 0.05, 0.6, "step size α", step=0.01)
    view = number(25.0, -180.0, 180.0, "seen from", step=5.0, unit="°")

    def numbers(self) -> dict:
        """Distances and angles (degrees) in rounds 0 … 120, the one-step floor, the mean head."""
        heads = arc(self.CLIENTS, self.spread, self.mean_angle)
        tasks, start = linear.LinearTasks(np.eye(3)[:, :2], heads), tilted(self.tilt, self.lr)
        options = dict(local_steps=self.local_steps, lr=self.lr, num_rounds=self.ROUNDS)
        run = linear.run(tasks, start, np.zeros(2), **options)
        a = np.radians(self.mean_angle)
        directions = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) @ tasks.B_star.T
        Q = np.linalg.qr(run.B)[0]
        missed = directions - np.einsum("tdk,tek,ie->tid", Q, Q, directions)
        angles = np.degrees(np.arcsin(np.minimum(1, np.linalg.norm(missed, axis=2))))
        return {
            "distance": run.distance,
            "along": angles[:, 0],
            "across": angles[:, 1],
            "floor": linear.one_step_floor(tasks, start),
            "mean_head": np.append(tasks.mean_head, 0.0),
        }


class Angle(Interactive, module="angle"):
    """What a new client misses on a learned plane at an angle to the true one.

    Args:
        angle: between the planes, degrees.
        head: direction of the client's regression vector in the true plane, degrees from the hinge.
        view: from where it is seen, degrees.

    Example:
        >>> numbers = Angle(angle=30.0, head=90.0).numbers()
        >>> round(numbers["distance"], 9), round(numbers["error"], 9)
        (0.5, 0.125)

    Reference:
        Proposition 4.4 (prop-subspace-distance). Chapter 4.
    """

    angle = number(40.0, 0.0, 90.0, "angle between the planes", step=1.0, unit="°")
    head = number(60.0, 0.0, 180.0, "client from the hinge", step=1.0, unit="°")
    view = number(25.0, -180.0, 180.0, "seen from", step=5.0, unit="°")

    def numbers(self) -> dict:
        """Distance, cosines of the principal angles, and the client's best fit, miss and error."""
        B, B_star, a = tilted(self.angle, 1.0), np.eye(3)[:, :2], np.radians(self.head)
        theta = B_star @ [np.cos(a), np.sin(a)]
        fit = B @ np.linalg.lstsq(B, theta, rcond=None)[0]
        missing = float(np.linalg.norm(theta - fit))
        return {
            "distance": linear.subspace_distance(B, B_star),
            "cosines": np.cos(linear.principal_angles(B, B_star))[::-1],
            "missing": missing,
            "error": missing**2 / 2,
            "fit": fit,
        }
