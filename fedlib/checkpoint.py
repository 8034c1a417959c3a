"""One file that holds a run: the round, parameters, history, and what the run is.

Beside the file ``run`` lie ``run.previous``, the checkpoint before it; while one is written, a file
``.run.partial-…``; and ``run.refused``, a file that was found in place of a checkpoint of this run.
"""

__all__ = [
    "SHARE",
    "Checkpoint",
    "RunState",
    "leaves_of",
    "load_checkpoint",
    "run_identity",
    "save_checkpoint",
]

import json
import os
import time
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedlib._checks import check_path, outside
from fedlib._files import ROOM, check_regular, replace_file, sweep
from fedlib.clients import digest_of
from fedlib.validate import same_probe

_FORMAT = "fedlib-2"

SHARE = 0.02
"""The share of a run's time that its checkpoints may take; see ``Checkpoint.save_if_due``."""


class RunState(NamedTuple):
    """What a run needs to go on. A new round makes a new one.

    Attributes:
        round_num: rounds completed.
        params: the algorithm's state after them: tensors by name, in dicts inside dicts.
        entries: what ``History.of`` takes, one entry per evaluated round.
    """

    round_num: int
    params: dict
    entries: list[dict]


def run_identity(identity: dict, seed: int, model: nn.Module) -> dict:
    """Describe a run: its algorithm, its seed, and a digest of architecture and starting point.

    ``identity`` is an ``Algorithm``'s: JSON values, or functions that return them. None is as good
    as absent, so that a new field with a default of None leaves older checkpoints valid.
    """
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    moving = [name for name, value in state.items() if value.requires_grad]
    start = digest_of(f"{model} {moving}", state)
    known = {name: value() if callable(value) else value for name, value in identity.items()}
    known |= {"seed": seed, "start": start}
    try:
        return json.loads(json.dumps(known))  # as it will be read: a tuple becomes a list
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"Invalid identity: {error}. Use texts, numbers, lists and dicts, as JSON has them."
        ) from error


def leaves_of(state: dict) -> dict[str, Tensor]:
    """Return a state's tensors by the names that they have in a file.

    The parts ``params`` and ``clients``, what the server has and what each client keeps beside it,
    are named ``w`` and ``w.clients``; a tensor of another part is named by its path.

    Raises:
        TypeError: if a state holds anything but tensors in dicts.

    Example:
        >>> state = {"params": {"w": torch.ones(1)}, "round": torch.tensor(0)}
        >>> list(leaves_of(state))
        ['w', '/round']
    """
    return {name: p for name, (_, p) in _named(state).items()}


def _named(state: dict) -> dict[str, tuple[list[str], Tensor]]:
    """Return the path of each tensor, and the tensor, by its name in a file."""
    leaves = list(_walk(state, []))
    nested = any(len(path) > 1 for path, _ in leaves)
    named: dict[str, tuple[list[str], Tensor]] = {}
    for path, p in leaves:
        match path:
            case [name] if not nested:
                pass
            case ["params", name]:
                pass
            case ["clients", name]:
                name = f"{name}.clients"
            case _:
                name = "/" + "/".join(path)
        if name in named:
            raise ValueError(f"Invalid state: two tensors of the name {name}. Use other names.")
        named[name] = path, p
    return named


def _walk(state: object, path: list[str]) -> Iterator[tuple[list[str], Tensor]]:
    if isinstance(state, Tensor) and path:
        if state.is_meta or state.layout != torch.strided:
            where = "".join(f"[{name!r}]" for name in path)
            raise TypeError(
                f"Invalid state{where} of {state.layout} on {state.device}: no numbers in rows. "
                "Use dense tensors."
            )
        yield path, state
    elif isinstance(state, dict) and all(isinstance(name, str) for name in state):
        for name, part in state.items():
            yield from _walk(part, [*path, name])
    else:
        where = "".join(f"[{name!r}]" for name in path)
        raise TypeError(
            f"Invalid state{where} of type {type(state).__name__}: no tensor. Use tensors by name, "
            "in dicts inside dicts if you like; torch.tensor(0) for a number."
        )


