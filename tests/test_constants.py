"""The displays of the proofs in Chapters 7 and 9, for all values of their variables.

The book's ledgers evaluate each display where its variables are largest. Here an SMT solver (z3,
real arithmetic, exact) proves it on the whole box: it looks for values that violate the display,
and reports that there are none. So no monotonicity is taken for granted.
"""

import pytest

z3 = pytest.importorskip("z3")

Q = z3.Q
delta, eta, eps, p2, rho, nu, h, u = z3.Reals("delta eta eps p2 rho nu h u")
dist2, root, x, y, z, beta, D2, E0L = z3.Reals("dist2 root x y z beta D2 E0L")
OMEGA, O2 = Q(21, 20), Q(441, 400)

BOX = [
    *(delta >= 0, delta <= Q(1, 40), eta > 0, eta <= Q(1, 480)),
    *(eta <= eps, eps <= Q(1, 20), p2 >= 0, p2 <= 1),
]
"""Lemma 7.1; as tau >= 2, eps = eta (tau - 1) is at least eta."""

SIGMA = [root >= 0, root * root == 1 + delta]
"""root is the square root of 1 + delta."""


def dec(text):
    return z3.RealVal(text)


def proved(claim, *given):
    """Whether no values within what is given violate the claim; a timeout is no proof."""
    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(*given, z3.Not(claim))
    answer = solver.check()
    assert answer != z3.unknown, "the solver ran out of time"
    return answer == z3.unsat


drop = delta + dec("5.6") * eta
"""Bounds every defect of a round."""
phi = dec("1.058") * eta * p2
first = dec("2.1") * delta + dec("2.316") * eta + phi
theta = dec("1.0002") * (delta + dec("6.71") * eta)
zeta = dec("2.9") * eta + dec("2.19") * delta * delta + dec("1.101") * eps * p2
fresh = dec("2.101") * delta * delta + dec("0.443") * eta + dec("0.0413") * eta * p2
U = dec("2.186") * delta + dec("2.411") * eta + dec("1.101") * eps * p2
tail = dec("2.19") * delta * delta + dec("0.47") * eta + dec("1.101") * eps * p2
late = 1 / (1 - theta)
count = eps / eta
"""tau - 1."""

LEMMA = {
    "(d) u0": ((1 + delta) * OMEGA + root <= dec("2.09"), BOX + SIGMA),
    "(a) first head": (delta * OMEGA + root < OMEGA, BOX + SIGMA),
    "residual r0 in the span": (root * OMEGA + 1 <= dec("2.0631"), BOX + SIGMA),
    "(b) every defect": (drop <= dec("0.0367"), BOX),
    "(d) bracket of the first step": (
        dec("2.09") * (1 + eta * OMEGA * dec("2.09") / (1 - delta)) * (delta + O2 * eta) + phi
        <= first,
        BOX,
    ),
    "(d) u1, largest": (first <= dec("0.0596"), BOX),
    "(d) u1, other form": (
        O2 * dec("2.09")
        + OMEGA * (dec("1.0074") * p2 + (delta + O2 * eta) * dec("2.09") ** 2 / (1 - delta))
        <= dec("3.5"),
        BOX,
    ),
    "(d) factor of later steps": (
        (drop + O2 * eta) * (1 + eta * OMEGA * dec("0.0596") / (1 - drop)) <= theta,
        BOX,
    ),
    "(d) later steps": (
        z3.And(theta <= dec("0.039"), theta * first + late * phi <= dec("0.0047")),
        BOX,
    ),
    "(e) sum of steps": (late * (first + (count - 1) * phi) <= U, BOX),
    "(e) sum, largest": (dec("0.1148") >= U, BOX),
    "(e) all squares": (dec("2.09") ** 2 + dec("0.0596") * U <= dec("4.4"), BOX),
    "theta u1, expanded": (theta * first <= fresh, BOX),
    "(g) sum of later steps": (late * (theta * first + (count - 1) * phi) <= tail, BOX),
    "(f)": (
        O2 * dec("2.09") * eta
        + OMEGA * eta * (dec("1.0074") * p2 + (delta + O2 * eta) * dec("2.09") ** 2 / (1 - delta))
        + late * (theta * first + (count - 1) * phi)
        <= zeta,
        BOX,
    ),
    "(a) later heads": (
        (1 + delta) * root * (1 - p2 / 2) + delta * delta * OMEGA + zeta <= dec("1.0459"),
        BOX + SIGMA,
    ),
    "(b) upper bracket": (O2 + dec("4.4") <= dec("5.6"), BOX),
    "(b) lower bracket": (
        O2 * (1 + eta * (dec("4.2564") + p2 + dec("1.0051") * count * p2 + dec("0.0072")))
        <= dec("5.6"),
        BOX,
    ),
    "(c)": (
        1 / (1 - eta * dec("4.4") / (4 * (1 - drop) ** 2 * (1 - O2 * eta))) <= dec("1.0025"),
        BOX,
    ),
}

