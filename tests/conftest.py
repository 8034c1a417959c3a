"""Settings for all tests."""

import jaxtyping
import matplotlib
import pytest
from hypothesis import HealthCheck, settings

matplotlib.use("agg")  # no windows (not by MPLBACKEND: the notebooks' kernels would inherit it)

# The same random instances everywhere, and no complaint where a machine is slow.
slow = HealthCheck.too_slow
settings.register_profile("book", deadline=None, derandomize=True, suppress_health_check=[slow])
settings.load_profile("book")


@pytest.fixture
def as_readers_run_it():
    """Without the shape checks that only our tests switch on, so that our own messages show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
