"""A machine whose last digits differ: `tools/shake.py` lets kernels start with this.

Every random draw and every start of a network moves by a relative 1e-9 (in float32 by 1e-7, about
one last digit), and singular vectors and eigenvectors come with other signs, as another LAPACK may
give them. What a chapter prints must not show it.
"""

import sys
from functools import wraps

import numpy as np
import torch

SIZE = {np.dtype("float64"): 1e-9, np.dtype("float32"): 1e-7}
HIDDEN = np.random.default_rng(20).standard_normal(100_003)  # the same for each call: no state


def nudged(values):
    """Return values (array, number) a little off, the same each time."""
    size = SIZE.get(np.asarray(values).dtype)
    if size is None:
        return values
    off = values * (1 + size * np.resize(HIDDEN, np.shape(values)))
    return off if isinstance(values, np.ndarray) else float(off)


def nudged_tensor(values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(nudged(values.detach().cpu().numpy())).to(values)


class Generator(np.random.Generator):
    """NumPy's, whose real numbers are a little off."""


def _nudge_method(name):
    real = getattr(np.random.Generator, name)

    @wraps(real)
    def method(self, *args, out=None, **kwargs):
        drawn = nudged(real(self, *args, **kwargs))
        if out is not None:
            out[...] = drawn
        return drawn

    setattr(Generator, name, method)


for name in ("standard_normal", "normal", "random", "uniform", "exponential", "dirichlet"):
    _nudge_method(name)

real_rng = np.random.default_rng


@wraps(real_rng)
def default_rng(seed=None):
    if isinstance(seed, np.random.Generator):
        return seed
    return Generator(real_rng(seed).bit_generator)


np.random.default_rng = default_rng

real_randn = torch.randn


@wraps(real_randn)
def randn(*args, **kwargs):
    return nudged_tensor(real_randn(*args, **kwargs))


torch.randn = randn

real_double = torch.nn.Module.double


@wraps(real_double)
def double(self):
    real_double(self)
    with torch.no_grad():
        for p in self.parameters():
            p.copy_(nudged_tensor(p))
    return self


torch.nn.Module.double = double


def _with_other_signs(real):
    @wraps(real)
    def other(*args, **kwargs):
        found = real(*args, **kwargs)
        if not isinstance(found, tuple):  # values alone
            return found
        fields = found._asdict()
        for field, axis in {"U": -1, "eigenvectors": -1, "Vh": -2}.items():
            if field in fields:
                vectors = fields[field]
                signs = (-1.0) ** np.arange(vectors.shape[axis])
                fields[field] = vectors * (signs if axis == -1 else signs[:, None])
        return type(found)(**fields)

    return other


np.linalg.svd = _with_other_signs(np.linalg.svd)
np.linalg.eigh = _with_other_signs(np.linalg.eigh)

import fedlib.models  # noqa: E402  (after the generators that it may keep)

real_params_of = fedlib.models.params_of


@wraps(real_params_of)
def params_of(model):
    params = real_params_of(model)
    single = {name: p for name, p in params.items() if p.dtype == torch.float32}
    return params | {name: nudged_tensor(p) for name, p in single.items()}


for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "fedlib"]:
    if getattr(module, "params_of", None) is real_params_of:
        module.params_of = params_of