ROUND = {
    "(i) second order": (
        (1 + delta) ** 2 * (delta + O2 * eta) + 2 * O2 * (1 + delta) <= dec("2.32"),
        BOX,
    ),
    "(ii)": (
        2 * (1 + delta) * root * zeta
        <= dec("6.02") * eta + dec("4.546") * delta * delta + dec("2.286") * eps * p2,
        BOX + SIGMA,
    ),
    "(iii) plus": (
        (dec("2.09") * delta + dec("3.5") * eta) ** 2 + dec("0.0047") * tail
        <= dec("4.82") * delta**2 + dec("0.285") * eta + dec("0.006") * eps * p2,
        BOX,
    ),
    "(iii) minus": (
        (1 + delta) * delta**2 + zeta**2
        <= dec("1.04") * delta**2 + dec("0.053") * eta + dec("0.182") * eps * p2,
        BOX,
    ),
    "(iv) spread of bodies": (
        O2 * (dec("1.117") * eta + dec("1.0025") * eps * x) ** 2
        <= dec("4.13") * eta**2 + dec("1.67") * eps**2 * x**2,
        [*BOX, x >= 0],
    ),
    "(iv) common step": (
        root * (dec("5.61") * eta + dec("0.084") * eps * x)
        + delta * delta * root
        + OMEGA * (dec("2.2927") * eta + dec("0.117") * eta + dec("1.0025") * eps * x)
        + (1 + delta)
        * (
            delta**2 * OMEGA
            + dec("2.9") * eta
            + dec("2.19") * delta**2
            + dec("1.101") * eps * x * x
        )
        <= dec("11.2") * eta + dec("4.34") * delta**2 + dec("2.27") * eps * x,
        [*BOX, *SIGMA, x >= 0, x <= 1],
    ),
    "(iv) its square": (
        eta
        * (
            dec("1.0125") * beta
            + dec("11.2") * eta
            + dec("4.34") * delta**2
            + dec("2.27") * eps * x
        )
        ** 2
        <= dec("2.06") * eta * beta**2
        + dec("1.57") * eta**2
        + dec("0.071") * eta * delta**2
        + dec("0.0645") * eps**2 * x**2,
        [*BOX, x >= 0, x <= 1, beta >= 0],
    ),
    "(v)": (
        O2 * (dec("4.2636") + p2 + dec("1.0051") * count * p2) * eta**2
        <= dec("4.71") * eta**2 + dec("2.22") * eps**2 * p2,
        BOX,
    ),
}

CONTRACTION = {
    "noise beside diversity": (
        dec("2.9") * eta + dec("2.19") * (rho / 40) ** 2 + dec("1.101") * eps
        <= dec("0.0625") * rho,
        [rho > 0, rho <= 1, eta > 0, eta <= rho**2 / 480, eta <= eps, eps <= rho / 20],
    ),
    "squares in the induction": (
        (1 - Q(3, 4) * h * u) ** 2 <= 1 - dec("1.47") * h * u,
        [h >= 0, h <= Q(1, 20), u >= 0, u <= 1],
    ),
    "the integral": (
        (1 + dec("1.47") * h) <= dec("0.731") * dec("1.47"),
        [h >= 0, h <= Q(1, 20)],
    ),
    "the faster rate": (
        dec("1.47") >= dec("1.36") * (1 + dec("1.47") * h * x),
        [h >= 0, h <= Q(1, 20), x >= 0, x <= 1],
    ),
    "its root": ((1 - dec("0.68") * h) ** 2 >= 1 - dec("1.36") * h, [h >= 0, h <= Q(1, 20)]),
    "the defect returns": (
        (dec("9.81") * eta + dec("3.6") * eps * E0L + dec("1.06") * beta**2) / rho
        + dec("4.88") * x * x / rho
        < x,
        [
            *(rho > 0, rho <= 1, eta > 0, eta <= eps, E0L >= 0, beta >= 0),
            rho * x == 12 * eta + 5 * eps * E0L + Q(5, 4) * beta**2,
            x <= rho / 40,
        ],
    ),
}

