"""Step sizes, cohorts and rates to choose by."""

__all__ = ["Cohort", "asymptotic_rate", "cohort_needed", "largest_lr"]

import math
from typing import NamedTuple

import numpy as np

from fedlib._checks import check_int, check_positive, check_positive_int
from fedlib.linear.certificate import ROUNDING, forcing, one_output
from fedlib.linear.tasks import LinearTasks


def largest_lr(tasks: LinearTasks, *, distance: float, local_steps: int) -> float:
    r"""Return the largest step size α that Theorem B admits with all clients in every round.

    Args:
        tasks: the clients' tasks, with one output.
        distance: of the matched start from the truth, in [0, 1).
        local_steps: gradient steps τ, at least 2.

    Returns:
        The step size (less a billionth, for rounding).

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> round(largest_lr(tasks, distance=0.6, local_steps=2), 4)
        0.0276

    Reference:
        Conditions (C1) and (C2) of Theorem B. Chapter 7.
    """
    one_output(tasks)
    check_int("local_steps", local_steps, minimum=2)
    rho, E0 = _rho(tasks, distance)
    eta = min(rho**2 / 40 / forcing(1.0, local_steps, E0), rho / 20 / (local_steps - 1))
    return (1 - 1e-9) * math.sqrt(eta) / tasks.L_max


def asymptotic_rate(tasks: LinearTasks, *, local_steps: int, lr: float) -> float:
    r"""Return the factor that the distance loses per round near the truth, to first order in α².

    .. math:: 1-\alpha^2\Lambda_\tau,\qquad
              \Lambda_\tau=\lambda_{\min}\big((\tau-1)\mathrm{Cov}(w^*)
              +\tau\,\bar w^*\bar w^{*\top}\big).

    The first local step sees only the mean head, the τ - 1 others the full second moment.

    Args:
        tasks: the clients' tasks; with c outputs the same computation holds for matrix heads.
        local_steps: gradient steps τ.
        lr: their size α.

    Returns:
        The factor; 1 if nothing is learned.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> [round(asymptotic_rate(tasks, local_steps=tau, lr=0.1), 6) for tau in (1, 2, 5)]
        [1.0, 0.99, 0.96]

    Reference:
        Theorem B5 (upper bound), Remark B6 (sharp to first order). Chapter 8.
    """
    check_positive_int("local_steps", local_steps)
    check_positive("lr", lr)
    lr = float(lr)
    common = tasks.mean_head.reshape(tasks.k, -1)
    seen = (local_steps - 1) * tasks.head_covariance + local_steps * common @ common.T
    return 1 - lr**2 * max(0.0, float(np.linalg.eigvalsh(seen)[0]))


class Cohort(NamedTuple):
    """Clients per round that Theorem D asks for, and what they give to Theorem B.

    Attributes:
        size: clients m to draw per round, with replacement.
        diversity: for ``guarantee``: ¾ of that of all clients.
        mean_drift: for ``guarantee``: twice the deviation of a round's mean head.
    """

    size: int
    diversity: float
    mean_drift: float


def cohort_needed(
    tasks: LinearTasks, *, distance: float, num_rounds: int, failure: float
) -> Cohort:
    r"""Find how many clients per round make Theorem B hold with probability 1 - ``failure``.

    .. math:: m\ge\frac{712}{(E_0\mu_*^2)^2}\Big(1+\sqrt{2\log(2T/q)}\Big)^2.

    Args:
        tasks: the clients' tasks, with one output.
        distance: of the matched start from the truth, in [0, 1).
        num_rounds: rounds T that it shall hold for.
        failure: probability q in (0, 1).

    Returns:
        The cohort; its last two numbers are arguments of ``guarantee``.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> cohort_needed(tasks, distance=0.2, num_rounds=1000, failure=0.05).size
        24260

    Reference:
        Theorem D. Chapter 8.
    """
    one_output(tasks)
    check_positive_int("num_rounds", num_rounds)
    if not 0 < failure < 1:
        raise ValueError(f"Invalid failure={failure}: a probability. Use 0 < failure < 1.")
    rho, _ = _rho(tasks, distance)
    spread = 1 + math.sqrt(2 * math.log(2 * num_rounds / failure))
    size = math.ceil(712 / rho**2 * spread**2)
    drift = 2 * tasks.L_max * spread / math.sqrt(size)
    return Cohort(size, 0.75 * tasks.diversity, drift)


def _rho(tasks: LinearTasks, distance: float) -> tuple[float, float]:
    if not 0 <= distance < 1:
        raise ValueError(f"Invalid distance={distance}: no promise. Use 0 <= distance < 1.")
    mu2, E0 = tasks.diversity / tasks.L_max**2, 1 - distance**2
    if mu2 < ROUNDING:
        raise ValueError("Invalid tasks: the heads lie in a hyperplane. Use diverse heads.")
    return E0 * mu2, E0
