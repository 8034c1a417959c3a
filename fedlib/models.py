"""Small models made of a ``body`` (the representation B) and a ``head`` (w)."""

__all__ = ["CNN", "MLP", "BodyHead", "LinearNet", "Params", "params_of", "with_body"]

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedlib._checks import check_int, check_type

Params = dict[str, Tensor]
"""A model's parameters by name, as ``Module.named_parameters`` names them."""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave torch's global generators as they were."""
    seed = check_int("seed", seed, minimum=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' too
        yield


class BodyHead(nn.Module):
    """``x -> head(body(x))``: the form that fine-tuning of a part relies on."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the head's outputs for a batch of inputs."""
        return self.head(self.body(inputs))


class LinearNet(BodyHead):
    r"""The linear model of Part II, :math:`x\mapsto\langle w, B^\top x\rangle`.

    ``body.weight`` is :math:`B^\top` of shape (k, d), ``head.weight`` is :math:`w^\top` of shape
    (1, k). It starts with orthonormal columns of B and w = 0. Call ``.double()`` for float64.

    Args:
        d: number of inputs.
        k: number of features, at most d.
        seed: draws B.

    Example:
        >>> LinearNet(5, 2)(torch.ones(3, 5)).shape
        torch.Size([3])

    Reference:
        Collins et al. (2022).
    """

    def __init__(self, d: int, k: int, *, seed: int = 0) -> None:
        d, k, seed = _size("d", d), _size("k", k), check_int("seed", seed, minimum=0)
        if k > d:
            raise ValueError(f"Invalid k={k}: the body has d={d} inputs. Use 1 <= k <= d.")
        with _seeded(seed):
            body, head = nn.Linear(d, k, bias=False), nn.Linear(k, 1, bias=False)
        super().__init__(body, head)
        rows = _orthonormal_rows(k, d, np.random.default_rng(seed % 2**64))
        body.weight.data.copy_(torch.from_numpy(rows))
        nn.init.zeros_(head.weight)

    def forward(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one real response per input."""
        return super().forward(inputs).squeeze(-1)


def _orthonormal_rows(k: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Draw k ≤ d orthonormal rows, uniformly among all, with the same bits on every machine.

    A factorisation by LAPACK, and torch's Gaussians in float32, differ in last digits between
    processors. Here every operation is one that IEEE 754 defines, and sums have an order.
    """

    def summed(terms: np.ndarray, axis: int) -> np.ndarray:
        return terms.cumsum(axis).take(-1, axis)  # one term after the other, unlike terms.sum

    rows = rng.standard_normal((k, d))
    for i, row in enumerate(rows):
        for _ in range(2 if i else 0):  # twice, against rounding
            shares = summed(rows[:i] * row, axis=1)
            row -= summed(rows[:i] * shares[:, None], axis=0)
        row /= np.sqrt((row * row).cumsum()[-1])
    return rows


class MLP(BodyHead):
    """Fully connected ReLU layers on the flattened input, and a linear head.

    Args:
        image_shape: shape of one input, for example (1, 8, 8).
        num_classes: outputs of the head.
        hidden: widths of the body's layers; the last is the number of features.
        seed: draws the initial weights (torch's defaults for each layer).

    Example:
        >>> MLP((1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        hidden: Sequence[int] = (64,),
        seed: int = 0,
    ) -> None:
        image_shape = _check_shape("image_shape", image_shape)
        num_classes = _size("num_classes", num_classes)
        widths = [math.prod(image_shape), *_check_shape("hidden", hidden)]
        with _seeded(seed):
            layers: list[nn.Module] = [nn.Flatten()]
            for width_in, width_out in pairwise(widths):
                layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            super().__init__(nn.Sequential(*layers), nn.Linear(widths[-1], num_classes))
        _start_uniformly(self, seed)


class CNN(BodyHead):
    """Two 5x5 convolutions, each followed by ReLU and 2x2 max-pooling, then a hidden layer.

    With ``width=16`` on 32x32 images it has about the size of LeNet.

    Args:
        image_shape: channels, height and width of one image; height and width at least 4.
        num_classes: outputs of the head.
        width: channels of the first convolution; the second has twice as many.
        num_features: outputs of the body.
        seed: draws the initial weights (torch's defaults for each layer).

    Example:
        >>> CNN((1, 16, 16), 10)(torch.zeros(3, 1, 16, 16)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 16,
        num_features: int = 64,
        seed: int = 0,
    ) -> None:
        image_shape = _check_shape("image_shape", image_shape)
        num_classes = _size("num_classes", num_classes)
        width = _size("width", width)
        num_features = _size("num_features", num_features)
        if len(image_shape) != 3:
            raise ValueError(
                f"Invalid image_shape={tuple(image_shape)}: not channels, height and width. "
                "Use (1, height, width) for grey images."
            )
        channels, height, breadth = image_shape
        if min(height, breadth) < 4:
            raise ValueError(
                f"Invalid image_shape={tuple(image_shape)}: two poolings need at least 4x4 pixels. "
                "Use MLP for smaller images."
            )
        flat = 2 * width * (height // 4) * (breadth // 4)
        with _seeded(seed):
            body = nn.Sequential(
                nn.Conv2d(channels, width, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(width, 2 * width, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(flat, num_features),
                nn.ReLU(),
            )
            super().__init__(body, nn.Linear(num_features, num_classes))
        _start_uniformly(self, seed)


def _start_uniformly(model: nn.Module, seed: int) -> None:
    """Give linear layers and convolutions torch's default start, with the same bits everywhere.

    Weights and biases are uniform in ±1/√(inputs of a unit). torch's draws in [0, 1) are the same
    on every processor; how it scales them is not: some round once, some twice. NumPy rounds twice.
    """
    with _seeded(seed):
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = np.float32(layer.weight[0].numel() ** -0.5)
                for p in layer.parameters():
                    drawn = torch.rand(p.shape).numpy() * (bound + bound) - bound
                    p.data.copy_(torch.from_numpy(drawn))


def _check_shape(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"Invalid {name}={sizes!r}: not a sequence. Use a tuple such as (1, 8, 8).")
    return tuple(_size(f"{name}'s size", size) for size in sizes)


def _size(name: str, value: int) -> int:
    return check_int(name, value, 1, 2**24)


def params_of(model: nn.Module) -> Params:
    """Return a copy of the model's parameters, detached.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if a parameter has no shape yet.

    Example:
        >>> sorted(params_of(LinearNet(5, 2)))
        ['body.weight', 'head.weight']
    """
    check_type("model", model, nn.Module, "Use a torch.nn.Module, such as MLP((1, 8, 8), 10).")
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"Invalid model: its parameter {lazy[0]} has no shape yet, as in a lazy layer. Call "
            "the model on a batch once, model(clients.inputs[:2])."
        )
    with torch.inference_mode(False):  # what is made inside it can never need a gradient
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def with_body(model: nn.Module, params: Mapping[str, Tensor]) -> Params:
    """Join a trained body with the head of a fresh model.

    New clients may hold classes, or numbers of classes, that no head has seen: they keep the
    representation and start from ``model``'s own head.

    Args:
        model: gives the head, and the shapes that the body must have.
        params: gives the entries whose names begin with ``body.``.

    Returns:
        Parameters for ``model``.

    Raises:
        ValueError: if the model has no body, or a body entry is missing or has another shape.

    Example:
        >>> trained = params_of(MLP((1, 8, 8), 52))
        >>> with_body(MLP((1, 8, 8), 10), trained)["head.bias"].shape
        torch.Size([10])
    """
    joined = params_of(model)
    check_type("params", params, Mapping, "Use params_of(model), or the params of a result.")
    body = [name for name in joined if name.startswith("body.")]
    if not body:
        raise ValueError(
            'Invalid model: no parameter is named "body.…". Use a model with a body and a head.'
        )
    for name in body:
        given = params.get(name)
        if not isinstance(given, Tensor) or given.shape != joined[name].shape:
            found = tuple(given.shape) if isinstance(given, Tensor) else "missing, or no tensor"
            raise ValueError(
                f"Invalid params: {name} is {found}, but the model needs "
                f"{tuple(joined[name].shape)}. Build the model with the same body."
            )
        joined[name] = given.detach().clone()
    return joined