NOISY = [nu >= 0, nu <= Q(1, 400), eta > 0, eta <= Q(1, 480), eta <= eps, eps <= Q(1, 20)]
body = dec("1.0183") + dec("4.8") * (eta + eps) * nu

ERRORS = {
    "Lemma 9.1, errors of bodies": (dec("4.8") * eps * nu <= dec("0.0007"), NOISY),
    "Lemma 9.1, defects as printed": (
        # y bounds the error of a body
        dec("0.0367") + (2 * dec("1.0183") + y) * y <= dec("0.0382"),
        [y >= 0, y <= dec("0.0007")],
    ),
    "Lemma 9.1, later residuals": (
        dec("1.0025") * x + dec("0.0596") / dec("0.9814") <= dec("1.0634"),
        [x >= 0, x <= 1],
    ),
    "Lemma 9.1, growth of bodies as printed": (
        z3.And(
            dec("1.019") * dec("1.6") + OMEGA * dec("4.8") * eps + 1 <= dec("2.8825"),
            dec("2.8825") * OMEGA + dec("1.0634") * dec("1.6") <= dec("4.8"),
        ),
        NOISY,
    ),
    "Lemma 9.1, bodies": (body <= dec("1.019"), NOISY),
    "Lemma 9.1, defects": (
        dec("0.0367")
        + (2 * dec("1.0183") + dec("4.8") * (eta + eps) * nu) * dec("4.8") * (eta + eps) * nu
        <= dec("0.038"),
        NOISY,
    ),
    "Lemma 9.1, heads": (
        dec("0.038") * dec("1.6")
        + (dec("1.0634") + dec("1.019") * OMEGA) * dec("4.8") * eps
        + dec("1.019")
        <= dec("1.6"),
        NOISY,
    ),
    "Lemma 9.1, growth of bodies": (
        (dec("1.019") * dec("1.6") + OMEGA * dec("4.8") * eps + 1) * OMEGA
        + dec("1.0634") * dec("1.6")
        <= dec("4.8"),
        NOISY,
    ),
    "Lemma 9.1, gradients": (
        dec("1.019") * dec("1.6") + OMEGA * dec("4.8") * eps + 1 <= dec("2.9"),
        NOISY,
    ),
    "Lemma 9.1, heads stay short": (dec("1.0459") + dec("1.6") * nu <= OMEGA, NOISY),
    "Theorem 9.2, contraction": (
        Q(3, 4) * rho - dec("3.36") * nu >= dec("0.74") * rho,
        [rho > 0, rho <= 1, nu >= 0, nu <= rho**2 / 400],
    ),
    "Theorem 9.2, floor": (
        Q(105, 74) * 2 * nu / rho <= Q(1, 90),
        [rho > 0, rho <= 1, nu >= 0, nu <= rho**2 / 400],
    ),
    "Theorem 9.2, the defect returns": (
        # z is (tau - 1) nu², D2 the square of the larger start
        (dec("9.81") * eta + dec("6.75") * eps * D2) / rho
        + dec("4.88") * rho / 1600
        + dec("3.7") * nu / rho
        + dec("18.7") * z / rho
        + dec("2.1") * z / rho**2
        < rho / 40,
        [
            *(rho > 0, rho <= 1, eta > 0, eps >= 0, D2 >= 0, nu >= 0, z >= 0),
            12 * eta + 9 * eps * D2 <= rho**2 / 80,
            nu <= rho**2 / 400,
            z <= rho**3 / 10_000,
        ],
    ),
}

chi = z3.Real("chi")
DRIFT = {
    "Lemma 8.1, second order": (
        (1 + delta) ** 2 * (2 * (delta + O2 * eta) + chi) + 2 * O2 * (1 + delta) <= dec("2.34"),
        [*BOX, chi >= 0, chi <= Q(1, 48)],
    ),
    "Lemma 8.1, the defect returns": (
        (dec("9.81") * eta + dec("3.6") * eps * E0L) / rho + chi + dec("4.88") * x * x / rho < x,
        [
            *(rho > 0, rho <= 1, eta > 0, eta <= eps, E0L >= 0, chi >= 0),
            rho * x == 12 * eta + 5 * eps * E0L + Q(6, 5) * chi * rho,
            x <= rho / 40,
        ],
    ),
    "Theorem 8.3, what is left for the drift": (
        # h is sigma^2 over E0 mu*^2, y its coefficient in chi
        Q(6, 5) * y * h <= Q(3, 4) / 80,
        [h >= 0, h <= Q(1, 450), y >= 0, y <= Q(450, 128)],
    ),
    "Theorem 8.3, covariance": (450 * (x + 2 * y) >= 512 * (y + x / 2), [x >= 1, y >= 1]),
}

