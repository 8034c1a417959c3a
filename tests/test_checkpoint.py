"""Whatever stops a run, it goes on to the same bits; what is not its checkpoint is refused."""

import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import long_run
import numpy as np
import pytest
import torch
from test_fedavg import CONFIG, distance, federation
from torch import nn

import fedlib as fl
from fedlib import _files, checkpoint
from fedlib.checkpoint import RunState, load_checkpoint, run_identity, save_checkpoint

CPU = torch.device("cpu")
SUFFIXES = ("", ".previous")


@pytest.fixture
def every_round(monkeypatch):
    """Let checkpoints take all the time they need: one after every round."""
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)


def start(path=None, **change):
    run = dict(
        model=fl.MLP((1, 4, 4), 3).double(),
        clients=federation(),
        config=CONFIG,
        seed=0,
        checkpoint=path,
        progress=False,
    )
    return fl.run_fedavg(**(run | change))


def same(a, b):
    """Whether two results agree in every bit, history included."""
    return (
        distance(a.params, b.params) == 0
        and a.history.round_num.tolist() == b.history.round_num.tolist()
        and a.history.loss.tolist() == b.history.loss.tolist()
        and {n: v.tolist() for n, v in a.history.metrics.items()}
        == {n: v.tolist() for n, v in b.history.metrics.items()}
    )


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def temporaries(folder):
    return list(folder.glob(".*.partial-*"))


def round_of(path):
    record = fl.checkpoint.safe_open(path, framework="pt").metadata()["fedlib"]
    return checkpoint.json.loads(record)["round_num"]


class Interrupted(fl.MLP):
    """A model of which, its copies included, the n-th call is interrupted, as by Ctrl-C."""

    def __init__(self, n):
        super().__init__((1, 4, 4), 3)
        self.double()
        Interrupted.calls_left = n

    def forward(self, inputs):
        Interrupted.calls_left -= 1
        if Interrupted.calls_left == 0:
            raise KeyboardInterrupt
        return super().forward(inputs)


def calls_of_checks(folder, config):
    """How often a model is called before the first round of one client's."""
    start(folder / "counted", model=Interrupted(-1), config=config, eval_every=100)
    return -1 - Interrupted.calls_left - config.num_rounds * config.local_steps


# --- Stopped and resumed ----------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_resumed_run_is_bit_identical(tmp_path, memory_format):
    clients = federation(shape=(4, 8, 8), dtype=torch.float32)
    model = fl.CNN((4, 8, 8), 3).to(memory_format=memory_format)
    whole, calls = start(model=model, clients=clients), []

    def stop_in_round_3(params):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError
        return {}

    path = tmp_path / "new" / "run.safetensors"
    with pytest.raises(ZeroDivisionError):
        start(path, model=model, clients=clients, metrics=stop_in_round_3)
    assert round_of(path) == 2  # the third was completed, but not evaluated
    assert same(start(path, model=model, clients=clients), whole)
    assert names(path.parent) == [path.name, path.name + ".previous"]


def test_an_interrupt_in_a_round_keeps_all_rounds_before(tmp_path):
    config = replace(CONFIG, cohort_size=1, local_steps=2, num_rounds=5)
    whole = start(model=Interrupted(-1), config=config, eval_every=100)
    path, steps_per_round, calls_before = tmp_path / "run", 2, calls_of_checks(tmp_path, config)
    for done in range(4):  # interrupted in the second step of each round but the last
        model = Interrupted(calls_before + steps_per_round * (done + 1))
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / str(done), model=model, config=config, eval_every=100)
        assert round_of(tmp_path / str(done)) == done
        model = Interrupted(calls_before + steps_per_round + (steps_per_round if done else 0))
        with pytest.raises(KeyboardInterrupt):  # and once in every round, one after the other
            start(path, model=model, config=config, eval_every=100)
        assert round_of(path) == done
    for stopped in (path, *(tmp_path / str(done) for done in range(4))):
        assert same(start(stopped, model=Interrupted(-1), config=config, eval_every=100), whole)


