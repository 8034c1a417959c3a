"""A federation on disk is the one that was written, or says what is wrong with it."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fedavg import CONFIG, distance, federation

import fedlib as fl
from fedlib.checkpoint import run_identity

ROOT = Path(fl.__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    fl.save_clients(tmp_path / "new" / "folder", federation())
    return tmp_path / "new" / "folder"


def pairs(*sizes):
    return [(np.ones((n, 2)), np.zeros(n, dtype=np.int64)) for n in sizes]


# --- The same federation ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("targets", [torch.int64, torch.int32, torch.float32])
def test_what_was_saved_is_loaded(tmp_path, dtype, targets):
    rng = np.random.default_rng(0)
    inputs = torch.as_tensor(rng.integers(100, size=(9, 2, 3))).to(dtype)
    clients = fl.ClientData(inputs, torch.arange(9).to(targets), np.array([4, 2, 3]))
    fl.save_clients(tmp_path, clients)
    for found in (fl.load_clients(tmp_path), fl.load_clients(str(tmp_path), verify=True)):
        for name in ("inputs", "targets"):
            saved, loaded = getattr(clients, name), getattr(found, name)
            assert loaded.dtype == saved.dtype
            assert torch.equal(loaded, saved)
        assert found.sizes.tolist() == clients.sizes.tolist()
        assert (found.digest, found.num_classes) == (clients.digest, clients.num_classes)
        assert [x.shape for x, _ in found] == [x.shape for x, _ in clients]


def test_numpy_reads_the_files(folder):
    clients = federation()
    np.testing.assert_array_equal(np.load(folder / "inputs.npy"), clients.inputs)
    np.testing.assert_array_equal(np.load(folder / "targets.npy"), clients.targets)
    np.testing.assert_array_equal(np.load(folder / "sizes.npy"), clients.sizes)


@pytest.mark.parametrize("make", [fl.MLP, fl.CNN])
@pytest.mark.parametrize("batch_size", [4, None])
def test_a_run_on_a_stored_federation_has_the_bits_of_one_in_memory(tmp_path, make, batch_size):
    clients = federation((5, 9, 3, 12), dtype=torch.float32)
    fl.save_clients(tmp_path / "clients", (pair for pair in clients))
    run = dict(config=replace(CONFIG, batch_size=batch_size), seed=0, progress=False)
    model = make((1, 4, 4), 3)
    expected = fl.run_fedavg(model, clients, **run, checkpoint=tmp_path / "run")
    stored = fl.load_clients(tmp_path / "clients")
    found = fl.run_fedavg(model, stored, **run)
    assert distance(found.params, expected.params) == 0
    # It is one and the same run: either goes on from the other's checkpoint.
    again = fl.run_fedavg(model, stored, **run, checkpoint=tmp_path / "run")
    assert distance(again.params, expected.params) == 0


def test_writing_to_what_was_loaded_leaves_the_files_as_they_are(folder):
    fl.load_clients(folder).inputs.zero_()
    assert torch.equal(fl.load_clients(folder, verify=True).inputs, federation().inputs)


def test_opening_and_naming_a_run_reads_no_example(folder):
    """Files of the right sizes and headers are opened, whatever their values."""
    with (folder / "inputs.npy").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 8)  # not a number
    clients = fl.load_clients(folder)
    assert clients.inputs.isnan().any()
    model = fl.MLP((1, 4, 4), 3).double()
    read, made = ({"data": lambda c=c: c.digest} for c in (clients, federation()))
    assert run_identity(read, 0, model) == run_identity(made, 0, model)
    with pytest.raises(fl.DataError, match="its digest is wrong. Copy it once more"):
        fl.load_clients(folder, verify=True)


LARGE = """
import resource, sys
import numpy as np
import fedlib as fl

def anonymous():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

def each(num_clients):
    for i in range(num_clients):
        rng = np.random.default_rng(i)
        yield rng.standard_normal((10, 20_000), dtype=np.float32), rng.integers(3, size=10)