SERVER = {
    "Theorem 9.1, common step": (
        # (iv) with eta, delta and the distance x as there, and errors of the server
        3 * eta * (dec("11.23") * eta) ** 2
        + 3 * eta * (dec("4.34") * delta**2) ** 2
        + 3 * eta * (dec("2.27") * eps * x) ** 2
        <= dec("0.8") * eta**2 + dec("0.04") * eta * delta**2 + dec("0.04") * eps**2 * x**2,
        [*BOX, x >= 0, x <= 1],
    ),
    "Theorem 9.1, sum of shares": (
        3 * (x**2 + y**2 + z**2) >= (x + y + z) ** 2,
        [x >= 0, y >= 0, z >= 0],
    ),
    "Theorem 9.1, the defect returns": (
        (dec("9.81") * eta + dec("6.7") * eps * D2) / rho
        + dec("4.88") * rho / 1600
        + dec("1.05") * nu / (eta * rho)
        < rho / 40,
        [
            *(rho > 0, rho <= 1, eta > 0, eps >= 0, D2 >= 0, nu >= 0),
            12 * eta + 9 * eps * D2 <= rho**2 / 80,
            nu <= eta * rho**2 / 120,
        ],
    ),
    "Theorem 9.2, sum of residuals": (
        # x is the distance, y is tau - 1
        dec("2.2927") + dec("0.117") + dec("1.0025") * x * y <= dec("2.41") + dec("1.0025") * y,
        [x >= 0, x <= 1, y >= 1],
    ),
    "Theorem 9.2, square of a first jump's error": (
        dec("1.0125") ** 2 * nu**2 <= dec("1.0252") * nu**2,
        [nu >= 0],
    ),
    "Theorem 9.2, first jump": (
        2 * root * dec("1.0125") * nu + dec("1.0252") * nu**2 <= dec("2.08") * nu,
        [nu >= 0, nu <= Q(1, 400), root >= 0, root * root == dec("1.025") + dec("0.134") ** 2],
    ),
    "Theorem 9.2, later jumps": (
        # y is their sum U, z is (tau - 1) nu²; the second jump is off by at most 3.2 nu
        dec("3.2") * nu * 2 * y + dec("3.2") ** 2 * z <= dec("0.735") * nu + dec("10.24") * z,
        [nu >= 0, y >= 0, y <= dec("0.1148"), z >= 0],
    ),
    "Theorem 9.2, spread of bodies": (
        # of the bodies' errors, 4.8 eta tau nu, eleven times the square
        11 * (dec("4.8") * (eta + eps) * nu) ** 2 <= 26 * eps * nu**2,
        [nu >= 0, eta >= 0, eta <= eps, eta <= Q(1, 960), eps <= Q(1, 20)],
    ),
    "Theorem 9.2, spread of exact bodies": (
        z3.And(dec("1.1") * dec("4.13") <= dec("4.71"), dec("1.1") * dec("1.67") <= dec("2.22")),
        [],
    ),
    "Theorem 9.2, common jump squared": (
        z3.And(
            x + dec("2.4") * nu <= dec("0.134"),
            (x + dec("2.4") * nu) ** 2 <= x**2 + dec("0.63") * nu,
        ),
        [x >= 0, x <= dec("0.128"), nu >= 0, nu <= Q(1, 400)],
    ),
    "Theorem 9.2, size of the common jump": (
        dec("11.2") * eta + dec("4.34") * (rho / 40) ** 2 + dec("2.27") * eps <= dec("0.128"),
        [eta >= 0, eta <= Q(1, 960), rho >= 0, rho <= 1, eps >= 0, eps <= Q(1, 20)],
    ),
    "Theorem 9.2, all that errors add to a round": (
        # z is (tau - 1) nu²: (1) to (4), and (5)
        dec("2.08") * nu
        + (dec("0.735") * nu + dec("10.24") * z)
        + dec("3.37") * nu
        + (dec("0.37") * nu + 26 * z)
        + dec("0.63") * nu
        <= dec("7.2") * nu + dec("36.3") * z,
        [nu >= 0, z >= 0],
    ),
    "Theorem 9.2, rate of the squares": (
        # u is eps rho; one minus the square of the rate
        1 - (1 - dec("0.74") * u) ** 2 >= dec("1.452") * u,
        [u >= 0, u <= Q(1, 20)],
    ),
    "Theorem 9.2, decaying parts": (
        # y is what the sum of the squared rates is at most: 1 / (1.452 eps rho)
        dec("4.76") * dec("1.0257") * 2 * D2 * eps**2 * y * rho <= dec("6.75") * eps * D2,
        [eps > 0, rho > 0, D2 >= 0, dec("1.452") * eps * rho * y == 1],
    ),
    "Theorem 9.2, constant parts": (
        # y is the floor, x is tau - 1, and eps = x eta
        dec("4.76") * dec("1.0257") * 2 * (eta * x) ** 2 * y**2 * rho**3
        <= dec("40.5") * eta * x * x * nu**2 * dec("1.95") * eta * rho,
        [eta > 0, x >= 1, rho > 0, nu >= 0, y >= 0, y * rho <= dec("2.84") * nu],
    ),
    "Theorem 9.2, constant parts in all": (
        # z is (tau - 1) nu²
        dec("40.5") * eps * z <= dec("2.1") * z * rho,
        [eps >= 0, eps <= rho / 20, z >= 0],
    ),
    "Theorem 9.2, errors over the force": (
        # z is (tau - 1) nu²
        (dec("7.2") * nu + dec("36.3") * z) / (dec("1.95") * rho)
        <= (dec("3.7") * nu + dec("18.7") * z) / rho,
        [rho > 0, nu >= 0, z >= 0],
    ),
    "Theorem 9.2, last heads": (
        2 * OMEGA * dec("1.6") * nu + dec("2.56") * nu**2 <= dec("3.37") * nu,
        [nu >= 0, nu <= Q(1, 400)],
    ),
    "Theorem 9.2, second order": (
        O2
        * eta
        * nu
        * (dec("5.8") * (dec("2.41") * eta + dec("1.0025") * eps) + dec("8.41") * (eta + eps) * nu)
        <= dec("0.37") * eta * nu,
        [*NOISY, eta <= Q(1, 960)],
    ),
    "Theorem 9.2, common jump": (
        (dec("2.04") * dec("1.0125") + 1) * dec("4.8") * (eta + eps) * nu + dec("1.64") * nu
        <= dec("2.4") * nu,
        [*NOISY, eta <= Q(1, 960)],
    ),
}