def test_divergence_keeps_the_last_finite_round(tmp_path):
    clients = fl.ClientData(1e3 * torch.ones(4, 2), torch.ones(4), np.array([4]))
    model = fl.LinearNet(2, 1)
    nn.init.ones_(model.head.weight)
    config = replace(CONFIG, cohort_size=None, client_lr=1e-4, local_steps=1, num_rounds=200)
    for _ in range(2):  # resumed, it diverges in the same round
        with pytest.raises(FloatingPointError, match=r"in round (\d+) on client 0: ") as caught:
            start(tmp_path / "run", model=model, clients=clients, config=config, eval_every=1000)
        assert f"in round {round_of(tmp_path / 'run') + 1} on" in str(caught.value)
        assert round_of(tmp_path / "run") > 0


def test_a_finished_run_resumes_to_itself_without_writing(tmp_path):
    path = tmp_path / "run"
    whole, before = start(path), path.stat()
    assert same(start(path), whole)
    assert path.stat() == before


def test_a_finished_run_can_be_carried_further(tmp_path):
    start(tmp_path / "run", config=replace(CONFIG, num_rounds=2))
    assert same(start(tmp_path / "run"), start())


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def slow(path, identity, state):
        now[0] += 0.02
        saved.append(state.round_num)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)

    def metrics(params):  # each round takes 0.3 s
        now[0] += 0.3
        return {}

    start(tmp_path / "run", metrics=metrics, config=replace(CONFIG, num_rounds=9))
    assert saved == [0, 4, 8, 9]  # a second apart, and at the end


# --- Killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kills", "rounds"), [(3, 60), pytest.param(30, 500, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path, kills, rounds):
    context = multiprocessing.get_context("forkserver")  # imports fedlib once, then forks
    context.set_forkserver_preload(["fedlib"])

    def begin(path):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=long_run.in_a_process, args=(sender, path, rounds))
        process.start()
        receiver.recv()
        return process

    process = begin(tmp_path / "whole")
    began = time.monotonic()
    process.join()
    length = time.monotonic() - began
    paths, rng = [tmp_path / "run0"], np.random.default_rng(0)
    landed = writing = 0
    while landed < kills:
        in_a_write = landed % 2  # every second kill waits for the next write to begin
        for left in temporaries(tmp_path):
            left.unlink()
        process = begin(paths[-1])
        # At random over the run: together at most its length, so that few come too late.
        time.sleep(rng.uniform(0, length / kills))
        while in_a_write and process.is_alive() and not temporaries(tmp_path):
            pass
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was finished already: go on with another
            paths.append(tmp_path / f"run{len(paths)}")
            continue
        assert process.exitcode == -signal.SIGKILL
        landed += 1
        writing += in_a_write and bool(temporaries(tmp_path))
    assert writing or kills < 10  # how many depends on the load: 17 of 30 on a quiet machine
    for left in temporaries(tmp_path):  # which a run removes once it is a minute old
        left.unlink()
    process = begin(paths[-1])
    process.join()
    assert process.exitcode == 0
    # All are finished: what was saved is read, nothing is run.
    whole = long_run.run(tmp_path / "whole", rounds)
    assert all(same(long_run.run(path, rounds), whole) for path in paths)
    kept = {path.name + suffix for path in (tmp_path / "whole", *paths) for suffix in SUFFIXES}
    assert set(names(tmp_path)) == kept


@pytest.mark.filterwarnings("ignore:Checkpoint .*/run. missing:RuntimeWarning")
def test_at_every_instant_of_a_save_a_whole_checkpoint_is_there(tmp_path, monkeypatch, every_round):
    """The folder is copied before and after each call that changes the disk; each copy resumes."""
    folder, copies, whole = tmp_path / "now", [], start()

    def copying(name):
        real = getattr(os, name)

        def call(*args):
            for step in (lambda: real(*args), lambda: None):
                copies.append(tmp_path / f"{len(copies)}_{name}")
                shutil.copytree(folder, copies[-1])
                step()

        monkeypatch.setattr(os, name, call)

    with monkeypatch.context():
        copying("fsync")
        copying("replace")
        start(folder / "run")
    monkeypatch.undo()
    assert len(copies) > 30
    assert any(not (copy / "run").exists() for copy in copies[8:])  # between the two renames
    for copy in copies:
        for torn in temporaries(copy):  # and the file that was being written may be torn
            torn.write_bytes(torn.read_bytes()[:100])
            os.utime(torn, (0, 0))  # old enough to be one that was left behind
        assert same(start(copy / "run"), whole)
        assert names(copy) == ["run", "run.previous"]


