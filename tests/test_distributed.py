"""Ranks together do what one process does; when one stops, all stop, and go on to the same bits."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fedavg import distance

import fedlib as fl
from fedlib import distributed

ROOT = Path(fl.__file__).parents[1]


def launch(function, count, folder, *args):
    """Run a function on ranks of their own processes; return what each left, or its exit code."""
    context = multiprocessing.get_context("forkserver")  # imports fedlib once, then forks
    context.set_forkserver_preload(["ranks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes = [
        context.Process(
            target=ranks.in_a_process, args=(function, index, count, port, folder, *args)
        )
        for index in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [
        process.exitcode or torch.load(folder / f"{index}.pt")
        for index, process in enumerate(processes)
    ]


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    return {count: launch(ranks.work, count, tmp_path_factory.mktemp("ranks")) for count in (2, 3)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return launch(ranks.stop_in_round_3, 2, folder, folder / "run", "")


def same(a, b):
    return distance(a[0], b[0]) == 0 and a[1:] == b[1:]


# --- Together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ranks.CASES)
def test_ranks_end_with_the_same_bits_which_are_those_of_one_process_up_to_rounding(
    worked, name, count
):
    found = [cases[name] for _, cases, _ in worked[count]]
    assert all(same(other, found[0]) for other in found[1:])  # rank 0's metrics, too
    expected = ranks.start(**ranks.CASES[name])
    rounding = 1e-6 if name == "float32" else 1e-12
    assert distance(found[0][0], expected.params) < rounding
    np.testing.assert_allclose(found[0][2], expected.history.loss, rtol=rounding)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("place", "message"), list(enumerate(ranks.DIFFERENT)))
def test_ranks_that_differ_refuse_together_and_may_go_on(worked, count, place, message):
    for _, _, refusals in worked[count]:
        assert len(refusals) == len(ranks.DIFFERENT)
        with pytest.raises(ValueError, match=f"Invalid arguments: {message}. Ranks share one run"):
            raise ValueError(refusals[place])


def test_sums_are_taken_in_each_dtype_and_returned_in_order(worked):
    for (doubles, single, more), _, _ in worked[3]:
        assert torch.equal(doubles, torch.full((2, 3), 111.0, dtype=torch.float64))
        assert torch.equal(single, torch.tensor(4.5))
        assert torch.equal(more, torch.full((4, 1), 7.0, dtype=torch.float64))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_a_cohort_is_dealt_out_whole_and_evenly(work, count):
    work = np.array(work)
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for index in range(count):
            patch.setattr(distributed, "rank", lambda index=index: (index, count))
            shares.append(distributed.shard(work))
    assert sorted(np.concatenate(shares)) == list(range(len(work)))
    loads = [work[share].sum() for share in shares]
    assert max(loads) - min(loads) <= work.max()
    assert all((np.diff(share) > 0).all() for share in shares)


# --- Alone ------------------------------------------------------------------------------------


def test_alone_there_is_one_rank_and_nothing_is_sent():
    before, tensors = torch.get_num_threads(), [torch.ones(2)]
    with distributed.join(device="cpu", threads=before + 1) as rank:
        assert (rank.rank, rank.world_size, rank.device) == (0, 1, torch.device("cpu"))
        assert torch.get_num_threads() == before + 1
        assert not torch.distributed.is_initialized()
        assert distributed.all_reduce(tensors) is tensors
        assert distributed.broadcast(tensors) is tensors
        distributed.check_same({"seed": 0})
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(device="tpu"), ValueError, "Invalid device='tpu'"),
        (dict(threads=0), ValueError, "Invalid threads=0"),
        (dict(timeout=-1.0), ValueError, "Invalid timeout=-1.0"),
        (dict(device="cuda"), ValueError, "2 processes on this machine, but 1 GPUs.*per-node=1"),
        (dict(), ValueError, "Invalid device=None: 2 processes.* or device=.cpu."),
    ],
)
def test_join_refuses(monkeypatch, change, error, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(error, match=message), distributed.join(**change):
        pass


# --- Stopped ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["error", "kill"])
def test_when_one_rank_stops_all_do_and_the_run_goes_on_to_the_same_bits(whole, tmp_path, how):
    path = tmp_path / "run"
    first, second = launch(ranks.stop_in_round_3, 2, tmp_path / "stopped", path, how)
    lost = "RuntimeError: Rank {} lost another rank.*Look for that rank's error.*checkpoint goes on"
    stopped, noticed, message = {
        "error": (first, second, "ZeroDivisionError"),
        "kill": (second, first, -signal.SIGKILL),
    }[how]
    assert str(stopped).startswith(str(message))
    with pytest.raises(RuntimeError, match=lost.format(1 if how == "error" else 0)):
        raise RuntimeError(noticed)
    round_num = fl.checkpoint.safe_open(path, framework="pt").metadata()["fedlib"]
    assert '"round_num": 2' in round_num
    again = launch(ranks.stop_in_round_3, 2, tmp_path / "again", path, "")
    assert all(same(found, whole[0]) for found in (*whole, *again))
    assert not (tmp_path / "nowhere").exists()


def torchrun(folder, rounds, restarts):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--local-addr=127.0.0.1", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    script = [Path(ranks.__file__), folder, str(rounds)]
    here = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    with (folder / "output").open("w") as output:  # not a pipe: a full one would stop the ranks
        return subprocess.Popen(
            [*command, *options, *script], env=os.environ | here, stdout=output, stderr=output
        )


@pytest.mark.parametrize(
    ("kills", "rounds"), [(1, 60), pytest.param(5, 400, marks=pytest.mark.slow)]
)
def test_torchrun_starts_killed_ranks_again_and_the_run_ends_in_the_same_bits(
    tmp_path, kills, rounds
):
    whole = launch(ranks.long, 2, tmp_path / "whole", rounds)
    rng, killed = np.random.default_rng(0), torchrun(tmp_path, rounds, kills)
    for restart in range(kills):
        files = [tmp_path / f"{restart}.{index}" for index in range(2)]
        while not all(file.exists() for file in files):
            assert killed.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.002 * rounds / kills))
        os.kill(int(files[rng.integers(2)].read_text()), signal.SIGKILL)
    assert killed.wait(timeout=300) == 0, (tmp_path / "output").read_text()
    again = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    assert all(same(found, whole[0]) for found in (*whole, *again))


# --- Nobody to meet ---------------------------------------------------------------------------


def test_a_program_that_is_no_rank_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as foreign:  # takes calls, and never answers
        address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(foreign.getsockname()[1]))
        for name, value in dict(RANK="1", WORLD_SIZE="2", **address).items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        with (
            pytest.raises(RuntimeError, match="Cannot meet the other ranks at 127.0.0.1:"),
            distributed.join(device="cpu", timeout=1.0),
        ):
            pass
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "one"), ("RANK", "2"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "-1")]
)
def test_a_variable_of_torchruns_that_is_wrong_is_named(monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    wrong = pytest.raises(ValueError, match=f"environment variable {name}='{value}'")
    with wrong, distributed.join(device="cpu"):
        pass


def test_a_join_that_fails_leaves_the_threads_as_they_were(monkeypatch):
    def fails(patience):
        raise RuntimeError("nobody there")

    monkeypatch.setattr(distributed, "_rendezvous", fails)
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = torch.get_num_threads()
    join = distributed.join(device="cpu", threads=before + 1)
    with pytest.raises(RuntimeError, match="nobody there"):
        join.__enter__()
    assert torch.get_num_threads() == before
