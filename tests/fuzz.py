"""Call every public function with wrong arguments, and see who answers.

``python tests/fuzz.py [--only NAME] [--seed S] [--pairs N] [--all]`` starts from one valid call of
each function and replaces one argument at a time, and a few pairs, by values of wrong type, shape
or size. What may come of it:

- *clear*: an exception that fedlib raises itself, in a sentence;
- *accepted*: a value. Where the argument means the same as another (``np.int8(3)`` and 3, a list
  and its array), the two results must be the same, else the call is *different*;
- *raw*: an exception from inside Python, NumPy or torch, or one that is no sentence;
- *hung*: more than a few seconds of computing without a word;
- *memory*: an allocation that the system refuses.

Functions run as readers run them, without the shape checks that only tests switch on.
"""

import argparse
import dataclasses
import dis
import faulthandler
import gc
import io
import os
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import fedlib as fl
from fedlib import linear

HOME = str(Path(fl.__file__).parent)
CPU_SECONDS, WALL_SECONDS = 3.0, 60.0
EXTRA_MEMORY = 4 * 2**30
OUTCOMES = ("clear", "accepted", "different", "raw", "hung", "memory")
BUDGET = ("different", "raw", "hung")
"""Outcomes of which there may be none."""


class Value(NamedTuple):
    """An argument's replacement: how to write it, how to make it, and what it is equal to."""

    text: str
    make: Callable[[], object]
    twin: Callable[[], object] | None = None


class Case(NamedTuple):
    """A function, and arguments that it accepts, made anew for every call."""

    call: Callable
    make: Callable[[], dict]
    valid: bool = True
    runs_on: tuple[str, ...] = ()
    """Arguments that may ask for a long run: it shows its progress, and can be resumed."""


def _wrong(text: str) -> Value:
    space = {"np": np, "torch": torch, "Decimal": Decimal, "Fraction": Fraction, "nn": nn}
    return Value(text, lambda: eval(text, space.copy()))


WRONG = [
    _wrong(text)
    for text in """
None; "3"; ""; "\\0"; "no/such: thing"; b"3"; True; np.True_; {}; {"a": 1}; []; [1, 2]; set()
{1}; (); (x for x in [1]); object(); 1j; [[1], [1, 2]]; [["a"], {}]; ["a", "b"]; [None]
np.array([True, False]); np.array([1j]); np.array([object(), None]); np.array(["a", "b"])
np.array([], dtype=object); np.array([]); np.array([[]]); np.array(3); np.array(0.5)
np.array("a"); np.array(None); np.datetime64("2020-01-01"); torch.tensor([True])
torch.tensor([1j]); torch.tensor(3); torch.tensor([]); torch.zeros(2, dtype=torch.float16)
torch.zeros(2, device="meta"); torch.zeros(2).to_sparse(); torch.float32; int; len; Ellipsis
slice(2); range(0); nn.Linear; np.random; Decimal("0.5"); Decimal("NaN"); float("nan")
float("inf"); -float("inf"); 0; 0.0; -1; -0.5; 1.5; 1e-320; 1e308; -1e308; 10**30; -(10**30)
10**400; 2**62; 2**31; np.float32("nan"); np.float32("inf"); np.int8(-1); np.uint64(2**63)
np.longdouble(2); np.array([np.nan, 1.0]); np.array([np.inf, 1.0]); np.array([1e308, -1e308])
np.zeros((0, 3)); np.zeros((1, 1, 1)); torch.full((2, 2), float("nan")); np.ma.masked
np.zeros(2, dtype=[("a", "i4")]); memoryview(b"ab")
""".replace("\n", "; ").split("; ")
    if text
]


def _of_number(value: float | int) -> Iterator[Value]:
    """Numbers of other types that equal a valid one."""
    kinds = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
    if isinstance(value, int) and value <= 100:
        for kind in kinds:
            if value >= 0 or np.dtype(kind).kind == "i":
                yield Value(f"np.{kind.__name__}({value})", lambda k=kind: k(value), lambda: value)
        yield Value(f"{value}.0", lambda: float(value), lambda: value)
        yield Value(f"Fraction({value})", lambda: Fraction(value), lambda: value)
    for kind in (np.float16, np.float32, np.float64):
        near = float(kind(value))
        yield Value(f"np.{kind.__name__}({value})", lambda k=kind: k(value), lambda v=near: v)
    yield Value(f"Fraction({value!r})", lambda: Fraction(value), lambda: float(value))
    yield Value(f"np.array({value})", lambda: np.array(value), lambda: value)
    yield Value(f"torch.tensor({value})", lambda: torch.tensor(value, dtype=torch.float64).item())


