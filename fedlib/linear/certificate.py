"""What the convergence theorem promises for given tasks, start and step size."""

__all__ = ["ROUNDING", "Condition", "Guarantee", "forcing", "guarantee"]

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedlib._checks import (
    LARGEST_INT,
    check_array,
    check_number,
    check_positive,
    check_positive_int,
    refuse,
)
from fedlib.linear._arrays import EPS, defect, floats, norm2, product, rescaled, scaled
from fedlib.linear.subspace import seeing
from fedlib.linear.tasks import LinearTasks, check_tasks, wide_enough

ROUNDING = 1e-12
"""What must be positive must exceed this."""


class Condition(NamedTuple):
    """One hypothesis of a theorem, with its numbers.

    Attributes:
        name: what is asked.
        value: the number found.
        bound: the number that it may not pass.
        at_least: whether the bound is a lower one.
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of its bound."""
        return bool(self.value >= self.bound if self.at_least else self.value <= self.bound)

    @property
    def margin(self) -> float:
        """Factor by which the value could still move before it fails; below 1, it fails."""
        small, large = (self.bound, self.value) if self.at_least else (self.value, self.bound)
        return large / small if small > 0 else math.inf

    def __str__(self) -> str:
        sign, mark = (">=" if self.at_least else "<="), ("holds" if self.holds else "FAILS")
        return f"{mark}  {self.name}: {self.value:.3g} {sign} {self.bound:.3g}"


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    r"""Theorem 7.1 for given tasks, start and step size, in normalised variables.

    ``print`` it to see the conditions. The numbers below follow from the formulas whether or not
    the conditions hold; they are promises only if ``holds``. Where rounding could decide, the
    numbers err on the safe side: ``mu2`` and ``rho`` are rounded down.

    Attributes:
        conditions: the theorem's hypotheses, each with its value and bound.
        eta: step size :math:`\eta=\alpha^2L_{\max}^2`.
        mu2: diversity :math:`\mu^2`, of heads scaled to length 1 at most.
        D0: size :math:`D_0` of the start's part outside the truth.
        rho: :math:`\rho=E_0\mu^2`.
        delta_bar: the bound :math:`\bar\delta` on :math:`\|I-\alpha B_t^\top B_t\|`.
        local_steps: steps τ.
    """

    conditions: tuple[Condition, ...]
    eta: float
    mu2: float
    D0: float
    rho: float
    delta_bar: float
    local_steps: int

    @property
    def holds(self) -> bool:
        """Whether every condition holds."""
        return all(condition.holds for condition in self.conditions)

    @property
    def E0(self) -> float:
        r""":math:`E_0=1-D_0^2`."""
        return (1 - self.D0) * (1 + self.D0)

    @property
    def rate(self) -> float:
        r"""Share of the distance *lost* per round, :math:`0.68\,\eta(\tau-1)\mu^2`.

        So the distance falls like :math:`(1-\text{rate})^t`. ``asymptotic_rate`` returns the factor
        *kept*, near 1 for small steps. Infinite if the step size is beyond all bounds.
        """
        return product(0.68, self.eta, self.local_steps - 1, self.mu2)

    def contraction(self, D: Float[np.ndarray, "*t"] | float) -> Float[np.ndarray, "*t"] | float:
        r"""Bound on :math:`D_{t+1}/D_t`, namely :math:`1-\frac34\eta(\tau-1)\mu^2(1-D_t^2)`.

        Args:
            D: sizes :math:`D_t`, 0 or more, one or many.
        """
        D = floats("D", D, None)
        if (D < 0).any():
            raise ValueError("Invalid D: a size is negative. Use numbers >= 0.")
        return 1 - self._lost(D)

    def _lost(self, D: np.ndarray | float) -> np.ndarray | float:
        """Share lost in a round that begins at D: nothing at D = 1."""
        most = product(0.75, self.eta, self.local_steps - 1, self.mu2)
        with np.errstate(over="ignore"):
            left = np.asarray(1 - np.square(D))
            return np.multiply(most, left, where=left != 0, out=np.zeros(left.shape))[()]

    def bound(self, round_num: Int[np.ndarray, "*t"] | int) -> Float[np.ndarray, "*t"] | float:
        r"""Bound on :math:`D_t`; 1.013 times it bounds the distance.

        Args:
            round_num: rounds t, one or many, 0 or more.

        Returns:
            The smaller of the theorem's two bounds, of the same shape; infinite if the step is so
            large that neither formula is one (a factor per round is negative and (C2) fails).
        """
        t = check_array("round_num", round_num, kinds="iu").astype(np.float64)
        if (t < 0).any():
            raise ValueError("Invalid round_num: no round comes before 0. Use whole numbers >= 0.")

        def fall(start, lost):
            if lost > 1:
                return np.full(t.shape, math.inf)[()]
            if lost == 1:
                return np.where(t == 0, start, 0.0)[()]
            return start * np.exp(t * math.log1p(-lost))

        slow = fall(self.D0, float(self._lost(self.D0)))
        if self.E0 <= 0:
            return slow
        return np.minimum(slow, fall(self.D0 / math.sqrt(self.E0), self.rate))

    def rounds(self, epsilon: float) -> int | float:
        """Rounds after which the distance is at most ``epsilon``: the first that is promised.

        That is the least t with ``1.013 * bound(t) <= epsilon``; 0 if ``epsilon`` is 1 or more,
        as a distance is a sine.

        Args:
            epsilon: distance to reach, positive.

        Returns:
            A whole number; infinite if 2^63 - 1 rounds are not enough.
        """
        epsilon = check_positive("epsilon", epsilon)
        if epsilon >= 1:
            return 0

        def reached(t: int) -> bool:
            return bool(1.013 * self.bound(t) <= epsilon)

        if not reached(LARGEST_INT):
            return math.inf
        return bisect_left(range(LARGEST_INT), True, key=reached)

    def __str__(self) -> str:
        return "\n".join(str(condition) for condition in self.conditions)


