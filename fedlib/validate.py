"""Whether a model and a rule can be trained here, and how: the one place that decides.

Every public function that calls a model asks ``check_model`` first, and goes on with what it
returns: a ``Ready``, which hands out private copies. So nothing that a run does is seen in the
user's model or data, and two threads may use one model at once. What was found is kept for each
model and its data, until the model's code, hooks, mode or parts are others.
"""

__all__ = [
    "FunctionalCopy",
    "Ready",
    "check_body",
    "check_clients",
    "check_model",
    "check_params",
    "check_period",
    "check_rule",
    "check_step",
    "check_targets",
    "own_modes",
    "probe",
    "same_probe",
    "trainable_of",
    "untouched",
]

import copy
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fedlib._checks import (
    check_callable,
    check_names,
    check_positive_int,
    check_type,
    refuse,
    shown,
)
from fedlib.clients import ClientData
from fedlib.keys import generator_of, takes_generator
from fedlib.losses import Loss, losses_by
from fedlib.models import Params
from fedlib.rules import LocalStep
from fedlib.stacked import stacked_call

_MODEL = "Use a torch.nn.Module, such as MLP((1, 8, 8), 10)."


# --- Arguments ----------------------------------------------------------------------------------


def check_clients(clients: ClientData) -> ClientData:
    """Return a federation.

    Raises:
        TypeError: if it is something else.
    """
    remedy = "Use ClientData.from_parts(images, labels, parts)."
    return check_type("clients", clients, ClientData, remedy)


def check_step(step: LocalStep) -> LocalStep:
    """Return a rule.

    Raises:
        TypeError: if it is something else.
    """
    remedy = "Use sgd, momentum(0.9), proximal(0.1) or a LocalStep."
    check_type("step", step, LocalStep, remedy)
    check_positive_int("step.period", step.period)
    for field in ("init", "update"):
        check_callable(f"step.{field}", getattr(step, field), "Write it as LocalStep says.")
    return step


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


def check_params(model: nn.Module, params: Params) -> None:
    """Refuse parameters that are not the model's, or not detached.

    Raises:
        TypeError: if ``model`` is not a module, or ``params`` not a dict of tensors.
        ValueError: if names or shapes differ from the model's, a tensor requires gradients, or a
            parameter of the model has no shape yet.
    """
    check_type("model", model, nn.Module, _MODEL)
    check_type("params", params, dict, "Use params_of(model), or the params of a result.")
    own = dict(model.named_parameters())
    for name, p in own.items():
        if is_lazy(p):
            raise ValueError(
                f"Invalid model: its parameter {name} has no shape yet, as in a lazy layer. Call "
                "the model on a batch once, model(clients.inputs[:2])."
            )
    check_names("params", params.keys())
    for name, tensor in params.items():
        remedy = "Use params_of(model), or the params of a result."
        where = f"params[{name!r}]"
        check_type(where, tensor, Tensor, remedy)
        if tensor.is_meta and name in own and not own[name].is_meta:
            refuse(where, tensor, "on the device meta, without numbers", "its numbers")
    shapes = {name: p.shape for name, p in own.items()}
    if {name: p.shape for name, p in params.items()} != shapes:
        wrong = sorted(set(own) ^ set(params))
        wrong = wrong or [n for n in own if shapes[n] != params[n].shape]
        raise ValueError(
            f"Invalid params: {', '.join(wrong[:3])} missing, unknown or of another shape. "
            "Use params_of(model), the params of a result, or with_body."
        )
    attached = [name for name, p in params.items() if p.requires_grad]
    if attached:
        raise ValueError(
            f"Invalid params: {attached[0]} requires gradients. Use params_of(model), or detach()."
        )


def trainable_of(model: nn.Module) -> list[str]:
    """Return the names of the parameters with ``requires_grad``."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


# --- Private copies -----------------------------------------------------------------------------


@contextmanager
def own_modes(device: torch.device, *, grad: bool = True) -> Iterator[None]:
    """Set what a computation depends on, whatever the caller has set around it, in this thread."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        if torch.amp.is_autocast_available(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch has to say about a trial from being shown, or turned into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def untouched(inputs: Tensor) -> Iterator[None]:
    """Set the user's data back if a model writes into them, as it may do for some values only."""
    kept, version = inputs.clone(), inputs._version
    try:
        yield
    finally:
        if inputs._version != version:
            inputs.copy_(kept)


