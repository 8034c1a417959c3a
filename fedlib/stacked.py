"""One forward pass for many clients, each with its own parameters."""

__all__ = ["stacked_call"]

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrize

from fedlib.models import BodyHead, LinearNet, Params


def stacked_call(module: nn.Module, params: Params, inputs: Tensor) -> Any:
    """Call a module for k clients at once: ``outputs[i] = module_i(inputs[i])``.

    A fully connected layer becomes one batched matrix product, a pointwise layer is called as it
    is, and containers pass on to their parts. Any other module, with whatever it holds, goes
    through ``torch.func.vmap``, which computes the same with more overhead, or says that it cannot,
    as for recurrent layers.

    Args:
        module: gives the architecture.
        params: its parameters, each with a leading axis of k clients.
        inputs: one batch per client, shape (k, b, ...).

    Returns:
        Outputs, shape (k, b, ...); what a module returns in a tuple or dict, each so.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> params = {"weight": torch.ones(4, 2, 3), "bias": torch.zeros(4, 2)}
        >>> stacked_call(layer, params, torch.ones(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """
    # By the function that would run, not by type: a subclass with its own forward is another layer.
    # A hook or a parametrised weight is for vmap to see to.
    forward = type(module).forward
    plain = (
        forward in _STACKED
        and "forward" not in vars(module)
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not parametrize.is_parametrized(module)
    )
    if plain:
        return _STACKED[forward](module, params, inputs)
    call = partial(functional_call, module, tie_weights=False)  # every name is given
    return vmap(lambda p, x: call(p, (x,)))(params, inputs)


def _linear(module: nn.Linear, params: Params, inputs: Tensor) -> Tensor:
    # The weights stand on the left, so that the backward pass makes their gradient as
    # (out, b) @ (b, in), in the layout of the weights. The other way round it makes the transpose:
    # several times slower on CPUs for a few outputs, and slow to subtract for many.
    weight, flat = params["weight"], inputs.flatten(1, -2)
    if module.bias is None:
        outputs = torch.bmm(weight, flat.mT).mT
    else:
        outputs = torch.baddbmm(params["bias"].unsqueeze(-1), weight, flat.mT).mT
    return outputs.unflatten(1, inputs.shape[1:-1])


def _chain(module: nn.Module, params: Params, inputs: Tensor, names: Iterable[str]) -> Tensor:
    for name in names:
        start = f"{name}."
        own = {key.removeprefix(start): p for key, p in params.items() if key.startswith(start)}
        inputs = stacked_call(module.get_submodule(name), own, inputs)
    return inputs


def _sequential(module: nn.Sequential, params: Params, inputs: Tensor) -> Tensor:
    return _chain(module, params, inputs, module._modules)


def _body_head(module: BodyHead, params: Params, inputs: Tensor) -> Tensor:
    return _chain(module, params, inputs, ["body", "head"])


def _linear_net(module: LinearNet, params: Params, inputs: Tensor) -> Tensor:
    return _body_head(module, params, inputs).squeeze(-1)


def _flatten(module: nn.Flatten, params: Params, inputs: Tensor) -> Tensor:
    # Axis 0 of one client's batch is axis 1 here; axes counted from the end stay.
    first, last = (dim + 1 if dim >= 0 else dim for dim in (module.start_dim, module.end_dim))
    return inputs.flatten(first, last)


def _pointwise(module: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    return module(inputs)


_STACKED: dict[object, Callable[..., Any]] = {
    nn.Linear.forward: _linear,
    nn.Flatten.forward: _flatten,
    nn.Sequential.forward: _sequential,
    BodyHead.forward: _body_head,
    LinearNet.forward: _linear_net,
    **dict.fromkeys(
        [layer.forward for layer in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity)],
        _pointwise,
    ),
}