def _of_array(make: Callable[[], np.ndarray | torch.Tensor]) -> Iterator[Value]:
    """Other shapes, sizes, types and entries of an array; and arrays that equal it."""
    tensor = isinstance(make(), torch.Tensor)

    def numpy() -> np.ndarray:
        return make().numpy() if tensor else make()

    def back(array: np.ndarray) -> object:
        return torch.from_numpy(np.array(array)) if tensor else array

    first = numpy()
    fill = (0,) * first.ndim
    changes = {
        "[:0]": lambda a: a[:0],
        "[None]": lambda a: a[None],
        "[..., None]": lambda a: a[..., None],
        ".T": lambda a: a.T.copy() if a.ndim > 1 else a[:, None],
        "[:-1]": lambda a: a[:-1],
        "one longer": lambda a: np.concatenate([a, a[-1:]]),
        "[0]": lambda a: a[0],
        ".ravel()": lambda a: np.append(a.ravel(), a.ravel()[-1]),
        "bool": lambda a: a.astype(bool),
        "complex": lambda a: a.astype(complex),
        "-a - 1": lambda a: -a - 1,
        "times 10**9": lambda a: (a + 1) * 10**9 if a.dtype.kind in "iu" else a * 1e300,
        "times 1e-300": lambda a: a * 1e-300,
        "zeros": lambda a: a * 0,
    }
    if not tensor:
        changes["object"] = lambda a: a.astype(object)
        changes["str"] = lambda a: a.astype(str)
        changes["1.5, float"] = lambda a: a + 0.5
    if first.dtype.kind == "f":
        for bad in (np.nan, np.inf, -np.inf):

            def put(a: np.ndarray, bad: float = bad) -> np.ndarray:
                a = a.copy()
                a[fill] = bad
                return a

            changes[f"{bad} in it"] = put
    for text, change in changes.items():
        with np.errstate(all="ignore"):
            changed = change(first)
        yield Value(text, lambda c=changed: back(c.copy() if hasattr(c, "copy") else c))
    if tensor:
        return
    yield Value("as a list", lambda: numpy().tolist(), lambda: np.array(numpy().tolist()))
    yield Value("in Fortran's order", lambda: np.asfortranarray(numpy()), numpy)
    yield Value("every other entry", lambda: np.repeat(numpy(), 2, axis=0)[::2], numpy)
    yield Value("read-only", lambda: _read_only(numpy()), numpy)
    yield Value("as a tensor", lambda: torch.from_numpy(numpy()), numpy)
    if first.dtype.kind == "i" and first.max() < 100:
        for kind in ("int8", "uint8", "int32", "uint16", "uint64"):
            if first.min() >= 0 or kind.startswith("i"):
                yield Value(kind, lambda k=kind: numpy().astype(k), numpy)
        yield Value("float", lambda: numpy().astype(float))  # labels become real targets
    elif first.dtype == np.float64:
        for kind in ("float32", "float16"):
            yield Value(
                kind,
                lambda k=kind: numpy().astype(k),
                lambda k=kind: numpy().astype(k).astype(float),
            )


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def values_for(make: Callable[[], object]) -> list[Value]:
    """Everything that takes the place of the argument that ``make`` makes."""
    valid = make()
    values = list(WRONG)
    if callable(valid) and not isinstance(valid, nn.Module):  # what another raises is its own
        values = [value for value in values if not callable(value.make())]
    if isinstance(valid, bool):
        values += [_wrong("1"), _wrong("'no'")]
    elif isinstance(valid, int | float) and np.isfinite(valid):
        values += _of_number(valid)
    elif isinstance(valid, np.ndarray | torch.Tensor) and valid.ndim:
        values += _of_array(make)
    elif isinstance(valid, list | tuple) and valid and isinstance(valid[0], np.ndarray):
        values += [
            Value("a tuple of it", lambda: tuple(make()), make),
            Value("lists in it", lambda: [part.tolist() for part in make()], make),
            Value("one empty in it", lambda: [*make()[:-1], []]),
            Value("one float in it", lambda: [*make()[:-1], make()[-1] + 0.5]),
            Value("one of two axes in it", lambda: [*make()[:-1], make()[-1][None]]),
            Value("one of -1 in it", lambda: [*make()[:-1], make()[-1] * 0 - 1]),
            Value("one mask in it", lambda: [*make()[:-1], make()[-1] > 0]),
            Value("None in it", lambda: [*make()[:-1], None]),
            Value("a number in it", lambda: [*make()[:-1], 3]),
            Value("a dict of it", lambda: dict(enumerate(make()))),
            Value("a generator of it", lambda: iter(make())),
        ]
    elif isinstance(valid, dict) and valid and isinstance(next(iter(valid.values())), torch.Tensor):
        name = next(iter(valid))

        def changed(change: Callable[[torch.Tensor], object]) -> Callable[[], dict]:
            return lambda: make() | {name: change(make()[name])}

        values += [
            Value("one missing", lambda: {n: p for n, p in make().items() if n != name}),
            Value("one more", lambda: make() | {"more": torch.zeros(2)}),
            Value("one None", changed(lambda p: None)),
            Value("one array", changed(lambda p: p.numpy())),
            Value("one of another shape", changed(lambda p: p[..., None])),
            Value("one double", changed(torch.Tensor.double)),
            Value("one of integers", changed(torch.Tensor.long)),
            Value("one complex", changed(lambda p: p + 0j)),
            Value("one on meta", changed(lambda p: p.to("meta"))),
            Value("one NaN", changed(lambda p: p * np.nan)),
            Value("one requires gradients", changed(lambda p: p.clone().requires_grad_())),
            Value("a number for a name", lambda: {**make(), 3: torch.zeros(1)}),
        ]
    return values


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((12, 1, 4, 4), dtype=np.float32)


def _labels() -> np.ndarray:
    return np.arange(12) % 3


def _parts() -> list[np.ndarray]:
    return [np.arange(0, 4), np.arange(4, 8), np.arange(8, 12)]


def _clients() -> fl.ClientData:
    return fl.ClientData.from_parts(_images(), _labels(), _parts())


def _set() -> fl.ImageSet:
    return fl.ImageSet(_images(), _labels(), class_names=["a", "b", "c"], name="three")


def _model() -> nn.Module:
    return fl.MLP((1, 4, 4), 3, hidden=(5,))


def _params() -> fl.Params:
    return fl.params_of(_model())


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _config(**more: object) -> fl.FedAvgConfig:
    settings = dict(num_rounds=2, local_steps=2, cohort_size=2, batch_size=2, client_lr=0.1)
    return fl.FedAvgConfig(**settings | more)