def _rebuilt(tensors: dict[str, Tensor], paths: dict[str, list[str]]) -> dict:
    """Return the state whose tensors were named so."""
    state: dict = {}
    for name, p in tensors.items():
        *parts, last = paths[name]
        part = state
        for key in parts:
            part = part.setdefault(key, {})
        part[last] = p
    return state


def save_checkpoint(path: Path, identity: dict, state: RunState) -> None:
    """Write a checkpoint under a temporary name, put it in place, and keep the one before.

    Whatever stops the process, or the machine, at whatever instant: ``path`` or ``path.previous``
    is a whole checkpoint, if one was written before.

    Raises:
        OSError: if the file cannot be written; what was written before is intact.
    """
    named = _named(state.params)
    tensors = {name: p for name, (_, p) in named.items()}
    strides = {name: p.stride() for name, p in tensors.items()}
    record = {"format": _FORMAT, "identity": identity, "strides": strides}
    record["paths"] = {name: path for name, (path, _) in named.items()}
    text = json.dumps(record | {"round_num": state.round_num, "entries": state.entries})
    tensors = {name: p.resolve_neg().contiguous() for name, p in tensors.items()}
    metadata = {"fedlib": text, "digest": digest_of(text, tensors)}
    content = save(tensors, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Both waits for the disk are for power cuts. On a virtual disk each costs 3 to 8 ms.
        replace_file(path, content, keep=_beside(path, "previous"))
    except OSError as error:
        raise OSError(
            f"Cannot write checkpoint {path} ({error}). Use a writable folder on a disk with room; "
            "what was saved before is intact, and the run goes on from it when started again."
        ) from error


def load_checkpoint(
    path: Path, identity: dict, *, device: torch.device, like: dict | None = None
) -> RunState | None:
    """Read a run's checkpoint: ``path``, or the previous one if ``path`` is not to be used.

    If ``path`` is missing, damaged or of another run, and ``path.previous`` is whole and of this
    run, the latter is used: a warning says so, and a refused file is renamed to ``path.refused``.
    So is what lies at ``path.previous`` and is no checkpoint. If neither is usable, nothing is
    touched and it is an error, unless both are missing. What cannot be opened is not missing.

    Args:
        path: the file.
        identity: the run, as ``run_identity`` describes it.
        device: where the parameters will live.
        like: a state of the same form; older files do not tell theirs.

    Returns:
        The state to go on from, or None if both files are missing.

    Raises:
        ValueError: if a file is there, but neither is a whole checkpoint of this run.
    """
    previous, reasons = _beside(path, "previous"), []
    for file in (path, previous):
        try:
            state = _read(file, identity, device, like)
        except FileNotFoundError:
            reasons.append("missing")
        except ValueError as error:
            reasons.append(str(error))
        else:
            break
    else:
        if reasons == ["missing", "missing"]:
            return None
        raise ValueError(
            f"Invalid checkpoint {path}: {reasons[0]}; {previous.name}: {reasons[1]}. "
            "Give another path, or delete both files to start afresh."
        )
    if reasons:
        kept = ""
        if os.path.lexists(path):
            kept = f", which is kept as {_set_aside(path, path)}"
        warnings.warn(
            f"Checkpoint {path}: {reasons[0]}{kept}. "
            f"Going on from {previous.name}, at round {state.round_num}.",
            RuntimeWarning,
            stacklevel=outside(),
        )
    elif os.path.lexists(previous) and not _is_checkpoint(previous):
        warnings.warn(
            f"Checkpoint {path}: {previous.name} beside it is none, and is kept as "
            f"{_set_aside(previous, path)}.",
            RuntimeWarning,
            stacklevel=outside(),
        )
    return state


def _set_aside(file: Path, path: Path) -> str:
    """Give a file a name beside the checkpoint that is free, and return it."""
    names = (_beside(path, f"refused{n or ''}") for n in count())
    aside = next(name for name in names if not os.path.lexists(name))
    os.replace(file, aside)
    return aside.name


def _is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint, damaged ones included as far as they can be told."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return b'"fedlib":' in file.read(2**16)
    except OSError:
        return False


def _read(path: Path, identity: dict, device: torch.device, like: dict | None = None) -> RunState:
    """Read one file; raises ValueError with the reason why it is not to be used."""
    try:
        check_regular(path)  # safetensors calls every file missing that it cannot open
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise ValueError(f"it cannot be opened ({error.strerror or error})") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"not a readable checkpoint ({error})") from error
    text = metadata.get("fedlib", "{}")
    if metadata.get("digest") != digest_of(text, tensors):
        raise ValueError("damaged, or not written by this fedlib (its digest is wrong)")
    record = json.loads(text)
    lacks = {"format", "identity", "strides", "round_num", "entries"} - {*record}
    if lacks:
        raise ValueError(f"not a checkpoint (it has no {min(lacks)})")
    if record["format"] != _FORMAT:
        raise ValueError(f"of format {record['format']}, not {_FORMAT}")
    saved = record["identity"]
    names = {**identity, **saved}.keys() - {"probe"}
    differs = sorted(n for n in names if saved.get(n) != identity.get(n))
    if differs:
        there = ", ".join(f"{n}={saved.get(n)} there, {identity.get(n)} here" for n in differs)
        raise ValueError(f"it belongs to another run ({there})")
    there, here = saved.get("probe"), identity.get("probe")
    if there and here and not same_probe(there, here):  # older files have none
        raise ValueError(
            "it belongs to another run (what the model's or the rule's code computes differs)"
        )
    # Copied to memory of its own, laid out as it was: kernels round by layout and alignment.
    params = {
        name: torch.empty_strided(
            tensors[name].shape, stride, dtype=tensors[name].dtype, device=device
        ).copy_(tensors[name])
        for name, stride in record["strides"].items()
    }
    paths = record.get("paths") or {name: path for name, (path, _) in _named(like or {}).items()}
    state = _rebuilt(params, paths if paths.keys() == params.keys() else {n: [n] for n in params})
    return RunState(record["round_num"], state, record["entries"])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