class FunctionalCopy:
    """A private copy of a module, which is called with other parameters than its own.

    What ``torch.func.functional_call`` does, without setting everything back after each call: that
    takes a tenth of the time of a step of LeNet.

    Args:
        model: is copied, but for its parameters, which the copy never uses.
        spare: give the module a copy of its inputs, because it writes into them.
    """

    def __init__(self, model: nn.Module, *, spare: bool = False) -> None:
        self.model, self.spare = _copy(model), spare
        self.holders: list[tuple[dict[str, Any], str, str]] = []
        self.others: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            path, _, key = name.rpartition(".")
            known = first.setdefault(id(p), name)  # a parameter that two layers share
            self.holders.append((self.model.get_submodule(path)._parameters, key, known))
            if known != name:
                self.others[name] = known

    def __call__(self, params: Params, inputs: Tensor) -> Any:
        """Return what the module makes of a batch of inputs."""
        for holder, key, name in self.holders:  # as ``loaded``, one call less for every batch
            holder[key] = params[name]
        return self.model(inputs.clone() if self.spare else inputs)

    def loaded(self, params: Params) -> nn.Module:
        """Return the copy, with these parameters in it."""
        for holder, key, name in self.holders:
            holder[key] = params[name]
        return self.model

    def stacked(self, params: Params, inputs: Tensor) -> Any:
        """Return the outputs of k clients, as ``stacked_call``."""
        if self.others:
            params = params | {name: params[known] for name, known in self.others.items()}
        return stacked_call(self.model, params, inputs.clone() if self.spare else inputs)


def _copy(model: nn.Module) -> nn.Module:
    kept: dict[int, Any] = {id(p): p for p in model.parameters()}
    names = {_address(p): name for name, p in model.named_parameters() if _address(p)}
    results = []
    # Activations that a module keeps, or weights that a hook computed, are results of torch, which
    # it does not copy.
    for module in model.modules():
        for value in tree_leaves({n: v for n, v in vars(module).items() if n not in _OWN}):
            if isinstance(value, Tensor) and not value.is_leaf:
                kept[id(value)] = value.detach().clone()
                results.append(value)
    try:
        copied = copy.deepcopy(model, kept)
    except Exception as error:
        raise ValueError(
            f"Invalid model: it cannot be copied ({_reason(error)}), but a run works on a copy. "
            "Keep what copy.deepcopy(model) cannot copy outside the model."
        ) from error
    # What deepcopy has copied it keeps in a list. No parameter is among it, but perhaps a view of
    # one, which sees the parameter change in the model, and would not in the copy.
    for value in (*results, *kept.get(id(kept), [])):
        if isinstance(value, Tensor) and _address(value) in names:
            _refuse_reached(names[_address(value)])
    return copied


_OWN = vars(nn.Module()).keys()  # what every module has: its parameters, its hooks