@pytest.mark.filterwarnings("ignore:Checkpoint .*/run. missing:RuntimeWarning")
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_interrupt_during_a_save_loses_nothing(tmp_path, monkeypatch, every_round, name):
    real, whole = getattr(os, name), start()
    for k in range(8):
        calls, path = iter(range(1000)), tmp_path / str(k) / "run"

        def call(*args, calls=calls, k=k):
            if next(calls) == k:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            with pytest.raises(KeyboardInterrupt):
                start(path)
        if path.exists():
            assert not (path.parent / "run.tmp").exists()
        assert same(start(path), whole)


# --- Damaged, or of another run ---------------------------------------------------------------


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-3]
    elif how == "a tensor's bit":
        content[-1] ^= 1
    elif how == "a header's bit":
        content[content.index(b"entries")] ^= 1
    else:
        content = how
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (b"", "not a readable checkpoint"),
        (b"not a checkpoint at all", "not a readable checkpoint"),
        ("truncated", "not a readable checkpoint"),
        ("a tensor's bit", "damaged, or not written by this fedlib"),
        ("a header's bit", "damaged, or not written by this fedlib"),
    ],
)
def test_a_damaged_checkpoint_is_kept_and_the_previous_one_used(tmp_path, every_round, how, reason):
    path, whole = tmp_path / "run", start()
    start(path)
    for kept in ("run.refused", "run.refused1"):  # a second one does not replace the first
        damaged = damage(path, how)
        with pytest.warns(
            RuntimeWarning,
            match=f"{reason}.* kept as {kept}.* Going on from run.previous, at round 3",
        ):
            assert same(start(path), whole)
        assert (tmp_path / kept).read_bytes() == damaged


def test_a_missing_checkpoint_is_replaced_by_the_previous_one(tmp_path, every_round):
    start(tmp_path / "run")
    (tmp_path / "run").unlink()
    with pytest.warns(RuntimeWarning, match="run: missing. Going on from run.previous, at round 3"):
        assert same(start(tmp_path / "run"), start())


def test_if_the_previous_one_is_damaged_too_nothing_is_touched(tmp_path):
    path = tmp_path / "run"
    start(path)
    damage(path, "truncated")
    damage(tmp_path / "run.previous", "a tensor's bit")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(
        ValueError,
        match="run: not a readable.*run.previous: damaged.*another path, or delete both files",
    ):
        start(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_every_flipped_bit_is_noticed(tmp_path):
    path, identity = tmp_path / "run", {"seed": 0, "lr": 0.1}
    entries = [{"round_num": 1, "loss": 0.25, "metrics": {"accuracy": 0.5}}]
    state = RunState(1, {"w": torch.tensor([1.0, -2.0])}, entries)
    save_checkpoint(path, identity, state)
    content, refused = path.read_bytes(), 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path, identity, device=CPU)
        except ValueError:
            refused += 1
        else:
            raise AssertionError(f"bit {bit} of {flipped}: {found}")
    assert refused == 8 * len(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config=replace(CONFIG, client_lr=0.2)), r"client_lr=0.1 there, 0.2 here"),
        (dict(seed=1), r"seed=0 there, 1 here"),
        (dict(model=fl.MLP((1, 4, 4), 3, seed=9).double()), r"another run \(start="),
        (dict(clients=federation(seed=4)), r"another run \(data="),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    start(tmp_path / "run")
    with pytest.raises(ValueError, match=f"run: .*{message}.*; run.previous: .*{message}"):
        start(tmp_path / "run", **change)


def test_a_checkpoint_of_another_run_is_kept_and_the_previous_one_used(tmp_path):
    path, whole = tmp_path / "run", start()
    start(path)
    start(tmp_path / "other", seed=1)
    other = shutil.copy(tmp_path / "other", path).read_bytes()
    with pytest.warns(RuntimeWarning, match="another run .* kept as run.refused. Going on from"):
        assert same(start(path), whole)
    assert (tmp_path / "run.refused").read_bytes() == other


def test_what_is_trainable_belongs_to_a_run(tmp_path):
    start(tmp_path / "run")
    model = fl.MLP((1, 4, 4), 3).double()
    model.body.requires_grad_(False)
    with pytest.raises(ValueError, match=r"another run \(start="):
        start(tmp_path / "run", model=model)


