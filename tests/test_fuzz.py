"""Wrong arguments are answered by fedlib, in a sentence; see ``fuzz.py``."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import is_clear, same, uncovered

import fedlib as fl


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the fuzz bounds memory as Linux does"
)
def test_wrong_arguments_are_answered_in_a_sentence():
    tool = Path(__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, tool, "--share=5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_tried():
    assert uncovered() == []


@pytest.mark.parametrize(
    ("call", "clear"),
    [
        (lambda: fl.proximal(-1), True),
        (lambda: fl.proximal(*[1, 2]), False),  # Python's own words
        (lambda: len(3), False),
    ],
)
def test_a_clear_answer_is_told_from_a_raw_one(call, clear, as_readers_run_it):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert is_clear(caught.value) == clear


def test_results_are_compared_to_the_last_bit():
    one = {"a": fl.LinearNet(3, 2), "b": [float("nan"), 1]}
    assert same(one, {"a": fl.LinearNet(3, 2), "b": [float("nan"), 1]})
    assert not same(one, {"a": fl.LinearNet(3, 2, seed=1), "b": [float("nan"), 1]})
    assert not same(one, {"a": fl.LinearNet(3, 2), "b": [float("nan"), 1.0]})