def _refuse_reached(name: str) -> None:
    raise ValueError(
        f"Invalid model: its forward pass reaches {name} otherwise than through its layers, by a "
        "captured variable, a list or a view, say, and so would not see it change. Use self.NAME "
        "in a method, nn.ModuleList or nn.ParameterList."
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


# --- Verdicts -----------------------------------------------------------------------------------


class _Verdict:
    """What was found about a model and its data; ``found`` holds what was asked for later."""

    def __init__(self) -> None:
        self.spare, self.pads = False, False
        self.found: dict[object, Any] = {}


_verdicts: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
_lock = threading.RLock()
_KEPT = 16  # verdicts per model


class Ready:
    """A model that passed the checks: private copies of it, and what is known of it.

    Attributes:
        model: the user's; read, never called.
        params: what it was checked with.
        clients: the data that it was checked with.
        loss: one loss per example, or None for the library's.
        told: whether the user was told how its clients run.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        clients: ClientData,
        verdict: _Verdict,
        loss: Loss | None = None,
    ) -> None:
        self.model, self.params, self.clients, self.loss = model, params, clients, loss
        self.verdict, self.told, self._here = verdict, False, threading.local()

    def fresh(self) -> FunctionalCopy:
        """Return a private copy for a trial, which leaves nothing behind in that of a run."""
        return FunctionalCopy(self.model, spare=self.verdict.spare)

    def replica(self) -> FunctionalCopy:
        """Return this thread's private copy."""
        if not hasattr(self._here, "replica"):
            self._here.replica = self.fresh()
        return self._here.replica

    def _once(self, key: tuple, find: Callable[[], Any]) -> Any:
        with _lock:
            if key not in self.verdict.found:
                with own_modes(self.clients.device), _silent():
                    self.verdict.found[key] = find()
            return self.verdict.found[key]

    def check_trainable(self, names: Collection[str]) -> None:
        """Refuse names that no gradient can be had for.

        Raises:
            ValueError: if a name is unknown or no real number's, or the loss is not finite or has
                no gradient.
        """
        names = tuple(names)
        self._once(("gradient", names), lambda: self._gradient(names))

    def _gradient(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.params:
                raise ValueError(f"Invalid trainable: {name} is no parameter. Use names of params.")
            if not (self.params[name].is_floating_point() or self.params[name].is_complex()):
                raise ValueError(
                    f"Invalid trainable: {name} is of type {self.params[name].dtype}. Use "
                    "parameters that are real numbers."
                )
        for name, p in self.model.named_parameters():
            hooks = p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
            if hooks and name in names:
                raise ValueError(
                    f"Invalid model: its parameter {name} has gradient hooks, which a copy of it "
                    "would not call. Remove them, or do what they do in a LocalStep."
                )
        x, y = _examples(self.clients)
        replica = self.fresh()
        try:
            losses, grads = _losses_and_grads(replica, self.params, names, x, y, self.loss)
        except Exception as error:
            raise ValueError(
                f"Invalid model: its gradient cannot be had ({_reason(error)}). Train parameters "
                "that the loss depends on, through operations that torch.autograd.grad "
                "differentiates."
            ) from error
        if not bool(losses.isfinite().all()):
            raise ValueError(
                f"Invalid model: the loss of its first examples is {losses.max().item()} before "
                "any step: its outputs overflow. Scale the inputs, or start from smaller "
                "parameters."
            )
        twice, four = (
            _losses_and_grads(replica, self.params, names, *_repeated(x, y, n), self.loss)[1]
            for n in (2, 4)
        )
        for name, *each in zip(names, grads, twice, four, strict=True):
            if not all(bool(g.isfinite().all()) for g in each):
                raise ValueError(
                    f"Invalid model: the gradient of {name} is infinite or NaN before any step: it "
                    "overflows, or there is none, as of a root at 0. Scale the inputs, or start "
                    "from other parameters."
                )
        if self.loss is not None and takes_generator(self.loss):
            return  # other numbers for each example
        for name, g2, g4 in zip(names, twice, four, strict=True):
            if not _near(g4, 2 * g2, float(g2.abs().max()) if g2.numel() else 0.0):
                raise ValueError(
                    f"Invalid model: an example's part in the gradient of {name} depends on the "
                    "others of its batch, as with Embedding(scale_grad_by_freq=True). Leave that "
                    "out."
                )

    def why_apart(self, names: Collection[str]) -> str | None:
        """Return why clients cannot be stacked, or None if they can."""
        names = tuple(names)
        return self._once(("stack", names), lambda: self._stack(names))

    def _stack(self, names: Sequence[str]) -> str | None:
        for name, module in self.model.named_modules():
            if getattr(module, "padding_idx", None) is not None:
                return f"the padding_idx of {name or 'its layer'} would be ignored"
        if self.verdict.pads:
            return "the padding_idx in its forward pass would be ignored"
        x, y = _examples(self.clients)
        # Two clients with parameters and batches of their own.
        both = [self.params, {n: _nudged(p, i) for i, (n, p) in enumerate(self.params.items())}]
        batches = [(x, y), (x.flip(0), y.flip(0))]
        replica = self.fresh()
        alone = [
            _losses_and_grads(replica, p, names, *batch, self.loss)[1]
            for p, batch in zip(both, batches, strict=True)
        ]
        stack = {n: torch.stack([p[n] for p in both]) for n in self.params}
        xs, ys = (torch.stack(values) for values in zip(*batches, strict=True))
        try:
            _, grads = _losses_and_grads(
                replica.stacked, stack, names, xs, ys, self.loss, stacked=True
            )
        except Exception as error:
            return f"its layers cannot be stacked ({_reason(error)})"
        largest = max((float(g.abs().max()) for own in alone for g in own if g.numel()), default=0)
        for i, own in enumerate(alone):
            for name, one, stacked in zip(names, own, grads, strict=True):
                if not _near(stacked[i], one, largest):
                    return f"its stacked form gives {name} another gradient"
        return None


def _examples(clients: ClientData) -> tuple[Tensor, Tensor]:
    return clients.inputs[:2].clone(), clients.targets[:2].clone()


def _repeated(x: Tensor, y: Tensor, times: int) -> tuple[Tensor, Tensor]:
    xs, ys = (t[:1].repeat(times, *[1] * (t.ndim - 1)) for t in (x, y))
    return xs, ys


def _losses_and_grads(
    call: Callable[[Params, Tensor], Tensor],
    params: Params,
    names: Sequence[str],
    x: Tensor,
    y: Tensor,
    loss: Loss | None,
    *,
    stacked: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: params[name].detach().clone().requires_grad_() for name in names}
    outputs = call(params | leaves, x.clone())
    if stacked:
        each = [(tree_map(lambda out, i=i: out[i], outputs), y[i]) for i in range(len(y))]
        losses = torch.cat([_losses(loss, *own) for own in each])
    else:
        losses = _losses(loss, outputs, y)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return losses.detach(), [g.to_dense() if g.is_sparse else g for g in grads]


def _losses(loss: Loss | None, outputs: object, targets: Tensor) -> Tensor:
    """Return the losses of a trial; one that draws is given the same numbers in each."""
    draws = loss is not None and takes_generator(loss)
    return losses_by(loss, outputs, targets, generator_of([0]) if draws else None)


def _near(found: Tensor, expected: Tensor, scale: float) -> bool:
    """Compare two tensors up to rounding, of numbers of this scale on the way."""
    if found.shape != expected.shape:
        return False
    if not found.numel():
        return True
    eps = torch.finfo(found.dtype).eps
    size = float(expected.abs().max())
    most = min(30 * eps**0.5, 0.1) * size + min(100 * eps, 0.05) * scale
    return bool(((found - expected).abs() <= most).all())


def _nudged(p: Tensor, phase: int, size: float = 0.02) -> Tensor:
    return p + _waves(p, phase).mul_(size) if p.is_floating_point() else p


def _waves(like: Tensor, phase: int) -> Tensor:
    """Return numbers between -1 and 1, the same on every machine up to rounding."""
    angles = torch.arange(like.numel(), dtype=torch.float64).mul_(1.7).add_(phase)
    return angles.cos_().to(like.dtype).to(like.device).view(like.shape)


def check_model(
    model: nn.Module, params: Params, clients: ClientData, loss: Loss | None = None
) -> Ready:
    """Refuse parameters or data that do not fit a model, or a model that is not a pure function.

    Args:
        model: any module.
        params: its parameters.
        clients: the data.
        loss: one loss per example from outputs and targets; None for the library's.

    Returns:
        The model, ready to be called.

    Raises:
        TypeError: as ``check_params`` and ``check_clients``.
        ValueError: as ``check_params``; and if a parameter is not finite, calling the model fails,
            changes its buffers or parameters, draws random numbers or uses what is not in the
            copy, an example's output depends on others, or outputs do not fit the targets.
    """
    check_params(model, params)
    check_clients(clients)
    if loss is not None:
        check_callable("loss", loss, "Use a function (outputs, targets) -> one loss per example.")
    key = (*_fingerprint(model, params, clients), None if loss is None else _mark(loss))
    broken = [n for n, p in params.items() if not (p.is_meta or bool(p.isfinite().all()))]
    with _lock:
        verdicts = _verdicts.setdefault(model, {})
        if key not in verdicts:
            with own_modes(clients.device, grad=False), _silent():
                verdict = _judge(model, params, clients, broken, loss)
            if len(verdicts) >= _KEPT:
                verdicts.clear()
            verdicts[key] = verdict
    if broken:
        _refuse_broken(broken)
    return Ready(model, params, clients, verdicts[key], loss)


def _refuse_broken(names: Sequence[str]) -> None:
    raise ValueError(
        f"Invalid params: {names[0]} holds NaN or infinity. Start from finite numbers; if "
        "they come from a run, use a smaller step size there."
    )


def _fingerprint(model: nn.Module, params: Params, clients: ClientData) -> tuple:
    """Tell a model, the kind of its parameters, and data from what they were before."""
    parts = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "Invalid model: it is compiled by torch.jit, so that its parameters cannot be "
                "replaced. Use the module that it was made from."
            )
        own = [(name, _mark(value)) for name, value in vars(module).items()]
        parts.append((type(module), _mark(type(module).forward), *own))
    data = [
        (id(t), t._version if not t.is_inference() else 0, t.shape, t.dtype, t.device)
        for t in (clients.inputs, clients.targets)
    ]
    kinds = [(p.dtype, p.device) for p in params.values()]
    return (*parts, *data, *kinds)


def _mark(value: object, depth: int = 3) -> object:
    """Return what tells a value from another, and keeps none of the model's parts alive."""
    if value is None or isinstance(value, bool | int | float | str | CodeType):
        return value
    if isinstance(value, Tensor):
        version = 0 if value.is_inference() else value._version
        return id(value), version, value.requires_grad, value.dtype, value.device
    if isinstance(value, dict) and depth:
        return tuple((str(name), _mark(part, depth - 1)) for name, part in value.items())
    if isinstance(value, list | tuple) and depth:
        return tuple(_mark(part, depth - 1) for part in value)
    if isinstance(value, FunctionType):
        return id(value), value.__code__
    if (
        depth
        and hasattr(value, "__dict__")
        and not isinstance(value, type | ModuleType | nn.Module)
    ):
        return id(value), _mark(vars(value), depth)  # settings, say
    return id(value)


class _Watch(TorchDispatchMode):
    """Sees the operations of a forward pass: which memory they read, which padding they know."""

    def __init__(self, others: dict[int, str]) -> None:
        super().__init__()
        self.others, self.pads = others, False
        self.touched: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and torch.compile's import takes a second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        self.pads |= given.get("padding_idx", -1) >= 0
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and _address(value) in self.others:
                self.touched.append(self.others[_address(value)])
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse, say
        return None


def _addresses(model: nn.Module) -> dict[int, str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {address: name for name, t in named if (address := _address(t))}


def _judge(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    broken: Sequence[str],
    loss: Loss | None = None,
) -> _Verdict:
    for module in model.modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                "Invalid model: it has backward hooks, which stacks of clients would not call. "
                "Remove them."
            )
    if any(t.is_inference() for t in (clients.inputs, clients.targets)):
        raise ValueError(
            "Invalid clients: their tensors were made inside torch.inference_mode, where no "
            "gradient can be taken. Build them outside it."
        )
    labels = clients.targets
    if loss is None:
        check_targets(labels)
    if (
        labels._version
        and labels.ndim == 1
        and not labels.is_floating_point()
        and int(labels.min()) < 0
    ):
        raise ValueError(
            f"Invalid clients: the least label is {int(labels.min())}, written after the "
            "federation was built. Use labels from 0 on."
        )
    verdict, replica = _Verdict(), FunctionalCopy(model)
    x, start = clients.inputs[:2].clone(), {name: p.clone() for name, p in params.items()}
    given, buffers = dict(start), {n: b.clone() for n, b in replica.model.named_buffers()}
    generators = _generators(x.device)
    watch, version = _Watch(_addresses(model)), x._version
    try:
        with watch:
            outputs = replica(given, x)
    except Exception as error:
        raise ValueError(
            f"Invalid model: it cannot take inputs of shape {tuple(x.shape)}, dtype {x.dtype} on "
            f"{x.device} ({_reason(error)}). Build the model for this shape, and bring "
            "both to one dtype and device."
        ) from error
    if broken:
        _refuse_broken(broken)
    _refuse_impure(_moved(generators, x.device), watch)
    changed = [
        n for n, value in replica.model.named_buffers() if not _same(value, buffers.get(n, value))
    ]
    if changed:
        raise ValueError(
            f"Invalid model: calling it changes its buffer {changed[0]}, as batch normalisation "
            "does. Use GroupNorm instead, or call model.eval()."
        )
    changed = [name for name, p in params.items() if not _same(start[name], p)]
    if changed:
        raise ValueError(
            f"Invalid model: calling it writes into its parameter {changed[0]}, as "
            "Embedding(max_norm=...) does. Leave max_norm out."
        )
    _check_outputs(outputs, x, clients, loss)
    verdict.pads = watch.pads
    # Inputs that the module writes into, a view of the user's data perhaps, are copied from now on.
    verdict.spare = x._version != version or not _same(x, clients.inputs[:2])
    replica.spare = verdict.spare
    x = clients.inputs[:2]
    if bool(_joined(outputs).isnan().any()):
        raise ValueError(
            "Invalid model: its parameters and inputs are finite, but its outputs are NaN: they "
            "overflow on the way. Scale the inputs, or start from smaller parameters."
        )

    def call(batch: Tensor) -> Tensor:
        return _joined(replica(dict(start), batch.clone()))

    _check_pure(call, clients.inputs)
    try:
        alone = replica(dict(start), x[:1].clone())
    except Exception as error:
        raise ValueError(
            f"Invalid model: it cannot take one example alone ({_reason(error)}), but a client or "
            "a last batch may have one only. Use GroupNorm instead of batch normalisation, or call "
            "model.eval()."
        ) from error
    _check_outputs(alone, x[:1], clients, loss)
    return verdict


def _joined(outputs: object) -> Tensor:
    """Return outputs, several perhaps, in one tensor with a row for each example."""
    if isinstance(outputs, Tensor):
        return outputs
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree_leaves(outputs)], dim=1)


