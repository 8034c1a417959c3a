"""Chapter 8: the expected driver of the defect under sampling, by listing all cohorts.

The server's head takes finitely many values with the mean and covariance that the proposition
names; every cohort is drawn from every one of them, and local steps are really made. The other
statements of the chapter are tested in test_linear_statements.py.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

many = settings(max_examples=200, deadline=None)


def cov(x):
    y = x - x.mean(axis=0)
    return y.T @ y / len(x)


def cohorts(M, m, replace):
    """All cohorts, equally likely."""
    drawn = (
        itertools.product(range(M), repeat=m) if replace else itertools.combinations(range(M), m)
    )
    return np.array(list(drawn))


def scattered(mean, covariance):
    """Equally likely points with that mean and covariance."""
    values, vectors = np.linalg.eigh(covariance)
    k = len(mean)
    arms = vectors * np.sqrt(k * np.maximum(values, 0))
    return mean + np.vstack([arms.T, -arms.T])


def play(w, a, delta, tau):
    """Driver and new server head, when the body is frozen at BᵀB = (1 - delta) I."""
    heads = np.repeat(w[None], len(a), axis=0)
    moved = np.zeros((len(w), len(w)))
    for _ in range(tau):
        step = a - (1 - delta) * heads  # - Bᵀ(B w - theta)
        moved += step.T @ step / len(a)
        heads = heads + step
    return moved - cov(heads), heads.mean(axis=0)


def share(M, m, replace):
    """Covariance of a cohort's mean, over that of all clients."""
    return 1 / m if replace else (M - m) / m / (M - 1)


def stationary(a, m, replace, delta, tau):
    """Mean and covariance of the server's head, as the proof says."""
    nu, left = share(len(a), m, replace), delta**tau
    C = cov(a)
    return a.mean(axis=0) / (1 - delta), (1 - left) / (1 + left) * nu * C / (1 - delta) ** 2


def formula(a, m, replace, delta, tau):
    nu, left = share(len(a), m, replace), delta**tau
    size = 2 * (1 - left) / (1 - delta) ** 2 / (1 + delta)
    return size * (nu * (1 - left) - (delta - left)) * cov(a)


def expected(a, m, replace, delta, tau):
    """Mean driver over all cohorts, and the new heads' mean and covariance."""
    points = scattered(*stationary(a, m, replace, delta, tau))
    found = [play(w, a[who], delta, tau) for w in points for who in cohorts(len(a), m, replace)]
    drivers, heads = map(np.array, zip(*found, strict=True))
    return drivers.mean(axis=0), heads.mean(axis=0), cov(heads)


@many
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2),
    st.integers(1, 6),
    st.booleans(),
    st.floats(0, 0.9),
)
def test_prop_cohort_balance(seed, k, tau, replace, delta):
    rng = np.random.default_rng(seed)
    M = int(rng.integers(2, 5))
    m = int(rng.integers(2, min(M, 3) + 1))
    a = rng.standard_normal((M, k))
    driver, mean, covariance = expected(a, m, replace, delta, tau)
    was_mean, was_covariance = stationary(a, m, replace, delta, tau)
    size = (1 + np.abs(a).max() ** 2) / (1 - delta) ** 2
    assert np.abs(mean - was_mean).max() <= 1e-12 * size
    assert np.abs(covariance - was_covariance).max() <= 1e-12 * size
    assert np.abs(driver - formula(a, m, replace, delta, tau)).max() <= 1e-12 * size


@many
@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 30), st.booleans())
def test_prop_cohort_balance_is_at_one_delta(m, more, tau, replace):
    M = m + more
    nu = share(M, m, replace)
    pi = 1 / (m - 1) if replace else (M - m) / M / (m - 1)
    assert nu / (1 - nu) == pytest.approx(pi)
    roots = np.roots(np.r_[np.ones(tau - 1), -pi])
    real = roots[(abs(roots.imag) < 1e-9) & (roots.real >= 0)].real
    assert len(real) == 1
    delta = float(real[0])
    a = np.array([[1.0], [-1.0]] + [[0.0]] * (M - 2))
    if delta < 1 - 1e-9:
        scale = 2 / (1 - delta) ** 2
        assert abs(formula(a, m, replace, delta, tau)).max() <= 1e-9 * scale
        assert formula(a, m, replace, 0.9 * delta, tau) > 0
    assert (1 / m - 1e-9 <= delta <= pi + 1e-9) or not replace


def test_prop_cohort_balance_needs_independent_rounds():
    # The cohort of the round before comes again: its head fits it, and the driver changes.
    a, delta, tau, m = np.array([[1.0], [-0.5], [-0.5]]), 0.3, 2, 2
    drivers = []
    for who in cohorts(len(a), m, replace=True):
        w = a[who].mean(axis=0) / (1 - delta)  # where this cohort, again and again, comes to rest
        drivers.append(play(w, a[who], delta, tau)[0])
    claimed = formula(a, m, True, delta, tau)
    assert abs(np.mean(drivers, axis=0) - claimed).max() > 0.1 * abs(claimed).max()


def test_prop_cohort_balance_needs_two_local_steps_for_its_zero():
    a = np.array([[1.0], [-1.0]])
    for delta in np.linspace(0, 0.99, 34):
        assert formula(a, 3, True, delta, 1) > 0
        driver, _, _ = expected(a, 3, True, delta, 1)
        assert driver > 0
