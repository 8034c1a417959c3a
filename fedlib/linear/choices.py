"""Step sizes, cohorts and rates to choose by."""

__all__ = ["Cohort", "asymptotic_rate", "cohort_needed", "largest_lr"]

import math
import sys
from typing import NamedTuple

import numpy as np

from fedlib._checks import check_int, check_number, check_positive, check_positive_int, refuse
from fedlib.linear._arrays import EPS, least_singular, product, rescaled, scaled
from fedlib.linear.certificate import ROUNDING, forcing
from fedlib.linear.tasks import LinearTasks, check_tasks


def largest_lr(tasks: LinearTasks, *, distance: float, local_steps: int) -> float:
    r"""Return the largest step size α that Theorem 7.1 admits with all clients in every round.

    Args:
        tasks: the clients' tasks, with any number of outputs.
        distance: of the matched start from the truth, in [0, 1).
        local_steps: gradient steps τ, at least 2.

    Returns:
        The step size (less a billionth, for rounding); at most the largest float.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, the heads lie in a hyperplane, the
            distance is within 5e-13 of 1, or the step size is too small for float64.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> round(largest_lr(tasks, distance=0.6, local_steps=2), 4)
        0.0276

    Reference:
        Conditions (C1) and (C2) of Theorem 7.1 (thm-representation). Chapter 7.
    """
    check_tasks(tasks)
    local_steps = check_int("local_steps", local_steps, minimum=2)
    rho, E0 = _rho(tasks, distance)
    if E0 < 1e-12:
        refuse("distance", distance, "rounding decides so near 1", "distance <= 1 - 1e-12")
    eta = min(rho**2 / 40 / forcing(1.0, local_steps, E0), rho / 20 / (local_steps - 1))
    lr = (1 - 1e-9) * math.sqrt(eta) / tasks.L_max
    if lr < sys.float_info.min:
        why = f"heads of length {tasks.L_max:.4g} need a step size below all floats"
        refuse("tasks", tasks, why, "tasks.normalised()")
    return min(lr, sys.float_info.max)


def asymptotic_rate(tasks: LinearTasks, *, local_steps: int, lr: float) -> float:
    r"""Return the factor that the distance *keeps* per round near the truth, to first order in α².

    .. math:: 1-\alpha^2\Lambda_\tau,\qquad
              \Lambda_\tau=\lambda_{\min}\big((\tau-1)\mathrm{Cov}(w^*)
              +\tau\,\bar w^*\bar w^{*\top}\big).

    The first local step sees only the mean head, the τ - 1 others the full second moment.

    Args:
        tasks: the clients' tasks; with c outputs the same computation holds for matrix heads.
        local_steps: gradient steps τ.
        lr: their size α.

    Returns:
        The factor, from 0 to 1: the distance after a round over that before it. It is 1 if nothing
        is learned. The share *lost* is 1 minus it, as ``Guarantee.rate`` is a share lost.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or the step size so large (α²Λ > 1) that the
            first-order formula is no factor.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> [round(asymptotic_rate(tasks, local_steps=tau, lr=0.1), 6) for tau in (1, 2, 5)]
        [1.0, 0.99, 0.96]

    Reference:
        Theorem 8.1 (thm-asymptotic-rate) and the text after it. Chapter 8.
    """
    check_tasks(tasks)
    local_steps, lr = check_positive_int("local_steps", local_steps), check_positive("lr", lr)
    heads, exponent = scaled(tasks.heads)
    mean = heads.mean(axis=0)
    later = math.sqrt((local_steps - 1) / tasks.num_clients) * (heads - mean)
    rows = np.concatenate([later, math.sqrt(local_steps) * mean[None]])
    square, _ = least_singular(np.moveaxis(rows, 1, -1).reshape(-1, tasks.k))
    unit = float(rescaled(lr, exponent))
    lost = product(unit, unit, square)
    if lost > 1 + 4 * EPS:
        why = f"the first-order formula 1 - {lost:.3g} is no factor"
        most = rescaled(1 / math.sqrt(square), -exponent)
        refuse("lr", lr, why, f"lr <= {most:.3g}")
    return max(0.0, 1 - lost)


class Cohort(NamedTuple):
    """Clients per round that Theorem 8.3 asks for, and what they give to Theorem 7.1.

    Attributes:
        size: clients m to draw per round, with replacement.
        diversity: for ``guarantee``: ¾ of that of all clients.
        mean_drift: how far the mean head moves from round to round, at most. (``guarantee`` gets
            ``drift_share`` in its place, which costs less.)
        drift_share: for ``guarantee``: the square of that movement, over the heads' covariance.
    """

    size: int
    diversity: float
    mean_drift: float
    drift_share: float


def cohort_needed(
    tasks: LinearTasks, *, distance: float, num_rounds: int, failure: float
) -> Cohort:
    r"""Find how many clients per round make Theorem 7.1 hold with probability 1 - ``failure``.

    .. math:: m\ge\frac{450}{E_0\mu_*^2}\Big(\sqrt k+\sqrt{2\log(3T/q)}\Big)^2.

    Args:
        tasks: the clients' tasks, with any number of outputs.
        distance: of the matched start from the truth, in [0, 1).
        num_rounds: rounds T that it shall hold for.
        failure: probability q in (0, 1).

    Returns:
        The cohort; ``diversity`` and ``drift_share`` are arguments of ``guarantee``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or the heads lie in a hyperplane.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> cohort_needed(tasks, distance=0.2, num_rounds=1000, failure=0.05).size
        15181

    Reference:
        Theorem 8.3 (thm-cohort). Chapter 8.
    """
    check_tasks(tasks)
    num_rounds = check_positive_int("num_rounds", num_rounds)
    failure = check_number("failure", failure, above=0, below=1)
    rho, _ = _rho(tasks, distance)
    rare = math.log(3) + math.log(num_rounds) - math.log(failure)
    spread = math.sqrt(tasks.k) + math.sqrt(2 * rare)
    size = math.ceil(450 / rho * spread**2)
    share = 450 / 128 * (spread / math.sqrt(size)) ** 2
    drift = tasks.L_max * math.sqrt(0.75 * share)
    return Cohort(size, 0.75 * tasks.diversity, drift, share)


def _rho(tasks: LinearTasks, distance: float) -> tuple[float, float]:
    distance = check_number("distance", distance, least=0, below=1)
    distance = min(1 - EPS / 2, distance * (1 + 32 * EPS))  # room for the rounding of a start
    mu2, E0 = tasks.proven_diversity, (1 - distance) * (1 + distance)
    if mu2 < ROUNDING:
        raise ValueError("Invalid tasks: the heads lie in a hyperplane. Use diverse heads.")
    return E0 * mu2, E0