class Checkpoint:
    """A run's checkpoint file, written as often as costs little. One process may use it at a time.

    Args:
        path: the file.
        identity: the run, as ``run_identity`` describes it.

    Raises:
        TypeError: if ``path`` is not a path.
        ValueError: if ``path`` is a folder, or no file can be named so.
    """

    def __init__(self, path: str | Path, identity: dict) -> None:
        self.path, self.identity = check_path("checkpoint", path, room=ROOM), identity
        self.saved, self.due = -1, 0.0
        if self.path.is_dir():
            raise ValueError(
                f"Invalid checkpoint={str(path)!r}: a folder. "
                f"Use a file in it, such as {self.path / 'run.safetensors'}."
            )

    def load(self, *, device: torch.device, like: dict | None = None) -> RunState | None:
        """Read the state to go on from, or None; as ``load_checkpoint``."""
        sweep(self.path)
        state = load_checkpoint(self.path, self.identity, device=device, like=like)
        if state is not None:
            self.saved = state.round_num
        return state

    def save(self, state: RunState) -> None:
        """Write a state; as ``save_checkpoint``."""
        began = time.monotonic()
        save_checkpoint(self.path, self.identity, state)
        ended = time.monotonic()
        self.saved, self.due = state.round_num, ended + (ended - began) / SHARE

    def save_if_due(self, state: RunState) -> None:
        """Write a state, unless that would take more than the share ``SHARE`` of the time."""
        if time.monotonic() >= self.due:
            self.save(state)
