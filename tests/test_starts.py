"""Where networks start: the same bits on every machine."""

import hashlib
import os
import subprocess
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

import fedlib as fl

SIZES = [(5, 2), (20, 9), (7, 7), (3, 1)]

# Other kernels of every library: no sum in the order of this process, no vector of its width.
ELSEWHERE = {
    "OPENBLAS_CORETYPE": "Prescott",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": " ".join(np._core._multiarray_umath.__cpu_dispatch__),
}


def start(d, k, seed=0):
    return fl.LinearNet(d, k, seed=seed).body.weight.detach()


def exactly(d, k, seed):
    """The same rows by Gram and Schmidt with 60 digits, each rounded once, to float32."""
    with localcontext(prec=60):
        drawn = np.random.default_rng(seed).standard_normal((k, d))
        rows = []
        for row in [[Decimal(float(x)) for x in row] for row in drawn]:
            for other in rows:
                share = sum(x * y for x, y in zip(row, other, strict=True))
                row = [x - share * y for x, y in zip(row, other, strict=True)]
            length = sum(x * x for x in row).sqrt()
            rows.append([x / length for x in row])
        return np.array([[float(x) for x in row] for row in rows]).astype(np.float32)


@pytest.mark.parametrize(("d", "k"), SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_linear_net_starts_with_exact_bits(d, k, seed):
    np.testing.assert_array_equal(start(d, k, seed).numpy(), exactly(d, k, seed))


@pytest.mark.parametrize(("d", "k"), [*SIZES, (300, 100)])
def test_a_linear_net_starts_with_orthonormal_columns(d, k):
    rows = start(d, k).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(k).double(), atol=1e-7, rtol=0)


def test_a_linear_nets_seed_decides_and_global_generators_do_not():
    torch.manual_seed(1)
    one = start(20, 9, seed=3)
    torch.manual_seed(2)
    assert torch.equal(one, start(20, 9, seed=3))
    assert not torch.equal(one, start(20, 9, seed=4))
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(2))


def test_a_linear_nets_start_prefers_no_direction():
    """Of a uniformly random direction each coordinate's square has mean 1/d, its mean is zero."""
    rows = torch.stack([start(4, 2, seed=seed) for seed in range(1000)])
    assert abs(rows.mean(dim=0)).max() < 0.07
    assert abs((rows**2).mean(dim=0) - 1 / 4).max() < 0.04


DIGEST = """
import hashlib, fedlib as fl
from tests.test_starts import digest
print(digest())
"""


def digest():
    """Bits of every kind of start that the library draws."""
    nets = [fl.LinearNet(d, k) for d, k in SIZES]
    nets += [fl.MLP((1, 8, 8), 10, hidden=(16, 7)), fl.CNN((1, 16, 16), 10, width=4)]
    bits = hashlib.sha256()
    for net in nets:
        for p in net.parameters():
            bits.update(p.detach().numpy().tobytes())
    return bits.hexdigest()


@pytest.mark.slow
def test_starts_have_the_same_bits_on_other_machines():
    threads = {"OMP_NUM_THREADS": "2"}
    for env in (ELSEWHERE, threads):
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=os.environ | env, capture_output=True, text=True
        )
        assert run.stdout.strip() == digest(), run.stderr