def test_a_new_field_of_the_identity_that_is_none_leaves_old_checkpoints_valid(tmp_path):
    model, path = fl.MLP((1, 4, 4), 3).double(), tmp_path / "run"
    old, none, new = (
        run_identity({"lr": 0.1, **more}, 0, model)
        for more in ({}, dict(rule=None), dict(rule=("momentum", 0.9)))
    )
    save_checkpoint(path, old, RunState(1, fl.params_of(model), []))
    assert load_checkpoint(path, none, device=CPU).round_num == 1
    with pytest.raises(ValueError, match=r"rule=None there, \['momentum', 0.9\] here"):
        load_checkpoint(path, new, device=CPU)
    save_checkpoint(path, new, RunState(2, fl.params_of(model), []))
    assert load_checkpoint(path, new, device=CPU).round_num == 2


def test_a_checkpoint_further_than_the_run_is_refused(tmp_path):
    start(tmp_path / "run")
    with pytest.raises(ValueError, match="num_rounds=2: .* is at round 4. Use num_rounds >= 4"):
        start(tmp_path / "run", config=replace(CONFIG, num_rounds=2))


def test_a_run_cannot_end_at_a_round_that_was_not_evaluated(tmp_path):
    config = replace(CONFIG, cohort_size=1, local_steps=2)
    before = calls_of_checks(tmp_path, config)
    run = dict(model=Interrupted(before + 6), config=config, eval_every=4)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(path, **run)
    with pytest.raises(ValueError, match="num_rounds=2: .* is at round 2. Use num_rounds >= 3"):
        start(path, **run | dict(config=replace(config, num_rounds=2), model=Interrupted(-1)))


# --- No room, no right ------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(tmp_path, every_round):
    path, calls, limits = tmp_path / "run", [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk_in_round_3(params):
        calls.append(1)
        if len(calls) == 3:  # from here on, no file may grow over 500 bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        return {}

    try:
        with pytest.raises(OSError, match="Cannot write .*too large.*on a disk with room.* intact"):
            start(path, metrics=fill_the_disk_in_round_3)
        assert len(calls) == 3
        assert (round_of(path), names(tmp_path)) == (2, ["run", "run.previous"])
        with pytest.raises(OSError, match="Cannot write checkpoint"):  # before another round
            start(path, metrics=fill_the_disk_in_round_3)
        assert len(calls) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(start(path), start())


def test_an_unwritable_checkpoint_is_refused_before_the_first_round(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    def metrics(params):
        raise AssertionError("a round was run")

    with pytest.raises(OSError, match="Cannot write checkpoint .* writable folder"):
        start(tmp_path / "file" / "run", metrics=metrics)


def test_a_checkpoint_is_a_file(tmp_path, as_readers_run_it):
    with pytest.raises(ValueError, match=r"Invalid checkpoint=.*: a folder. Use a file in it.*run"):
        start(str(tmp_path))
    with pytest.raises(TypeError, match="Invalid checkpoint=3: not a path. Use a path such as"):
        start(3)
    assert isinstance(start(str(tmp_path / "run")), fl.FedAvgResult)
    assert Path(tmp_path / "run").exists()


# --- Whose files these are --------------------------------------------------------------------


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    start("~/run")
    assert "run" in names(tmp_path)


def test_files_of_the_users_beside_a_checkpoint_stay(tmp_path, every_round):
    for name in ("run.tmp", ".run.tmp", "run.partial"):
        (tmp_path / name).write_text("mine")
    os.mkfifo(tmp_path / "run.tmp2")
    assert same(start(tmp_path / "run"), start())
    for name in ("run.tmp", ".run.tmp", "run.partial"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_file_called_previous_that_is_no_checkpoint_is_kept(tmp_path, every_round):
    start(tmp_path / "run")
    (tmp_path / "run.previous").write_text("mine")
    with pytest.warns(RuntimeWarning, match="run.previous beside it is none, and is kept as"):
        start(tmp_path / "run", config=replace(CONFIG, num_rounds=CONFIG.num_rounds + 1))
    assert (tmp_path / "run.refused").read_text() == "mine"


def test_a_link_at_the_path_is_replaced_not_followed(tmp_path, every_round):
    (tmp_path / "precious").write_text("mine")
    start(tmp_path / "run")
    os.replace(tmp_path / "run", tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    start(tmp_path / "run", config=replace(CONFIG, num_rounds=CONFIG.num_rounds + 2))
    assert (tmp_path / "elsewhere").read_bytes() == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ELOOP])
@pytest.mark.parametrize("which", ["run", "run.previous"])
def test_what_cannot_be_opened_is_not_missing(tmp_path, every_round, monkeypatch, code, which):
    start(tmp_path / "run")
    (tmp_path / ("run.previous" if which == "run" else "run")).unlink()
    before = (tmp_path / which).read_bytes()

    def refuse(path):
        if not path.exists():
            raise FileNotFoundError(path)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "check_regular", refuse)
        with pytest.raises(ValueError, match=f"cannot be opened .{os.strerror(code)}"):
            start(tmp_path / "run")
    assert names(tmp_path) == [which]
    assert (tmp_path / which).read_bytes() == before


@pytest.mark.parametrize("what", ["pipe", "loop", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, what):
    previous = tmp_path / "run.previous"
    {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda p: os.symlink(p, p)}[what](previous)
    with pytest.raises(ValueError, match="run.previous: it cannot be opened"):
        start(tmp_path / "run")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path):
    left, young = (tmp_path / f".run.partial-{name}" for name in ("left", "young"))
    for path in (left, young):
        path.write_text("half")
    os.utime(left, (0, 0))
    with _files.scratch(tmp_path / "run") as held:
        os.utime(held, (0, 0))
        start(tmp_path / "run")
        assert held.exists()
    assert young.exists()
    assert not left.exists()
    assert not held.exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\ud800b", "not the name of a file in UTF-8"),
        (os.fsdecode(b"run-\xff"), "not the name of a file in UTF-8"),
        ("é" * 115, "too long for the name of a file"),
        ("a" * 256 + "/run", "too long for the name of a file"),
        ("a/" * 2500, "too long for the name of a file"),
    ],
)
def test_names_that_no_file_can_have_are_refused(name, why, tmp_path):
    with pytest.raises(ValueError, match=f"Invalid checkpoint=.*: {why}"):
        checkpoint.Checkpoint(tmp_path / name, {})


