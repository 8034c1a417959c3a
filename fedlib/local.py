"""Local training: the loss, the batches, and the steps of one client."""

__all__ = [
    "LocalResult",
    "check_clients",
    "check_model",
    "check_params",
    "check_period",
    "example_losses",
    "local_sgd",
    "run_steps",
    "take_steps",
    "task_loss",
    "trainable_of",
]

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from fedlib._checks import check_type
from fedlib.clients import ClientData
from fedlib.models import Params
from fedlib.steps import LocalStep, sgd


class LocalResult(NamedTuple):
    """What a client sends back.

    Attributes:
        params: parameters after the local steps.
        loss: mean of the batch losses met on the way, each before its step; scalar tensor. (One
            per client for a stack of clients, whose parameters have a leading client axis.)
    """

    params: Params
    loss: Float[Tensor, "*k"]


def task_loss(outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return the mean loss of a batch: cross-entropy for labels, half squared error for reals.

    Args:
        outputs: logits of shape (n, c), or predicted responses of shape (n,).
        targets: class indices, or real responses; shape (n,).

    Returns:
        :math:`\frac1n\sum_j\ell(\hat y_j, y_j)`, a scalar.

    Example:
        >>> task_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """
    if targets.is_floating_point():
        return 0.5 * (outputs - targets).square().mean()
    return nn.functional.cross_entropy(outputs, targets)


def example_losses(
    outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the loss of each example of a batch; ``task_loss`` is their mean.

    Example:
        >>> example_losses(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 4.5000])
    """
    if targets.is_floating_point():
        return 0.5 * (outputs - targets).square()
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def local_sgd(
    model: nn.Module,
    params: Params,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, " n"],
    batches: Int[np.ndarray, "local_steps batch"],
    *,
    lr: float,
    step: LocalStep = sgd,
    trainable: Collection[str] | None = None,
) -> LocalResult:
    r"""Run one client's SGD steps, :math:`\theta\leftarrow\theta-\alpha\nabla\ell(\theta)`.

    Args:
        model: gives the architecture; its own parameters are neither read nor changed.
        params: where the client starts.
        inputs: the client's inputs, shape (n, ...).
        targets: the client's targets, shape (n,).
        batches: positions of each step's examples, one row per step.
        lr: step size α.
        step: the local rule, SGD unless given.
        trainable: names of the parameters that move; None moves those with ``requires_grad``.

    Returns:
        Parameters after the last step, and the mean batch loss.

    Reference:
        The inner loop of FedAvg, Chapter 1.
    """
    rows = torch.as_tensor(batches, device=inputs.device)
    pairs = ((inputs.index_select(0, row), targets.index_select(0, row)) for row in rows)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return task_loss(functional_call(model, params, (x,)), y)

    if trainable is None:
        trainable = trainable_of(model)
    return run_steps(loss, params, pairs, lr=lr, step=step, trainable=trainable)


