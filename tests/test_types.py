"""Types: all that is public tells them, and a checker finds them consistent."""

import inspect
import subprocess
import sys

import pytest
from environment import ROOT

import fedlib as fl

MODULES = [fl, fl.distributed, fl.linear, fl.plot, fl.puzzle, fl.reference, fl.stored]
FUNCTIONS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name))
}


@pytest.mark.slow
def test_a_checker_finds_the_types_consistent():
    pytest.importorskip("mypy", reason="mypy is not installed, as in the oldest environment.")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_tell_the_type_of_every_argument(name):
    signature = inspect.signature(FUNCTIONS[name])
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert not [p.name for p in named if p.annotation is p.empty]
    assert signature.return_annotation is not signature.empty