def test_the_longest_name_that_is_admitted_can_be_written(tmp_path):
    path = tmp_path / ("a" * (255 - _files.ROOM))
    kept = checkpoint.Checkpoint(path, {})
    for round_num in (1, 2):
        kept.save(RunState(round_num, {"w": torch.ones(2)}, []))
    assert kept.load(device=CPU).round_num == 2


def test_a_sealed_file_that_is_no_checkpoint_is_told(tmp_path):
    path, tensors = tmp_path / "run", {"w": torch.ones(2)}
    seal = {"fedlib": "{}", "digest": checkpoint.digest_of("{}", tensors)}
    path.write_bytes(checkpoint.save(tensors, metadata=seal))
    with pytest.raises(ValueError, match="not a checkpoint .it has no entries"):
        load_checkpoint(path, {}, device=CPU)


# --- Files of before ----------------------------------------------------------------------------


def test_a_file_that_does_not_tell_its_form_is_read_as_one_of_the_algorithms(tmp_path):
    """Checkpoints of 0.1.0 hold ``w`` and ``w.clients`` side by side, and no paths."""
    path, identity = tmp_path / "run", {"seed": 0}
    state = {"params": {"w": torch.ones(2)}, "clients": {"w": torch.zeros(3, 2)}}
    save_checkpoint(path, identity, RunState(1, state, []))
    with checkpoint.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["fedlib"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert sorted(tensors) == ["w", "w.clients"]
    del record["paths"]
    text = json.dumps(record)
    metadata = {"fedlib": text, "digest": checkpoint.digest_of(text, tensors)}
    path.write_bytes(checkpoint.save(tensors, metadata=metadata))
    found = load_checkpoint(path, identity, device=CPU, like=state).params
    assert torch.equal(found["params"]["w"], torch.ones(2))
    assert torch.equal(found["clients"]["w"], torch.zeros(3, 2))
    flat = load_checkpoint(path, identity, device=CPU).params
    assert sorted(flat) == ["w", "w.clients"]
