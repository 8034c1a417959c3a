"""What ``import fedlib`` loads, and what it leaves for later."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import nbformat


def test_what_takes_long_to_load_waits_until_it_is_asked_for():
    script = """
import sys, fedlib as fl
late = {"matplotlib", "scipy", "sklearn", "pooch", "fedlib.linear", "fedlib.puzzle"}
assert not late & set(sys.modules), late & set(sys.modules)
fl.plot, fl.linear, fl.reference, fl.puzzle
assert {"matplotlib", "fedlib.linear", "fedlib.puzzle"} <= set(sys.modules)
assert set(fl.__all__) <= set(dir(fl))
assert all(hasattr(fl, name) for name in fl.__all__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_run_loads_no_compiler():
    script = """
import sys, numpy as np, torch, fedlib as fl
clients = fl.ClientData(torch.ones(6, 2), torch.ones(6), np.array([2, 4]))
config = fl.FedAvgConfig(
    num_rounds=2, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.1
)
fl.run_fedavg(fl.LinearNet(2, 1), clients, config, seed=0, progress=False)
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_types_are_there_for_checkers():
    assert resources.files("fedlib").joinpath("py.typed").is_file()


def test_chapters_need_nothing_that_only_a_checkout_has():
    for file in sorted((Path(__file__).parent.parent / "book").glob("*.ipynb")):
        cells = nbformat.read(file, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        assert not re.search(r"^\s*(from|import) (studies|benchmarks|tools)\b", code, re.M), file
        assert "fl.experiments" not in code