DISPLAYS = LEMMA | ROUND | CONTRACTION | ERRORS | DRIFT | SERVER


@pytest.mark.parametrize("name", DISPLAYS)
def test_a_display_holds_for_all_values(name):
    claim, given = DISPLAYS[name]
    assert proved(claim, *given)


@pytest.mark.parametrize("name", DISPLAYS)
def test_the_values_of_a_display_exist(name):
    # A contradiction among the assumptions would prove anything.
    solver = z3.Solver()
    solver.add(*DISPLAYS[name][1])
    assert solver.check() == z3.sat


@pytest.mark.parametrize(
    ("claim", "given"),
    [
        (first <= dec("0.0595"), BOX),
        ((1 + delta) * OMEGA + root <= dec("2.088"), BOX + SIGMA),
        (late * (first + count * phi) <= dec("2.186") * delta + dec("2.411") * eta, BOX),
        (dec("1.47") >= dec("1.38") * (1 + dec("1.47") * h), [h >= 0, h <= Q(1, 20)]),
        (Q(3, 4) * rho - dec("3.36") * nu >= dec("0.745") * rho, [rho == 1, nu == rho**2 / 400]),
        (6 * dec("0.1148") * nu + dec("10.24") * z <= dec("0.68") * nu, [nu > 0, z >= 0]),
        (
            11 * (dec("4.8") * (eta + eps) * nu) ** 2 <= 12 * eps * nu**2,
            [nu > 0, eta > 0, eta <= eps, eta <= Q(1, 960), eps <= Q(1, 20)],
        ),
        (1 - (1 - dec("0.74") * u) ** 2 >= dec("1.453") * u, [u >= 0, u <= Q(1, 20)]),
    ],
)
def test_a_display_with_a_slip_is_refuted(claim, given):
    assert not proved(claim, *given)