def check_targets(targets: Tensor) -> None:
    """Refuse targets that the library's own losses cannot read: anything but one per example.

    Raises:
        ValueError: if they are of another shape.
    """
    if targets.ndim != 1:
        raise ValueError(
            f"Invalid targets of shape {tuple(targets.shape)}: must be one per example. "
            f"Use {_one_per_example(targets)}, or a loss= of your own."
        )


def _one_per_example(targets: Tensor) -> str:
    """Say what makes one target per example of targets of another shape."""
    if targets.shape[1:].numel() == 1:
        return "targets.flatten()"
    if targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all()):
        if bool((targets.sum(1) == 1).all()):
            return "targets.argmax(1)"
        return "one label per example: of several, argmax would drop all but one"
    return "one number per example; a column, say"


def check_body(
    model: nn.Module, call: Callable[[Params, Tensor], Tensor], params: Params, inputs: Tensor
) -> None:
    """Refuse a body as ``check_model`` refuses a model.

    Raises:
        ValueError: if it draws random numbers or uses what is not in the copy, or an example's
            output depends on others.
    """
    if not len(inputs):
        return
    start = {name: p.clone() for name, p in params.items()}
    generators = _generators(inputs.device)
    try:
        with _Watch(_addresses(model)) as watch:
            call(start, inputs[:2])
    finally:
        drew = _moved(generators, inputs.device)
    _refuse_impure(drew, watch)
    _check_pure(lambda batch: call(start, batch), inputs)