def _matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


def _tasks() -> linear.LinearTasks:
    return linear.LinearTasks.random(6, 2, 8, rng=np.random.default_rng(2))


def _start() -> np.ndarray:
    return linear.matched_start(_tasks(), lr=0.1, distance=0.5, rng=_rng())


def _guarantee() -> linear.Guarantee:
    return linear.guarantee(_tasks(), _start(), local_steps=3, lr=0.01)


def _trajectory() -> linear.Trajectory:
    return linear.run(_tasks(), _start(), np.zeros(2), local_steps=2, lr=0.1, num_rounds=3)


def _stored() -> str:
    if not os.path.exists("stored"):
        fl.save_clients("stored", _clients())
    return "stored"


def _anew(folder: object, clients: object) -> None:
    """Save to a folder that no call before has used."""
    if isinstance(folder, str) and folder == "new":
        folder = tempfile.mkdtemp(dir=".") + "/new"
    fl.save_clients(folder, clients)


def _join(**arguments: object) -> fl.distributed.Rank:
    with fl.distributed.join(**arguments) as rank:
        return rank


def _of(make: Callable[[], object], method: str) -> Callable:
    """A method of an object made anew for every call."""
    return lambda **arguments: getattr(make(), method)(**arguments)


def _run(algorithm: Callable, **arguments: object) -> object:
    """A whole run, with the configuration's fields among the arguments."""
    names = [field.name for field in dataclasses.fields(fl.FedAvgConfig)]
    config = fl.FedAvgConfig(**{n: arguments.pop(n) for n in names if n in arguments})
    return algorithm(config=config, **arguments)


def _drawn(axes: object, **arguments: object) -> None:
    fl.plot.show_images(axes, **arguments)


def _axes() -> object:
    from matplotlib.figure import Figure

    return Figure().subplots()


def _sign(params: list, grads: list, state: object, lr: float) -> tuple[list, object]:
    return [p - lr * g.sign() for p, g in zip(params, grads, strict=True)], state


def _loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def _scores(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).float()


def _federation() -> dict:
    return dict(model=_model(), clients=_clients(), config=_config())


def _run_arguments() -> dict:
    return _federation() | dict(
        seed=1,
        metrics=lambda params: {"one": 1.0},
        eval_every=1,
        checkpoint=None,
        progress=False,
        strategy="auto",
        loss=_loss,
        stop=lambda history: False,
    )


def _doors() -> dict:
    return dict(
        server_rule=lambda params, average, state: (average, state),
        cohort=lambda rng, round_num: [2, 0],
        augment=lambda inputs, generator: inputs,
        weights=np.array([1.0, 2.0, 0.5]),
        lr_schedule=lambda round_num: 0.5,
    )


def _brought(**more: object) -> object:
    """A run with something of the reader's in it."""
    return fl.run_fedavg(**_federation(), seed=1, progress=False, **more)


def _halving() -> dict:
    return dict(
        init=lambda params: params,
        round=lambda state, rng: ({n: p / 2 for n, p in state.items()}, {"loss": 0.0}),
        params=lambda state: state,
        identity={"algorithm": "halve"},
    )


def _halved(**more: object) -> object:
    algorithm = fl.Algorithm(**_halving() | more)
    return fl.run(algorithm, _model(), num_rounds=2, seed=1, progress=False)


def _cohort_arguments() -> dict:
    batches = [np.array([[0, 1], [2, 3]]), np.array([[3, 0], [1, 2]])]
    return dict(
        model=_model(),
        params=_params(),
        clients=_clients(),
        cohort=np.array([2, 0]),
        batches=batches,
        lr=0.1,
        rule=fl.control_variate,
        client_params={"head.bias": torch.zeros(2, 3)},
        client_state={n: torch.zeros(2, *p.shape) for n, p in _params().items()},
        strategy="auto",
        loss=_loss,
        augment=lambda inputs, generator: inputs,
        trainable=None,
        weights=np.array([1.0, 2.0]),
        rng=_rng(),
    )


def _partition(**more: object) -> dict:
    return dict(labels=_labels(), num_clients=3, rng=_rng()) | more


def _risk(**more: object) -> dict:
    return dict(num_samples=20, noise_std=0.1) | more


