"""Batches of one client in one round."""

import numpy as np
import pytest

import fedlib as fl


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(size=-3), ValueError, "Invalid size=-3: must be at least 1"),
        (dict(size=2**62), ValueError, "Invalid size=.*: must be at most"),
        (dict(local_steps=0), ValueError, "Invalid local_steps=0"),
        (
            dict(local_steps=2**62),
            ValueError,
            "too many for one round. Use local_steps <=",
        ),
        (dict(batch_size=0), ValueError, "Invalid batch_size=0"),
        (dict(batch_size=2.0), TypeError, "Invalid batch_size=2.0: not an integer"),
        (dict(rng=0), TypeError, "Invalid rng=0"),
    ],
)
def test_draw_batches_refuses(changes, error, message, as_readers_run_it):
    arguments = dict(size=5, local_steps=3, batch_size=2, rng=np.random.default_rng(0))
    with pytest.raises(error, match=message):
        fl.draw_batches(**arguments | changes)


def test_many_full_batches_need_the_memory_of_one():
    rows = fl.draw_batches(
        1000, local_steps=10**8, batch_size=None, rng=np.random.default_rng(0)
    )  # 800 GB, if each had its own
    assert rows.shape == (10**8, 1000)
    assert rows[-1].tolist() == list(range(1000))