folder, config = sys.argv[1], fl.FedAvgConfig(
    num_rounds=3, local_steps=2, cohort_size=4, batch_size=5, client_lr=0.1
)
fl.save_clients(folder + "/small", each(4))
run = dict(config=config, seed=0, progress=False, checkpoint=folder + "/run")
model = fl.MLP((20_000,), 3, hidden=(4,))
fl.run_fedavg(model, fl.load_clients(folder + "/small"), **run | dict(checkpoint=None))  # warm up
before = anonymous()
fl.save_clients(folder + "/large", each(400))
written = anonymous()
clients = fl.load_clients(folder + "/large")
fl.run_fedavg(model, clients, **run)
print(clients.inputs.nbytes / 2**20, written - before, anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_a_federation_needs_no_memory_of_its_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    size, to_write, to_run = map(float, done.stdout.split())
    assert size > 300
    assert max(to_write, to_run) < 30


# --- Refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "error", "message"),
    [
        ([], ValueError, "Invalid clients: none. Give one"),
        (pairs(2, 0), ValueError, "Client 1: .* Give every client at least one"),
        ([(np.full((2, 2), np.nan), np.zeros(2))], ValueError, "Client 0: Invalid inputs: NaN"),
        (
            [*pairs(1), (np.ones((2, 3)), np.zeros(2, int))],
            ValueError,
            r"Client 1: inputs of .* \(3",
        ),
        (
            [*pairs(1), (np.ones((2, 2)), np.zeros(2))],
            ValueError,
            "Client 1: targets of float64 .*",
        ),
        ([(torch.ones(2).bfloat16(), torch.zeros(2))], TypeError, "Client 0: .*bfloat16"),
        ([("a", "b")], TypeError, "Client 0: "),
        ([(torch.ones(2),)], TypeError, "Client 0: .*not a pair"),
    ],
)
def test_what_is_no_federation_is_not_written(tmp_path, clients, error, message):
    with pytest.raises(error, match=message):
        fl.save_clients(tmp_path, clients)
    with pytest.raises(fl.DataError, match=r"no stamp.json.* writing was not finished"):
        fl.load_clients(tmp_path)
    fl.save_clients(tmp_path, pairs(2, 3))  # what was begun may be begun again
    assert fl.load_clients(tmp_path, verify=True).sizes.tolist() == [2, 3]


def test_a_federation_is_not_overwritten(folder):
    with pytest.raises(fl.DataError, match="holds a federation already. Give another, or delete"):
        fl.save_clients(folder, pairs(1))
    assert torch.equal(fl.load_clients(folder).inputs, federation().inputs)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(fl.DataError, match="Cannot write .*Use a writable folder"):
        fl.save_clients(tmp_path / "file" / "folder", pairs(1))