def trainable_of(model: nn.Module) -> list[str]:
    """Return the names of the parameters with ``requires_grad``."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def take_steps(
    loss: Callable[..., Tensor],
    step: LocalStep,
    lr: float,
    params: Params,
    leaves: Params,
    state: object,
    batches: Iterable[Sequence[Tensor | None]],
) -> tuple[Params, object, list[Tensor]]:
    """Take one step per batch: gradients of the leaves, then the rule.

    Args:
        loss: ``(params, *batch) -> losses``, a scalar or one loss per client of a stack.
        step: the rule.
        lr: step size α.
        params: all parameters; where ``leaves`` has the same name, the leaf counts.
        leaves: the parameters that move; their tensors are set to need gradients.
        state: the rule's state.
        batches: arguments of ``loss``, step by step.

    Returns:
        New leaves, new state, and each step's losses before it.
    """
    met = []
    for batch in batches:
        for p in leaves.values():
            p.requires_grad_()
        losses = loss(params | leaves, *batch)
        # A client's loss depends on its own parameters only: the gradient of the sum serves all.
        total = losses.sum() if losses.ndim else losses
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        with torch.no_grad():
            moved, state = step.update(list(leaves.values()), list(grads), state, lr)
        leaves = dict(zip(leaves, moved, strict=True))
        met.append(losses.detach())
    return leaves, state, met


def run_steps(
    loss: Callable[..., Tensor],
    params: Params,
    batches: Iterable[Sequence[Tensor | None]],
    *,
    lr: float,
    step: LocalStep,
    trainable: Collection[str],
    extra: list[Tensor] | None = None,
    take: Callable[..., tuple[Params, object, list[Tensor]]] = take_steps,
) -> LocalResult:
    """Run the local steps of one client, or of a stack of clients: what every strategy does.

    Args:
        loss: ``(params, *batch) -> losses``, a scalar or one loss per client of a stack.
        params: where the steps start.
        batches: arguments of ``loss``, step by step.
        lr: step size α.
        step: the rule.
        trainable: names of the parameters that move.
        extra: passed to the rule's ``init``.
        take: how the steps are computed; see ``take_steps``.

    Returns:
        Parameters after the last step, and the mean of the losses over the steps.
    """
    leaves = {name: p.detach() for name, p in params.items() if name in trainable}
    start = list(leaves.values())
    versions = [p._version for p in start]
    state = step.init(start, extra)
    leaves, _, losses = take(loss, step, lr, params, leaves, state, batches)
    check_period(step, len(losses))
    if [p._version for p in start] != versions:
        raise ValueError(
            f"Invalid step {step.name}: it writes into the parameters that it is given, which are "
            "the server's. Return new tensors: p - lr * g, not p.sub_(lr * g)."
        )
    moved = {name: p.detach() for name, p in leaves.items()}
    return LocalResult(params | moved, torch.stack(losses).mean(0))


def check_period(step: LocalStep, local_steps: int) -> None:
    """Refuse a number of local steps that is no multiple of the rule's period.

    Raises:
        ValueError: if it is not.
    """
    if local_steps % step.period:
        raise ValueError(
            f"Invalid local_steps={local_steps}: the steps of {step.name} come in groups of "
            f"{step.period}. Use a multiple of {step.period}."
        )


def check_clients(clients: ClientData) -> None:
    """Refuse what is not a federation.

    Raises:
        TypeError: if it is something else.
    """
    check_type("clients", clients, ClientData, "Use ClientData.from_parts(images, labels, parts).")


def check_params(model: nn.Module, params: Params) -> None:
    """Refuse parameters that are not the model's, or not detached.

    Raises:
        TypeError: if ``model`` is not a module, or ``params`` not a dict.
        ValueError: if names or shapes differ from the model's, or a tensor requires gradients.
    """
    check_type("model", model, nn.Module, "Use a torch.nn.Module, such as MLP((1, 8, 8), 10).")
    check_type("params", params, dict, "Use params_of(model), or the params of a result.")
    own = {name: p.shape for name, p in model.named_parameters()}
    if {name: p.shape for name, p in params.items()} != own:
        wrong = sorted(set(own) ^ set(params)) or [n for n in own if own[n] != params[n].shape]
        raise ValueError(
            f"Invalid params: {', '.join(wrong[:3])} missing, unknown or of another shape. "
            "Use params_of(model), the params of a result, or with_body."
        )
    attached = [name for name, p in params.items() if p.requires_grad]
    if attached:
        raise ValueError(
            f"Invalid params: {attached[0]} requires gradients. Use params_of(model), or detach()."
        )


def check_model(model: nn.Module, params: Params, clients: ClientData) -> None:
    """Refuse parameters or data that do not fit a model, or a model that is not a pure function.

    Raises:
        TypeError: as ``check_params`` and ``check_clients``.
        ValueError: as ``check_params``; and if a parameter is not finite, calling the model fails,
            changes its buffers or draws random numbers, an example's output depends on others, or
            outputs do not fit the targets.
    """
    check_params(model, params)
    check_clients(clients)
    if len(params) < len(list(model.named_parameters(remove_duplicate=False))):
        raise ValueError(
            "Invalid model: two of its layers share a parameter. Give each layer its own."
        )
    if any(module._backward_hooks or module._backward_pre_hooks for module in model.modules()):
        raise ValueError(
            "Invalid model: it has backward hooks, which stacks of clients would not call. Remove "
            "them."
        )
    x = clients.inputs[:2]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    gpus = [x.device] if x.device.type == "cuda" else []
    generators = _generators(gpus)
    try:
        with torch.no_grad(), torch.random.fork_rng(gpus):
            outputs, after = functional_call(model, {**params, **buffers}, (x,)), _generators(gpus)
    except Exception as error:
        raise ValueError(
            f"Invalid model: it cannot take inputs of shape {tuple(x.shape)}, dtype {x.dtype} on "
            f"{x.device} ({str(error).splitlines()[0]}). Build the model for this shape, and bring "
            "both to one dtype and device."
        ) from error
    broken = [name for name, p in params.items() if not bool(p.isfinite().all())]
    if broken:
        raise ValueError(
            f"Invalid params: {broken[0]} holds NaN or infinity. Start from finite numbers; if "
            "they come from a run, use a smaller step size there."
        )
    if not all(map(torch.equal, generators, after)):
        raise ValueError(
            "Invalid model: it draws from torch's global generator, as dropout does. "
            "Leave out dropout, or call model.eval()."
        )
    changed = [n for n, value in model.named_buffers() if not torch.equal(value, buffers[n])]
    if changed:
        raise ValueError(
            f"Invalid model: calling it changes its buffer {changed[0]}, as batch normalisation "
            "does. Use GroupNorm instead, or call model.eval()."
        )
    found = f"it maps {len(x)} inputs to {_describe(outputs)}"
    if clients.targets.is_floating_point():
        if not isinstance(outputs, Tensor) or outputs.shape != (len(x),):
            raise ValueError(
                f"Invalid model: {found}, but real targets need one number per example, shape "
                f"({len(x)},). Squeeze the last dimension, as LinearNet does."
            )
        if outputs.dtype != clients.targets.dtype:
            raise ValueError(
                f"Invalid targets of type {clients.targets.dtype}: the model's outputs are "
                f"{outputs.dtype}. Bring both to one dtype."
            )
    else:
        needed, shape = clients.num_classes, getattr(outputs, "shape", ())
        if len(shape) != 2 or shape[0] != len(x) or shape[1] < needed:
            raise ValueError(
                f"Invalid model: {found}, but labels reach {needed - 1}. It needs at least "
                f"{needed} outputs per example."
            )
    with torch.no_grad():
        twice = functional_call(model, {**params, **buffers}, (x[:1].expand(2, *x.shape[1:]),))
    if not torch.allclose(outputs[:1], twice[:1], rtol=1e-3, atol=1e-5):
        raise ValueError(
            "Invalid model: an example's output depends on the others of its batch, as with batch "
            "normalisation. Use GroupNorm instead, or call model.eval()."
        )


def _generators(gpus: list[torch.device]) -> list[Tensor]:
    return [torch.random.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]


def _describe(outputs: object) -> str:
    return (
        f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    )