CASES = {
    "BodyHead": Case(fl.BodyHead, lambda: dict(body=nn.Identity(), head=nn.Linear(2, 1))),
    "CNN": Case(
        fl.CNN,
        lambda: dict(image_shape=(1, 4, 4), num_classes=2, width=2, num_features=3, seed=0),
    ),
    "MLP": Case(fl.MLP, lambda: dict(image_shape=(1, 4, 4), num_classes=2, hidden=(3,), seed=0)),
    "LinearNet": Case(fl.LinearNet, lambda: dict(d=5, k=2, seed=0)),
    "LocalStep": Case(
        lambda **rule: fl.run_round(
            _model(), _params(), _clients(), _config(), rng=_rng(), step=fl.LocalStep(**rule)
        ),
        lambda: dict(name="sign", init=lambda params, extra: None, update=_sign, period=1),
    ),
    "ClientData": Case(
        fl.ClientData,
        lambda: dict(
            inputs=torch.from_numpy(_images()),
            targets=torch.from_numpy(_labels()),
            sizes=np.array([6, 6]),
        ),
    ),
    "ClientData.from_parts": Case(
        fl.ClientData.from_parts,
        lambda: dict(images=_images(), labels=_labels(), parts=_parts(), device="cpu"),
    ),
    "ClientData.select": Case(_of(_clients, "select"), lambda: dict(ids=np.array([2, 0]))),
    "ClientData.split": Case(_of(_clients, "split"), lambda: dict(fraction=0.5, rng=_rng())),
    "ClientData[]": Case(_of(_clients, "__getitem__"), lambda: dict(client=1)),
    "Algorithm": Case(_halved, _halving),
    "Algorithm.identity, stored": Case(
        lambda identity: fl.run(
            fl.Algorithm(**_halving() | {"identity": {"it": identity}}),
            _model(),
            num_rounds=1,
            seed=1,
            checkpoint=tempfile.mkdtemp(dir=".") + "/run",
            progress=False,
        ),
        lambda: dict(identity=lambda: [1, "a"]),
    ),
    "Algorithm.init, what it returns": Case(
        lambda state: _halved(init=lambda params: state), lambda: dict(state=_params())
    ),
    "Algorithm.round, what it returns": Case(
        lambda state, metrics, loss: _halved(
            round=lambda before, rng: (state, {"loss": loss, "more": metrics})
        ),
        lambda: dict(state=_params(), metrics=1.0, loss=0.5),
    ),
    "Algorithm.round, in a pair": Case(
        lambda pair, metrics: _halved(
            round=lambda state, rng: (state, metrics) if pair is None else pair,
        ),
        lambda: dict(pair=None, metrics={"loss": 0.5}),
    ),
    "ServerRule": Case(
        lambda **rule: _brought(server_rule=fl.ServerRule(**rule)),
        lambda: fl.fedavgm()._asdict(),
    ),
    "ServerRule.init, what it returns": Case(
        lambda state: _brought(
            server_rule=fl.ServerRule("own", lambda params: state, lambda p, a, s: (a, s))
        ),
        lambda: dict(state={"a": torch.zeros(1)}),
    ),
    "ServerRule.update, what it returns": Case(
        lambda params, state: _brought(server_rule=lambda p, a, s: (params, state)),
        lambda: dict(params=_params(), state={"a": torch.zeros(1)}),
    ),
    "ServerRule.update, in a pair": Case(
        lambda pair: _brought(server_rule=lambda p, a, s: (a, s) if pair is None else pair),
        lambda: dict(pair=None),
    ),
    "WeightedSum.average": Case(
        _of(lambda: fl.sum_clients(**_cohort_arguments()), "average"), lambda: dict(like=_params())
    ),
    "FedAvgConfig, epochs": Case(
        fl.FedAvgConfig,
        lambda: dict(num_rounds=2, local_epochs=2, cohort_size=2, batch_size=2, client_lr=0.1),
    ),
    "FedAvgConfig.steps_of": Case(
        _of(lambda: _config(local_steps=None, local_epochs=2), "steps_of"), lambda: dict(size=4)
    ),
    "FedAvgConfig": Case(
        fl.FedAvgConfig,
        lambda: dict(
            num_rounds=2, local_steps=2, cohort_size=2, batch_size=2, client_lr=0.1, server_lr=1.0
        ),
    ),
    "History[]": Case(
        _of(lambda: fl.run_fedavg(**_run_arguments()).history, "__getitem__"),
        lambda: dict(name="one"),
    ),
    "ImageSet": Case(
        fl.ImageSet,
        lambda: dict(images=_images(), labels=_labels(), class_names=["a", "b", "c"], name="three"),
    ),
    "ImageSet.select": Case(_of(_set, "select"), lambda: dict(indices=np.array([3, 1]))),
    "ImageSet.of_classes": Case(_of(_set, "of_classes"), lambda: dict(classes=[2, "a"])),
    "Strategy": Case(
        fl.Strategy,
        lambda: dict(
            stack=True, merge=False, chunk=2, threads=1, compile=False, autocast=torch.bfloat16
        ),
    ),
    "Strategy, run": Case(
        lambda **fields: fl.run_round(
            _model(), _params(), _clients(), _config(), rng=_rng(), strategy=fl.Strategy(**fields)
        ),
        lambda: dict(stack=True, merge=False, chunk=2, threads=1),
    ),
    "class_similarity": Case(
        fl.class_similarity,
        lambda: dict(features=_matrix(12, 4), labels=_labels(), centre=False),
    ),
    "effective_rank": Case(fl.effective_rank, lambda: dict(features=_matrix(6, 3))),
    "linear_cka": Case(fl.linear_cka, lambda: dict(x=_matrix(6, 3), y=_matrix(6, 2))),
    "linear_probe": Case(
        fl.linear_probe,
        lambda: dict(
            train_features=_matrix(12, 2),
            train_labels=_labels(),
            test_features=_matrix(6, 2),
            test_labels=np.arange(6) % 3,
            C=1.0,
        ),
    ),
    "features": Case(
        fl.features,
        lambda: dict(model=_model(), params=_params(), images=_images(), layer=1, chunk=5),
    ),
    "draw_batches": Case(
        fl.draw_batches, lambda: dict(size=5, local_steps=3, batch_size=2, rng=_rng())
    ),
    "evaluate": Case(
        fl.evaluate,
        lambda: dict(
            model=_model(), params=_params(), clients=_clients(), metric="accuracy", chunk=5
        ),
    ),
    "evaluate, one each": Case(
        fl.evaluate,
        lambda: dict(
            model=_model(), params=[_params() for _ in range(3)], clients=_clients(), metric="loss"
        ),
    ),
    "evaluate, metric returns": Case(
        lambda returned: fl.evaluate(
            _model(),
            _params(),
            _clients(),
            metric=lambda *own: _scores(*own) if returned is None else returned,
        ),
        lambda: dict(returned=None),
    ),
    "evaluate, own metric": Case(
        fl.evaluate,
        lambda: dict(model=_model(), params=_params(), clients=_clients(), metric=_scores),
    ),
    "mean_interval": Case(
        fl.mean_interval, lambda: dict(values=np.array([0.0, 1.0, 3.0]), level=0.9)
    ),
    "fine_tune": Case(
        fl.fine_tune,
        lambda: dict(
            model=_model(),
            params=_params(),
            clients=_clients(),
            steps=2,
            lr=0.1,
            batch_size=2,
            part="all",
            seed=0,
            strategy="auto",
            loss=_loss,
        ),
    ),
    "fine_tune, head": Case(
        fl.fine_tune,
        lambda: dict(
            model=_model(),
            params=_params(),
            clients=_clients(),
            steps=2,
            lr=0.1,
            batch_size=None,
            part="head",
            seed=0,
        ),
    ),
    "load_cifar10": Case(fl.load_cifar10, lambda: dict(split="train"), valid=False),
    "load_cifar100": Case(fl.load_cifar100, lambda: dict(split="train", coarse=False), valid=False),
    "load_clients": Case(
        fl.load_clients, lambda: dict(folder=_stored(), device="cpu", verify=True)
    ),
    "save_clients": Case(_anew, lambda: dict(folder="new", clients=_clients())),
    "load_digits": Case(fl.load_digits, dict),
    "load_glyphs": Case(fl.load_glyphs, lambda: dict(characters="ab", per_class=2, seed=0)),
    "load_result": Case(fl.load_result, lambda: dict(name="puzzle")),
    "local_sgd": Case(
        fl.local_sgd,
        lambda: dict(
            model=_model(),
            params=_params(),
            inputs=torch.from_numpy(_images()),
            targets=torch.from_numpy(_labels()),
            batches=np.array([[0, 1], [2, 3]]),
            lr=0.1,
            step=fl.sgd,
            trainable=None,
        ),
    ),
    "momentum": Case(fl.momentum, lambda: dict(beta=0.5)),
    "proximal": Case(fl.proximal, lambda: dict(mu=0.5)),
    "per_fedavg": Case(fl.per_fedavg, lambda: dict(inner_lr=0.5)),
    "weight_decay": Case(fl.weight_decay, lambda: dict(rate=0.5, rule=fl.momentum())),
    "clip_by_global_norm": Case(
        fl.clip_by_global_norm, lambda: dict(max_norm=0.5, rule=fl.momentum())
    ),
    "weight_decay, run": Case(
        lambda rate: _brought(step=fl.weight_decay(rate)), lambda: dict(rate=0.5)
    ),
    "clip_by_global_norm, run": Case(
        lambda max_norm: _brought(step=fl.clip_by_global_norm(max_norm)), lambda: dict(max_norm=0.5)
    ),
    "fedavgm": Case(fl.fedavgm, lambda: dict(lr=0.5, beta=0.9)),
    "fedadam": Case(fl.fedadam, lambda: dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.01)),
    "fedyogi": Case(fl.fedyogi, lambda: dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.01)),
    **{
        f"{rule.__name__}, run": Case(
            lambda rule=rule, **constants: _brought(server_rule=rule(**constants)),
            lambda constants=constants: constants.copy(),
        )
        for rule, constants in (
            (fl.fedavgm, dict(lr=0.5, beta=0.9)),
            (fl.fedadam, dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.01)),
            (fl.fedyogi, dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.01)),
        )
    },
    "params_of": Case(fl.params_of, lambda: dict(model=_model())),
    "with_body": Case(fl.with_body, lambda: dict(model=_model(), params=_params())),
    "partition_by_class": Case(
        fl.partition_by_class,
        lambda: _partition(classes_per_client=2, examples_per_client=4),
    ),
    "partition_dirichlet": Case(fl.partition_dirichlet, lambda: _partition(concentration=0.5)),
    "partition_iid": Case(fl.partition_iid, _partition),
    "private_labels": Case(
        fl.private_labels,
        lambda: dict(labels=_labels(), parts=_parts(), rng=_rng(), balanced=False),
    ),
    "run_round": Case(
        fl.run_round,
        lambda: dict(
            model=_model(),
            params=_params(),
            clients=_clients(),
            config=_config(),
            rng=_rng(),
            step=fl.sgd,
            strategy="auto",
            loss=_loss,
        ),
    ),
    "draw_round": Case(
        fl.draw_round,
        lambda: dict(
            clients=_clients(), config=_config(), rng=_rng(), more_steps=1, ids=np.array([2, 0])
        ),
    ),
    "draw_round, full batches": Case(
        lambda local_steps, more_steps: fl.draw_round(
            _clients(),
            _config(batch_size=None, local_steps=local_steps),
            rng=_rng(),
            more_steps=more_steps,
        ),
        lambda: dict(local_steps=2, more_steps=0),
    ),
    "map_clients": Case(fl.map_clients, _cohort_arguments),
    "map_clients, some": Case(
        fl.map_clients,
        lambda: (
            _cohort_arguments()
            | dict(rule=fl.sgd, client_state=None, trainable=["head.weight", "head.bias"])
        ),
    ),
    "sum_clients": Case(fl.sum_clients, _cohort_arguments),
    "fedavg": Case(
        fl.fedavg,
        lambda: _federation() | _doors() | dict(rule=fl.sgd, loss=_loss, strategy="auto"),
    ),
    "fedrep": Case(
        fl.fedrep, lambda: _federation() | dict(head_steps=1, strategy="auto", loss=_loss)
    ),
    "scaffold": Case(fl.scaffold, lambda: _federation() | dict(strategy="auto", loss=_loss)),
    "run": Case(
        fl.run,
        lambda: dict(
            algorithm=fl.fedavg(**_federation()),
            model=_model(),
            num_rounds=2,
            seed=1,
            metrics=lambda params: {"one": 1.0},
            eval_every=1,
            checkpoint=None,
            progress=False,
            stop=lambda history: False,
        ),
        runs_on=("num_rounds",),
    ),
    "run_fedavg": Case(fl.run_fedavg, lambda: _run_arguments() | _doors() | dict(step=fl.sgd)),
    **{
        f"run_fedavg, {argument} returns": Case(
            lambda returned, argument=argument: _brought(**{argument: lambda *_: returned}), make
        )
        for argument, make in {
            "cohort": lambda: dict(returned=np.array([2, 0])),
            "lr_schedule": lambda: dict(returned=0.5),
            "stop": lambda: dict(returned=False),
            "metrics": lambda: dict(returned={"one": 1.0}),
        }.items()
    },
    "run_fedavg, a number that metrics return": Case(
        lambda value: _brought(metrics=lambda params: {"one": value}), lambda: dict(value=0.5)
    ),
    "run_fedavg, loss returns": Case(
        lambda returned: _brought(loss=lambda o, y: o.mean(1) if returned is None else returned),
        lambda: dict(returned=None),
    ),
    "run_fedavg, augment returns": Case(
        lambda returned: _brought(augment=lambda x, g: x if returned is None else returned),
        lambda: dict(returned=None),
    ),
    "run_fedrep": Case(fl.run_fedrep, lambda: _run_arguments() | dict(head_steps=1)),
    "run_scaffold": Case(fl.run_scaffold, _run_arguments),
    **{
        f"{algorithm.__name__}, config": Case(
            lambda algorithm=algorithm, more=more, **fields: _run(
                algorithm,
                model=_model(),
                clients=_clients(),
                seed=1,
                progress=False,
                **more,
                **fields,
            ),
            lambda: dict(
                num_rounds=2,
                local_steps=2,
                cohort_size=2,
                batch_size=2,
                client_lr=0.1,
                server_lr=1.0,
            ),
            runs_on=("num_rounds", "local_steps"),
        )
        for algorithm, more in (
            (fl.run_fedavg, {}),
            (fl.run_fedrep, {"head_steps": 1}),
            (fl.run_scaffold, {}),
        )
    },
    "server_step": Case(
        fl.server_step, lambda: dict(params=_params(), average=_params(), server_lr=0.5)
    ),
    "task_loss": Case(
        fl.task_loss,
        lambda: dict(outputs=torch.from_numpy(_matrix(6, 3)), targets=torch.arange(6) % 3),
    ),
    "task_loss, real": Case(
        fl.task_loss,
        lambda: dict(outputs=torch.zeros(6), targets=torch.ones(6)),
    ),
    "weighted_average": Case(
        fl.weighted_average,
        lambda: dict(params=[_params(), _params()], weights=np.array([1, 3])),
    ),
    "distributed.join": Case(_join, lambda: dict(device="cpu", threads=1, timeout=10.0)),
    "distributed.shard": Case(fl.distributed.shard, lambda: dict(work=np.array([3, 1]))),
    "table": Case(
        fl.table,
        lambda: dict(
            rows={"a": [fl.Interval(0.5, 0.1), 2], "b": [fl.Interval(0.25, 0.1), 1]},
            columns=["", "accuracy", "steps"],
            form=".2f",
            mark={"accuracy": "highest in column"},
            caption="c",
            units=["", "s"],
            note="n",
        ),
    ),
    "table, blocks": Case(
        fl.table,
        lambda: dict(
            rows={"A": {"a": [0.5, 2]}, "B": {"b": [0.25, 1]}},
            columns=["", "accuracy", "steps"],
            form=[".2f", ".0f"],
            mark="lowest in row",
            units="s",
        ),
    ),
    "table, a cell": Case(
        lambda cell: repr(fl.table({"a": [cell], "b": [1]}, ["", "c"], mark="highest in column")),
        lambda: dict(cell=0.5),
    ),
    "table, an interval": Case(
        lambda mean, half: repr(fl.table({"a": [(mean, half)]}, ["", "b"], mark="not 0")),
        lambda: dict(mean=0.5, half=0.25),
    ),
    "plot.use_style": Case(fl.plot.use_style, dict),
    "plot.show_images": Case(
        _drawn, lambda: dict(axes=_axes(), images=_images(), titles=["a"] * 12, columns=4)
    ),
    "linear.LinearTasks": Case(
        linear.LinearTasks, lambda: dict(B_star=np.eye(4)[:, :2], heads=_matrix(3, 2))
    ),
    "linear.LinearTasks.random": Case(
        linear.LinearTasks.random,
        lambda: dict(
            d=5, k=2, num_clients=6, rng=_rng(), condition=2.0, mean_size=0.5, num_outputs=3
        ),
    ),
    "linear.LinearTasks.private_orders": Case(
        _of(
            lambda: linear.LinearTasks.random(5, 2, 6, rng=_rng(), num_outputs=3), "private_orders"
        ),
        lambda: dict(rng=_rng()),
    ),
    "linear.matched_start": Case(
        linear.matched_start, lambda: dict(tasks=_tasks(), lr=0.1, distance=0.5, rng=_rng())
    ),
    "linear.run": Case(
        linear.run,
        lambda: dict(
            tasks=_tasks(),
            B0=_start(),
            w0=np.zeros(2),
            local_steps=2,
            lr=0.1,
            num_rounds=3,
            cohort_size=4,
            replace=True,
            rng=_rng(),
        ),
        runs_on=("num_rounds", "local_steps"),
    ),
    "linear.one_round": Case(
        linear.one_round,
        lambda: dict(
            tasks=_tasks(),
            B=_start(),
            w=np.ones(2),
            local_steps=2,
            lr=0.1,
            clients=np.array([0, 2]),
        ),
    ),
    "linear.Trajectory[]": Case(_of(_trajectory, "__getitem__"), lambda: dict(round_num=1)),
    "linear.guarantee": Case(
        linear.guarantee,
        lambda: dict(
            tasks=_tasks(),
            B0=_start(),
            local_steps=3,
            lr=0.01,
            diversity=0.1,
            mean_drift=0.0,
            drift_share=0.0,
        ),
    ),
    "linear.Guarantee.contraction": Case(
        _of(_guarantee, "contraction"), lambda: dict(D=np.array([0.1, 0.5]))
    ),
    "linear.Guarantee.bound": Case(_of(_guarantee, "bound"), lambda: dict(round_num=3)),
    "linear.Guarantee.bound, many": Case(
        _of(_guarantee, "bound"), lambda: dict(round_num=np.array([0, 3]))
    ),
    "linear.Guarantee.rounds": Case(_of(_guarantee, "rounds"), lambda: dict(epsilon=0.01)),
    "linear.largest_lr": Case(
        linear.largest_lr, lambda: dict(tasks=_tasks(), distance=0.5, local_steps=3)
    ),
    "linear.asymptotic_rate": Case(
        linear.asymptotic_rate, lambda: dict(tasks=_tasks(), local_steps=3, lr=0.1)
    ),
    "linear.cohort_needed": Case(
        linear.cohort_needed,
        lambda: dict(tasks=_tasks(), distance=0.5, num_rounds=100, failure=0.1),
    ),
    "linear.one_step_floor": Case(linear.one_step_floor, lambda: dict(tasks=_tasks(), B0=_start())),
    "linear.span_floor": Case(linear.span_floor, lambda: dict(tasks=_tasks(), B0=_start())),
    "linear.worst_case_tasks": Case(
        linear.worst_case_tasks,
        lambda: dict(B0=np.eye(5)[:, :3], heads=_matrix(4, 3), distance=0.5),
    ),
    "linear.subspace_distance": Case(
        linear.subspace_distance, lambda: dict(B=_matrix(5, 2), B_star=np.eye(5)[:, :2])
    ),
    "linear.principal_angles": Case(
        linear.principal_angles, lambda: dict(B=_matrix(5, 2), B_star=np.eye(5)[:, :2])
    ),
    "linear.fine_tuning_risk": Case(
        linear.fine_tuning_risk, lambda: _risk(B=_matrix(5, 2), theta=np.ones(5))
    ),
    "linear.scratch_risk": Case(linear.scratch_risk, lambda: _risk(d=5, theta=np.ones(5))),
    "linear.head_step_risk": Case(
        linear.head_step_risk,
        lambda: _risk(B=_matrix(5, 2), w=np.ones(2), theta=np.ones(5), lr=0.1),
    ),
    "linear.fine_tuning_threshold": Case(
        linear.fine_tuning_threshold, lambda: _risk(d=5, k=2, num_samples=np.array([20, 30]))
    ),
    **{
        f"linear.exact.{name}": Case(
            getattr(linear.exact, name), lambda shown=shown: dict(value=2, displayed=shown)
        )
        for name, shown in {"up": "3", "down": "1", "sqrt_up": "2", "sqrt_down": "1"}.items()
    },
}