def guarantee(
    tasks: LinearTasks,
    B0: Float[np.ndarray, "d k"],
    *,
    local_steps: int,
    lr: float,
    diversity: float | None = None,
    mean_drift: float = 0.0,
    drift_share: float = 0.0,
) -> Guarantee:
    r"""Check the hypotheses of Theorem 7.1 and compute what it promises for runs from w₀ = 0.

    In normalised variables (:math:`\eta=\alpha^2L_{\max}^2`, heads divided by :math:`L_{\max}`),
    with :math:`E_0=1-D_0^2` and :math:`\rho=E_0\mu^2`,

    .. math:: \bar\delta=\tfrac1\rho\Big(12\eta+5\eta(\tau-1)E_0\log\tfrac1{E_0}
              +\tfrac54\beta^2\Big)+\tfrac65\chi,\quad
              \text{(C1)}\ \bar\delta\le\tfrac\rho{40},\quad
              \text{(C2)}\ \eta(\tau-1)\le\tfrac\rho{20}.

    The start must be matched, :math:`\alpha B_0^\top B_0=I`. The proof leaves room for an error
    of :math:`\min(\bar\delta,\frac1{40})/40`, which is what is checked: no computed start is exact.

    Heads may be matrices: lengths are then Frobenius norms (Theorem 7.2). The model may be wider
    than the truth: :math:`D_0` is then that of the features that see the truth (Theorem 7.3), and
    the others must be orthogonal to these, which a matched start's are; rounding is let pass.
    Heads that lie in a subspace: use ``tasks.reduced()``.

    Args:
        tasks: the clients' tasks, with any number of outputs.
        B0: the server's first body, shape (d, k), ``tasks.k`` ≤ k ≤ d.
        local_steps: gradient steps τ.
        lr: their size α.
        diversity: a lower bound on the least eigenvalue of the covariance of the heads that take
            part, in every round; that of all heads, unless given.
        mean_drift: an upper bound β on how far their mean moves from round to round; 0, unless
            given. Both are in the units of ``tasks.heads``.
        drift_share: instead of ``mean_drift``, a number χ such that the square of that movement
            (a matrix) is at most χ times the covariance of the heads of the later round; 0,
            unless given. This charges movements where heads differ much less than others.

    Returns:
        Conditions and promises.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or shapes do not fit.

    Example:
        >>> from fedlib.linear import largest_lr
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
        >>> lr = largest_lr(tasks, distance=0.6, local_steps=10)
        >>> promise = guarantee(
        ...     tasks, np.array([[0.8], [0.6], [0]]) / lr**0.5, local_steps=10, lr=lr
        ... )
        >>> promise.holds, promise.rounds(0.01)
        (True, 1716)

    Reference:
        Theorem 7.1 (thm-representation), after Collins et al. (2022); Theorem 7.2 (thm-outputs)
        and Theorem 7.3 (thm-width), Chapter 7. For ``drift_share``: Lemma 8.1
        (lem-aligned-drift), Chapter 8.
    """
    tau, lr = check_positive_int("local_steps", local_steps), check_positive("lr", lr)
    check_tasks(tasks)
    B0 = wide_enough(tasks, floats("B0", B0, (tasks.d, None)))
    length = tasks.L_max
    if diversity is None:
        mu2 = tasks.proven_diversity
    else:
        diversity = check_number("diversity", diversity, least=0)
        mu2 = min(1.0, diversity / length / length)
        if diversity > (1 + 4 * EPS) * length * length:
            why = f"the longest head has length {length:.4g}, which bounds it"
            refuse("diversity", diversity, why, f"a value from 0 to {length * length:.4g}")
    eta = lr * length * (lr * length)
    beta = check_number("mean_drift", mean_drift, least=0) / length
    chi = check_number("drift_share", drift_share, least=0)
    b, exponent = scaled(B0)
    inside = tasks.B_star.T @ b
    N = seeing(inside)  # features that see the truth; the others never move
    outside = norm2((b - tasks.B_star @ inside) @ N)
    D0 = float(rescaled(math.sqrt(lr) * float(outside), exponent))
    D0 = min(1.0, D0)
    above = min(1.0, D0 * (1 + 16 * EPS))  # what D0 is at most, but for rounding
    E0 = (1 - above) * (1 + above)
    rho = E0 * mu2
    delta_bar = math.inf
    if rho > 0:
        delta_bar = (forcing(eta, tau, E0) + 1.25 * beta * beta) / rho + 1.2 * chi
    reach = product(eta, tau - 1)
    off, admitted = float(defect(B0, lr)), min(delta_bar, 1 / 40) / 40
    conditions: tuple[Condition, ...] = (
        Condition("two local steps or more, tau", tau, 2, at_least=True),
        Condition("(H1) diversity, mu^2", mu2, ROUNDING, at_least=True),
        Condition("(H3) matched start, ||I - lr B0'B0||", off, admitted),
        Condition("start not orthogonal, E0", E0, ROUNDING, at_least=True),
        Condition("(C1) delta_bar <= rho/40", delta_bar, rho / 40),
        Condition("(C2) eta (tau - 1) <= rho/20", reach, rho / 20),
    )
    if B0.shape[1] > tasks.k:
        surplus = b - (b @ N) @ N.T
        leak = rescaled(lr * float(norm2(surplus.T @ b @ N)), 2 * exponent)
        conditions += (Condition("surplus features orthogonal", leak, ROUNDING),)
    return Guarantee(
        conditions=conditions,
        eta=eta,
        mu2=mu2,
        D0=D0,
        rho=rho,
        delta_bar=delta_bar,
        local_steps=tau,
    )


def forcing(eta: float, tau: int, E0: float) -> float:
    """Return ρ times the bound on Δ, for a mean head that does not move."""
    return 12 * eta + product(5, eta, tau - 1, E0, math.log(1 / E0))
