"""Settings for all tests."""

from collections import Counter

import environment
import jaxtyping
import matplotlib
import pytest
import torch
from hypothesis import HealthCheck, settings

matplotlib.use("agg")  # no windows (not by MPLBACKEND: the notebooks' kernels would inherit it)

# The same random instances everywhere, and no complaint where a machine is slow.
slow = HealthCheck.too_slow
settings.register_profile("book", deadline=None, derandomize=True, suppress_health_check=[slow])
settings.load_profile("book")


# What takes minutes comes first, so that no processor waits for it in the end.
LONGEST = [
    "test_site.py",
    "test_fuzz.py",
    "08_iteration",
    "test_widgets_site.py",
    "test_benchmarks.py",
]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.name
        return next((i for i, part in enumerate(LONGEST) if name.startswith(part)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def same_start():
    """Let modules that a test makes without a seed start alike in whatever order tests run."""
    torch.manual_seed(0)


def pytest_sessionstart(session):
    """Notebooks import what is installed: in a copied or moved clone, another copy."""
    if environment.library() != environment.ROOT:
        pytest.exit(environment.fault(), returncode=3)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Say what was skipped, and why, in one line."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reports
        if isinstance(report.longrepr, tuple)
    )
    said = "; ".join(f"{number} tests ({why})" for why, number in reasons.most_common())
    if said:
        terminalreporter.write_line(f"Skipped: {said}.")


@pytest.fixture
def as_readers_run_it():
    """Without the shape checks that only our tests switch on, so that our own messages show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
