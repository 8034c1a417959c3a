"""The chapter's few lines, against torch's optimiser; and every strategy against them."""

import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from test_fedavg import CONFIG, distance, federation, plain_fedavg

import fedlib as fl
from fedlib import reference
from fedlib.strategy import Strategy

ROOT = Path(__file__).parent.parent
STRATEGIES = [
    *("auto", "loop", "threads", "stacked", "merged"),
    Strategy(threads=2),
    Strategy(stack=True, chunk=2),
    Strategy(merge=True, chunk=2),
]


@pytest.mark.parametrize("make", [fl.CNN, fl.MLP])
def test_the_reference_equals_a_plain_loop_over_torch_sgd(make):
    clients, model = federation(), make((1, 4, 4), 3).double()
    found = reference.fedavg(model, clients, CONFIG, 5)
    assert distance(found, plain_fedavg(model, clients, CONFIG, 5)) < 1e-13


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(("cohort_size", "batch_size"), [(3, 4), (None, None)])
@pytest.mark.parametrize("make", [fl.CNN, fl.MLP])
def test_every_strategy_equals_the_reference(make, cohort_size, batch_size, local_steps, strategy):
    if local_steps > 1 and (strategy == "merged" or getattr(strategy, "merge", False)):
        pytest.skip("clients are merged for one step only")
    clients, model = federation(), make((1, 4, 4), 3).double()
    change = dict(cohort_size=cohort_size, batch_size=batch_size, local_steps=local_steps)
    config = replace(CONFIG, **change)
    expected = reference.fedavg(model, clients, config, 5)
    found = fl.run_fedavg(model, clients, config, seed=5, progress=False, strategy=strategy)
    assert distance(found.params, expected) < 1e-13


def test_real_targets_too():
    inputs = torch.arange(24.0, dtype=torch.float64).view(8, 3).sin()
    clients = fl.ClientData(inputs, inputs.sum(1), torch.tensor([3, 5]).numpy())
    model, config = fl.LinearNet(3, 2).double(), replace(CONFIG, cohort_size=1, batch_size=2)
    expected = reference.fedavg(model, clients, config, 1)
    found = fl.run_fedavg(model, clients, config, seed=1, progress=False).params
    assert distance(found, expected) < 1e-13


def test_chapter_1_shows_the_code_that_runs():
    chapter = nbformat.read(ROOT / "book" / "01_fedavg.ipynb", as_version=4)
    (text,) = (c.source for c in chapter.cells if "`fedlib/reference.py`" in c.source)
    (shown,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert shown.startswith("def local_sgd(")
    assert shown in (ROOT / "fedlib" / "reference.py").read_text(encoding="utf-8")
