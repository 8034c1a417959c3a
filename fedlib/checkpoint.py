"""One file that holds a run: parameters, history, and what the run is."""

__all__ = ["load_checkpoint", "run_identity", "save_checkpoint"]

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fedlib.clients import ClientData
from fedlib.models import Params

_FORMAT = "fedlib-1"


def run_identity(config: dict, seed: int, model: nn.Module, clients: ClientData) -> dict:
    """Describe a run: configuration, seed, and digests of architecture, starting point and data.

    The number of rounds is left out: a finished run may be carried further.
    """
    data = [clients.inputs, clients.targets, torch.as_tensor(clients.sizes)]
    rest = {name: value for name, value in config.items() if name != "num_rounds"}
    state = model.state_dict()
    start = [torch.tensor(list(f"{model} {list(state)}".encode())), *state.values()]
    return rest | {"seed": seed, "start": _digest(start), "data": _digest(data)}


def _digest(tensors) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_checkpoint(path: Path, identity: dict, params: Params, entries: list[dict]) -> None:
    """Write a checkpoint under a temporary name, then put it in place in one step.

    Whatever stops the process, ``path`` holds either the previous checkpoint or the new one.

    Raises:
        OSError: if the file cannot be written.
    """
    record = {"format": _FORMAT, "identity": identity, "entries": entries}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.contiguous() for name, p in params.items()}
        save_file(tensors, temporary, metadata={"fedlib": json.dumps(record)})
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"Cannot write checkpoint {path} ({error}). "
            "Give a path in a writable folder, on a disk with room."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def load_checkpoint(
    path: Path, identity: dict, *, device: torch.device
) -> tuple[Params, list[dict]]:
    """Read a checkpoint back, if it belongs to the run described by ``identity``.

    Raises:
        ValueError: if the file is not a whole checkpoint, or belongs to another run.
    """
    remedy = "Give another path, or delete the file to start afresh."
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            record = json.loads((file.metadata() or {}).get("fedlib", "{}"))
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"Invalid checkpoint {path}: not a readable file. {remedy}") from error
    if record.get("format") != _FORMAT:
        raise ValueError(f"Invalid checkpoint {path}: not written by this fedlib. {remedy}")
    saved = record["identity"]
    differs = [name for name in identity if saved.get(name) != identity[name]]
    if differs:
        there = ", ".join(f"{n}={saved.get(n)} there, {identity[n]} here" for n in differs)
        raise ValueError(
            f"Invalid checkpoint {path}: it belongs to another run ({there}). {remedy}"
        )
    return params, record["entries"]