NOT_CALLED = {
    "ClassSimilarity": "a result",
    "ClientParams": "a result",
    "DataError": "an exception",
    "FedAvgResult": "a result",
    "FedRepResult": "a result",
    "History": "a result",
    "Interval": "a result",
    "LocalResult": "a result",
    "Params": "a type",
    "RunResult": "a result",
    "Table": "a result",
    "WeightedSum": "a result",
    "control_variate": "a rule without arguments",
    "distributed": "a module",
    "linear": "a module",
    "plot": "a module",
    "puzzle": "a module of Chapter 3's clients",
    "reference": "a module of Chapter 1's code, which checks nothing",
    "sgd": "a rule without arguments",
    "stored": "a module that reads records",
    "linear.Cohort": "a result",
    "linear.Condition": "a result",
    "linear.Guarantee": "a result",
    "linear.Round": "a result",
    "linear.Trajectory": "a result",
    "linear.exact": "a module",
}
"""Public names that take no argument from a reader, and why."""


class _Hung(BaseException):
    """The time limit."""


def _stop(*_: object) -> None:
    raise _Hung


@contextmanager
def _limited() -> Iterator[None]:
    """Stop what computes too long, or waits too long."""
    faulthandler.dump_traceback_later(2 * WALL_SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def is_clear(error: BaseException) -> bool:
    """Whether a statement in fedlib raised it, as a kind of exception and in a form that helps.

    Example:
        >>> try:
        ...     fl.momentum(2.0)
        ... except ValueError as error:
        ...     is_clear(error)
        True
    """
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, at = trace.tb_frame.f_code, trace.tb_lasti
    raised = dis.opname[code.co_code[at]] == "RAISE_VARARGS" and code.co_code[at + 1]
    kinds = TypeError, ValueError, IndexError, KeyError, fl.DataError, FloatingPointError, OSError
    # At least two sentences, or one of two parts: what is wrong, and what to do.
    text = str(error.args[0] if error.args else "")  # a KeyError would quote it
    sentence = re.match(r"[A-Z].*[.:] +[^ ].*[.)]$", text, re.DOTALL)
    own = code.co_filename.startswith(HOME)
    return bool(own and raised and isinstance(error, kinds) and sentence)


def attempt(case: Case, arguments: dict, runs_on: bool = False) -> tuple[str, object]:
    """Call a function: what came of it, and its value or exception."""
    try:
        with _limited():
            return "accepted", case.call(**arguments)
    except _Hung as error:
        return ("accepted" if runs_on else "hung"), error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        text = f"{type(error).__name__} {error}"
        if isinstance(error, MemoryError) or re.search(r"not enough memory|llocat", text):
            return "memory", error
        return ("clear" if is_clear(error) else "raw"), error


def same(a: object, b: object) -> bool:
    """Whether two results are the same: types, shapes, and every bit but a NaN's."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and same(a.detach().numpy(), b.detach().numpy())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        nan = a.dtype.kind in "fc"
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=nan)
    if type(a) is not type(b):
        return False
    if isinstance(a, nn.Module):
        return str(a) == str(b) and same(a.state_dict(), b.state_dict())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    return callable(a) or a is b or bool(a == b)


class Found(NamedTuple):
    """What came of one call that was not as it should be."""

    case: str
    where: str
    outcome: str
    text: str


def fuzz(name: str, seed: int, pairs: int, share: int) -> tuple[Counter, list[Found]]:
    """Try all that takes the place of one argument, and some pairs: outcomes, and what to mend."""
    case, counts, found = CASES[name], Counter(), []

    def note(where: str, outcome: str, result: object) -> None:
        counts[outcome] += 1
        if outcome not in ("clear", "accepted"):
            message = str(result).partition("\n")[0][:160]
            found.append(Found(name, where, outcome, f"{type(result).__name__}: {message}"))

    values = {
        argument: values_for(lambda argument=argument: case.make()[argument])
        for argument in case.make()
    }
    if case.valid:
        outcome, result = attempt(case, case.make())
        if outcome != "accepted":
            raise AssertionError(f"{name}: its valid call is {outcome}: {result!r}")
    every = [(a, v) for a in values for v in values[a]]
    for argument, value in every[seed % share :: share]:
        where = f"{argument}={value.text}"
        long = argument in case.runs_on
        outcome, result = attempt(case, case.make() | {argument: value.make()}, long)
        if outcome == "accepted" and value.twin and case.valid:
            wanted, twin = attempt(case, case.make() | {argument: value.twin()}, long)
            if wanted == "accepted" and not same(result, twin):
                outcome, result = "different", f"{result!r} is not {twin!r}"[:200]
        note(where, outcome, result)
        if outcome in ("memory", "hung"):
            gc.collect()
    draw = random.Random(f"{name} {seed}")
    for _ in range(pairs if len(values) > 1 else 0):
        one, other = draw.sample(sorted(values), 2)
        first, second = draw.choice(values[one]), draw.choice(values[other])
        replaced = {one: first.make(), other: second.make()}
        where = f"{one}={first.text}, {other}={second.text}"
        note(where, *attempt(case, case.make() | replaced, bool({one, other} & {*case.runs_on})))
    return counts, found


def uncovered() -> list[str]:
    """Public names that are neither called nor said to need no call."""
    public = [*fl.__all__, *(f"linear.{name}" for name in linear.__all__)]
    return [name for name in public if name not in CASES and name not in NOT_CALLED]


def main() -> int:
    """Print a table and what is to be mended; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="functions whose names contain this")
    parser.add_argument("--seed", type=int, default=0, help="draws the pairs")
    parser.add_argument("--pairs", type=int, default=10, help="pairs tried for each function")
    parser.add_argument("--share", type=int, default=1, help="try one of so many, chosen by seed")
    parser.add_argument("--all", action="store_true", help="list every call, not one of each kind")
    options = parser.parse_args()
    names = [name for name in CASES if options.only in name]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, _stop)
    # No file of the reader's is touched, nothing is downloaded.
    os.environ |= {"FEDLIB_DATA": "/nonexistent", "HTTPS_PROXY": "http://127.0.0.1:9"}
    totals, found = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        before = os.getcwd()
        os.chdir(folder)
        for name in names:  # what is loaded on first use counts neither as time nor as memory
            if CASES[name].valid:
                CASES[name].call(**CASES[name].make())
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + EXTRA_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print(f"{'':34}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
        for name in names:
            with redirect_stderr(io.StringIO()):  # progress bars
                counts, bad = fuzz(name, options.seed, options.pairs, options.share)
            totals += counts
            found += bad
            print(
                f"{name:34}" + "".join(f"{counts[outcome]:10}" for outcome in OUTCOMES), flush=True
            )
        os.chdir(before)
    print(f"{'all':34}" + "".join(f"{totals[outcome]:10}" for outcome in OUTCOMES))
    if options.all:
        shown = found
    else:  # the smallest of each kind
        kinds = {}
        for f in sorted(found, key=lambda f: len(f.where)):
            kinds.setdefault((f.case, f.where.partition("=")[0], f.text[:30]), f)
        shown = sorted(kinds.values(), key=lambda f: (list(CASES).index(f.case), f.where))
    for f in shown:
        print(f"{f.outcome}: {f.case}({f.where})\n    {f.text}")
    return int(any(totals[outcome] for outcome in BUDGET))


if __name__ == "__main__":
    sys.exit(main())