def test_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(fl.DataError, match=r"Cannot write .*inputs.npy .*on a disk with room"):
            fl.save_clients(tmp_path, pairs(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(fl.DataError, match="no stamp.json"):
        fl.load_clients(tmp_path)


def test_an_error_of_the_generator_passes(tmp_path):
    def broken():
        yield from pairs(1)
        raise FileNotFoundError("photograph.png")

    with pytest.raises(FileNotFoundError, match="photograph.png"):
        fl.save_clients(tmp_path, broken())


def other_format(folder):
    stamp = json.loads((folder / "stamp.json").read_text())
    (folder / "stamp.json").write_text(json.dumps(stamp | {"format": "fedlib-clients-9"}))


def cut(name, num_bytes):  # None adds some
    def apply(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:num_bytes] if num_bytes else content + b"more")

    return apply


def swap(folder):
    os.replace(folder / "targets.npy", folder / "inputs.npy")


def another(name, array):
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "stamp.json").unlink(), "no stamp.json, and so no federation"),
        (cut("stamp.json", 30), "stamp.json not readable. Copy it once more, or write it anew"),
        (lambda folder: (folder / "stamp.json").write_text("3"), "stamp.json not readable"),
        (other_format, "of format fedlib-clients-9, not fedlib-clients-2"),
        (lambda folder: (folder / "sizes.npy").unlink(), "Damaged .*sizes.npy: .*No such file"),
        (cut("inputs.npy", -1), "Damaged .*inputs.npy: .*, not float64 of shape .* bytes. Copy"),
        (cut("targets.npy", 60), "Damaged .*targets.npy"),
        (cut("targets.npy", 1), "Damaged .*targets.npy"),
        (swap, r"Damaged .*inputs.npy: int64 of shape \(29,\) in 360 bytes, not float64 of shape"),
        (
            another("inputs.npy", np.ones(3)),
            r"inputs.npy: float64 of shape \(3,\) in .*, not float",
        ),
        (another("sizes.npy", np.array([5, 9, 3, 13])), "sizes.npy: its numbers are wrong"),
        (another("sizes.npy", np.array([-5, 19, 3, 12])), "sizes.npy: its numbers are wrong"),
        (cut("inputs.npy", None), "Damaged .*inputs.npy"),
    ],
)
def test_a_damaged_federation_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(fl.DataError, match=message):
        fl.load_clients(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(fl.DataError, match="no stamp.json.* Write it with save_clients"):
        fl.load_clients(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Invalid device='gpu'"):
        fl.load_clients(tmp_path, device="gpu")


# --- Whose files these are --------------------------------------------------------------------


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("name", ["inputs.npy", "targets.npy", "sizes.npy"])
def test_a_file_of_the_users_is_never_written_to(tmp_path, name):
    np.save(tmp_path / name, np.arange(3))
    before = contents(tmp_path)
    mapped = np.load(tmp_path / name, mmap_mode="r")
    with pytest.raises(fl.DataError, match=f"it holds {name} already, a file of your own"):
        fl.save_clients(tmp_path, [(mapped, mapped)])
    assert contents(tmp_path) == before


def test_links_and_pipes_are_not_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inputs.npy").symlink_to(tmp_path / "precious")  # to nothing, yet
    os.mkfifo(tmp_path / "a" / "sizes.npy")
    with pytest.raises(fl.DataError, match="it holds inputs.npy already"):
        fl.save_clients(tmp_path / "a", pairs(2))
    (tmp_path / "a" / "inputs.npy").unlink()
    with pytest.raises(fl.DataError, match="it holds sizes.npy already"):
        fl.save_clients(tmp_path / "a", pairs(2))
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "sizes.npy"]
    fl.save_clients(tmp_path / "b", pairs(2))
    (tmp_path / "b" / "stamp.json").unlink()
    os.mkfifo(tmp_path / "b" / "stamp.json")
    with pytest.raises(fl.DataError, match="stamp.json not readable"):
        fl.load_clients(tmp_path / "b")


def test_an_invalid_client_leaves_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="Client 1"):
        fl.save_clients(tmp_path, [*pairs(2), (np.full((1, 2), np.nan), np.zeros(1, int))])
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_of_two_writers_one_is_refused(tmp_path):
    def second():
        yield from pairs(2)
        with pytest.raises(fl.DataError, match="it holds inputs.npy already"):
            fl.save_clients(tmp_path, pairs(5))
        yield from pairs(3)

    fl.save_clients(tmp_path, second())
    assert fl.load_clients(tmp_path, verify=True).sizes.tolist() == [2, 3]


# --- Any damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inputs.npy", "targets.npy", "sizes.npy", "stamp.json"])
def test_a_changed_byte_of_a_header_is_refused_or_means_the_same(folder, name):
    whole, clients = (folder / name).read_bytes(), federation()
    for place in range(0, len(whole) if name == "stamp.json" else 128, 3):
        for other in b"\n('9":
            changed = bytearray(whole)
            changed[place] = other
            (folder / name).write_bytes(changed)
            try:
                found = fl.load_clients(folder)
            except fl.DataError:
                continue
            assert found.num_classes == clients.num_classes
            assert found.sizes.tolist() == clients.sizes.tolist()
            assert torch.equal(found.inputs, clients.inputs)


def test_a_federation_without_a_seal_is_loaded(folder):
    stamp = json.loads((folder / "stamp.json").read_text())
    stamp = {n: v for n, v in stamp.items() if n != "seal"} | {"format": "fedlib-clients-1"}
    (folder / "stamp.json").write_text(json.dumps(stamp, indent=1))  # as it was written before
    assert torch.equal(fl.load_clients(folder, verify=True).inputs, federation().inputs)
    (folder / "stamp.json").write_text(json.dumps(stamp | {"num_classes": 9}))
    with pytest.raises(fl.DataError, match="its digest is wrong"):
        fl.load_clients(folder, verify=True)


def test_what_is_written_to_a_mapped_federation_is_noticed(folder):
    clients = fl.load_clients(folder)
    before = clients.digest
    clients.inputs[0] += 1
    assert clients.digest != before
    assert fl.load_clients(folder, verify=True).digest == before  # the files stay
    clients.targets[0] = -100
    with pytest.raises(ValueError, match="the least label is -100"):
        _ = clients.num_classes


def test_what_is_known_of_a_stored_federation_holds(folder):
    clients = fl.load_clients(folder)
    with pytest.raises(ValueError, match="read-only"):
        clients.sizes[0] = 9
    clients.targets.numpy()[:] = 7  # a write that torch does not count
    assert clients.num_classes == 8
