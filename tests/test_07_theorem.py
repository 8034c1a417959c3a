"""Chapter 7: the exact arithmetic behind the constants of Theorem B.

The chapter's statements have their tests in test_linear_statements.py.
"""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlib.linear.exact import Q, down, sqrt_down, sqrt_up, up

decimals = st.decimals(0, 10, places=4).map(str)
fractions = st.fractions(0, 10)


@given(fractions, decimals)
def test_a_rounding_passes_exactly_if_it_is_on_its_side(value, displayed):
    number = Fraction(displayed)
    for round_it, holds in {
        up: value <= number,
        down: value >= number,
        sqrt_up: value <= number**2,
        sqrt_down: value >= number**2,
    }.items():
        if holds:
            assert round_it(value, displayed) == number
        else:
            with pytest.raises(ValueError, match="on the wrong side"):
                round_it(value, displayed)


@pytest.mark.parametrize("root", [sqrt_up, sqrt_down])
def test_a_root_is_not_negative(root):
    with pytest.raises(ValueError, match="on the wrong side"):
        root(Q(4), "-2")


@pytest.mark.parametrize("round_it", [up, down, sqrt_up, sqrt_down])
def test_floats_are_refused(round_it):
    with pytest.raises(TypeError):
        round_it(0.1, "0.1")


def test_a_slip_in_the_last_digit_is_caught():
    # |u_0| of the local lemma: 2.0887 rounds to 2.09, not to 2.08.
    value = Q("1.025") * Q("1.05") + Q("1.01243")
    assert up(value, "2.09") == Q(209, 100)
    with pytest.raises(ValueError, match=r"2\.0886"):
        up(value, "2.08")