def _refuse_impure(drew: bool, watch: _Watch) -> None:
    if drew:
        raise ValueError(
            "Invalid model: it draws from a global generator, as dropout does. "
            "Leave out dropout, or call model.eval()."
        )
    if watch.touched:
        _refuse_reached(watch.touched[0])


def _check_pure(call: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Refuse what is no function of each example alone, tried on two that are not alike."""
    pair = _unlike(inputs)
    outputs = call(pair)
    if not _alike(call(pair), outputs):
        raise ValueError(
            "Invalid model: called twice on the same inputs it gives two results, as with a "
            "generator or a counter of its own. Make it a function of its inputs and parameters."
        )
    twins = pair[:1].expand(2, *pair.shape[1:])
    if not (_alike(call(twins)[:1], outputs[:1]) and _alike(call(pair.flip(0)).flip(0), outputs)):
        raise ValueError(
            "Invalid model: an example's output depends on the others of its batch, as with batch "
            "normalisation. Use GroupNorm instead, or call model.eval()."
        )


def _unlike(inputs: Tensor) -> Tensor:
    """Return the first example and one that differs from it, made up if there is none nearby."""
    first = inputs[:1]
    for few in (inputs[1:2], inputs[2:1000]):
        other = (few != first).flatten(1).any(1).nonzero()
        if len(other):
            return torch.cat([first, few[other[0]]])
    made = first.flatten().roll(1).view(first.shape)
    if torch.equal(made, first) and made.is_floating_point():
        made = made + _waves(made, 1).abs()
    return torch.cat([first, made])


def _check_outputs(outputs: Any, x: Tensor, clients: ClientData, loss: Loss | None) -> None:
    n = len(x)
    if loss is not None:
        leaves = tree_leaves(outputs)
        if not leaves or not all(isinstance(t, Tensor) and t.ndim and len(t) == n for t in leaves):
            raise ValueError(
                f"Invalid model: it maps {n} inputs to {shown(outputs)}. Return a tensor, or "
                "several in a tuple or dict, with a row for each input."
            )
        try:
            together = _losses(loss, outputs, clients.targets[:n])
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith("Invalid loss"):
                raise
            raise ValueError(
                f"Invalid loss: it fails for what the model returns ({_reason(error)}). Write it "
                "as (outputs, targets) -> one loss per example."
            ) from error
        flipped = tree_map(lambda out: out.flip(0), outputs)
        swapped = _losses(loss, flipped, clients.targets[:n].flip(0)).flip(0)
        first = _losses(loss, tree_map(lambda out: out[:1], outputs), clients.targets[:1])
        drawn = takes_generator(loss)
        if not drawn and not (_alike(swapped, together) and _alike(first, together[:1])):
            raise ValueError(
                "Invalid loss: an example's loss depends on the others of its batch, or two calls "
                "differ. Return each example's own; one that draws takes an argument generator."
            )
        return
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    found = f"it maps {n} inputs to {type(outputs).__name__ if shape is None else f'shape {shape}'}"
    if clients.targets.is_floating_point():
        if shape != (n,):
            raise ValueError(
                f"Invalid model: {found}, but real targets need one number per example, shape "
                f"({n},). Squeeze the last dimension, as LinearNet does."
            )
        if outputs.dtype != clients.targets.dtype:
            raise ValueError(
                f"Invalid targets of type {clients.targets.dtype}: the model's outputs are "
                f"{outputs.dtype}. Bring both to one dtype."
            )
        return
    needed = clients.num_classes
    if shape is None or len(shape) != 2 or shape[0] != n or shape[1] < needed:
        raise ValueError(
            f"Invalid model: {found}, but labels reach {needed - 1}. It needs at least "
            f"{needed} outputs per example."
        )
    if not outputs.is_floating_point():
        raise ValueError(
            f"Invalid model: its outputs are of type {outputs.dtype}. Return real numbers, one "
            "score per class."
        )


def _generators(device: torch.device) -> list:
    """Return the states of NumPy's and torch's global generators.

    Not of Python's, from which type checkers such as beartype draw.
    """
    states = [np.random.get_state(), torch.random.get_rng_state()]  # noqa: NPY002
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _moved(before: list, device: torch.device) -> bool:
    """Tell whether NumPy's or torch's generators were used, and set them back."""
    numpys, *torches = _generators(device)
    if all(map(np.array_equal, before[0], numpys)) and all(map(torch.equal, before[1:], torches)):
        return False
    np.random.set_state(before[0])  # noqa: NPY002
    torch.random.set_rng_state(before[1])
    if len(before) > 2:
        torch.cuda.set_rng_state(before[2], device)
    return True


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _alike(a: Tensor, b: Tensor) -> bool:
    if not b.is_floating_point():
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    rtol = min(1e4 * torch.finfo(b.dtype).eps, 0.05)
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=rtol * size, equal_nan=True)


# --- Rules --------------------------------------------------------------------------------------


def check_rule(
    step: LocalStep, params: Params, *, extra: bool = False, local_steps: int = 1
) -> str | None:
    """Refuse a rule that breaks its contract; return why it cannot be stacked, or None if it can.

    The rule is tried on made-up parameters of the same shapes, on two clients' together and on each
    one's alone, for at least two of its periods, and for as many steps as a run takes up to 50.

    Raises:
        TypeError: if ``step`` is no rule.
        ValueError: if it writes into the parameters that it is given, does not return as many of
            the same shapes, or gives two results for the same numbers.
    """
    check_step(step)
    shapes = tuple((tuple(p.shape), p.dtype, p.device) for p in params.values())
    count = max(2, min(local_steps, 50) // step.period) * step.period
    with _lock, own_modes(shapes[0][2] if shapes else torch.device("cpu"), grad=False):
        try:
            return _rule(step, shapes, extra, count)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return _rule.__wrapped__(step, shapes, extra, count)


def _drawing(step: LocalStep) -> LocalStep:
    """Return a rule that draws the same numbers in every trial, if it draws."""
    if not takes_generator(step.update):
        return step

    def update(params, grads, state, lr):
        return step.update(params, grads, state, lr, generator=generator_of([0]))

    return step._replace(update=update)


@lru_cache(maxsize=64)
def _rule(step: LocalStep, shapes: tuple, extra: bool, count: int) -> str | None:
    one_by_one = not step.entrywise or takes_generator(step.update)
    step = _drawing(step)
    like = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in shapes]

    @cache
    def made(phase: int) -> list[Tensor]:
        return [_waves(p, phase + i) for i, p in enumerate(like)]

    def numbers(phase: int, scale: float = 1.0, shift: float = 0.0) -> list[Tensor]:
        return [(p + shift) * scale for p in made(phase)]

    # The clients' gradients are of very different lengths, each once long and once short, and of
    # different means; their parameters are of different lengths, too. So a rule that takes a norm,
    # a mean or a maximum is found out even if it divides the lengths of gradients away, as Adam.
    scales = [(0.03, 30.0), (300.0, 0.3), (3e-4, 3000.0), (1.0, 1e-3)]
    clients = [
        (
            numbers(11 * i, (1.0, 0.2)[i]),
            numbers(5 + i) if extra else None,
            lambda k, i=i: numbers(3 * (k % 4) + 7 * i, scales[k % 4][i], (0.0, 0.5)[i]),
        )
        for i in range(2)
    ]

    def steps(start: list[Tensor], extra: list[Tensor] | None, grads: Callable) -> list[Tensor]:
        before = [p.clone() for p in start]
        params, state = start, step.init(start, extra)
        for k in range(count):
            found = step.update(params, grads(k), state, 0.1)
            if not isinstance(found, tuple | list) or len(found) != 2:
                raise ValueError(
                    f"Invalid step {step.name}: its update returns {shown(found)}. Return a pair: "
                    "new tensors, and the new state or None."
                )
            params, state = found
            params = list(params)
            told = [(tuple(p.shape), p.dtype) for p in params]
            if told != [(tuple(p.shape), p.dtype) for p in start]:
                raise ValueError(
                    f"Invalid step {step.name}: it returns tensors of other numbers, shapes or "
                    "types than it is given. Return one new tensor for each parameter."
                )
            if not all(map(_same, start, before)):
                raise ValueError(
                    f"Invalid step {step.name}: it writes into the parameters that it is given, "
                    "which are the server's. Return new tensors: p - lr * g, not p.sub_(lr * g)."
                )
        return params

    def alone(i: int) -> list[Tensor]:
        start, more, grads = clients[i]
        return steps([p.clone() for p in start], more and [e.clone() for e in more], grads)

    generators = _generators(like[0].device) if like else _generators(torch.device("cpu"))
    device = like[0].device if like else torch.device("cpu")
    try:
        apart = [alone(0), alone(1)]
        repeated = all(map(_same, alone(0), apart[0]))
    except (ValueError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"Invalid step {step.name}: it fails ({_reason(error)}). Write it for lists of "
            "tensors, as LocalStep says."
        ) from error
    finally:
        drew = _moved(generators, device)
    if drew or not repeated:
        raise ValueError(
            f"Invalid step {step.name}: for the same parameters and gradients it gives two "
            "results, so that no run could be repeated. Draw by an argument generator of update, "
            "and keep what it counts or remembers in its state, as LocalStep says."
        )
    if one_by_one:  # by every strategy
        return None
    pairs = [clients[0][0], clients[1][0]]
    try:
        together = steps(
            [torch.stack(p) for p in zip(*pairs, strict=True)],
            [torch.stack(e) for e in zip(*(more or [] for _, more, _ in clients), strict=True)]
            if extra
            else None,
            lambda k: [
                torch.stack(g) for g in zip(*(grads(k) for _, _, grads in clients), strict=True)
            ],
        )
    except Exception as error:
        return f"the step {step.name} cannot be stacked ({_reason(error)})"
    finally:
        _moved(generators, device)
    for i, own in enumerate(apart):
        if not all(_near(p[i], q, float(q.abs().max()) if q.numel() else 0.0)
                   for p, q in zip(together, own, strict=True)):  # fmt: skip
            return f"the step {step.name} does not act entry by entry"
    return None


# --- What a run computes, in a few numbers --------------------------------------------------------


def probe(ready: Ready, step: LocalStep) -> list[list[float]]:
    """Return a few numbers that tell what a model and a rule compute from what others do.

    They are sums over the outputs for two examples, and over local steps taken on them, from
    parameters next to those that the model was checked with. Compare them by ``same_probe``.
    """
    params = {n: _nudged(p, i) for i, (n, p) in enumerate(ready.params.items())}
    names = trainable_of(ready.model)
    x, y = _examples(ready.clients)
    replica, device = ready.fresh(), ready.clients.device
    with own_modes(device, grad=False):
        outputs = _joined(replica(params, x.clone()))
    start = [params[name] for name in names]
    with own_modes(device):
        _, grads = _losses_and_grads(replica, params, names, x, y, ready.loss)
    step = _drawing(step)
    with own_modes(device, grad=False):
        try:
            state = step.init(start, None)
        except ValueError:  # a rule with corrections
            state = step.init(start, [torch.zeros_like(p) for p in start])
        moved = start
        for k in range(2 * step.period):
            moved, state = step.update(moved, [g * (k + 1) for g in grads], state, 0.1)
        moves = [(b - a).flatten() for a, b in zip(start, moved, strict=True)]
        # Where gradients are small, constants such as a decay show; in double precision, since the
        # step is small too.
        small = [p.double() if p.is_floating_point() else p for p in start]
        try:
            state = step.init(small, None)
        except ValueError:
            state = step.init(small, [torch.zeros_like(p) for p in small])
        last, _ = step.update(
            small, [1e-3 * g.to(p) for g, p in zip(grads, small, strict=True)], state, 0.1
        )
        rests = [(b - a).flatten() for a, b in zip(small, last, strict=True)]
    sums = _sums(torch.cat([m.to(outputs.dtype) for m in moves]))
    return [_sums(outputs), sums, _sums(torch.cat(rests)), [_TOLERANCES.get(outputs.dtype, 0.05)]]


# How far probes may be apart: as far as processors round otherwise.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
_OLD_TOLERANCE = 2e-3  # of probes that do not tell theirs


def _sums(values: Tensor) -> list[float]:
    flat = values.detach().flatten().double().cpu().nan_to_num()
    waves = [_waves(flat, phase) for phase in (0, 1, 2)]
    sums = [float(flat.norm()), *(float(flat @ wave) for wave in waves)]
    return [float(f"{value:.12g}") for value in sums]


def same_probe(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> bool:
    """Tell whether two probes are of one computation, up to rounding in the coarser precision.

    Example:
        >>> same_probe([[2.0, 1.0]], [[2.0, 1.001]]), same_probe([[2.0, 1.0]], [[2.0, 1.1]])
        (True, False)
    """
    most = max(a[3][0], b[3][0]) if len(a) == len(b) == 4 else _OLD_TOLERANCE
    a, b = (a[:3], b[:3]) if len(a) == len(b) else (a[:2], b[:2])  # older ones have two rows
    return [*map(len, a)] == [*map(len, b)] and all(
        abs(u - v) <= most * max(map(abs, [*ours, *theirs]), default=0)
        for ours, theirs in zip(a, b, strict=True)
        for u, v in zip(ours, theirs, strict=True)
    )
