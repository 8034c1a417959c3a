"""Real processes, real sockets: Flower's federation equals the simulation, also under faults."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from environment import ROOT

import fedlib as fl

if find_spec("flwr") is None:
    if os.environ.get("FEDLIB_REQUIRE_FLOWER"):
        raise ImportError("Flower is not installed. Use: pip install 'fedlib[flower]'.")
    pytest.skip("Flower is not installed", allow_module_level=True)

from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from scipy.stats import norm

from fedlib import flower
from fedlib.loopback import make_certificates, make_key
from studies import federation as study
from studies import privacy

TOLERANCE = 1e-5


def running(home: Path) -> list[str]:
    """The commands of all processes that belong to a federation, wherever they were started."""
    mark, found = f"FLWR_HOME={home}".encode(), []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # ended meanwhile, or another user's
            continue
    return [command for command in found if command]  # a zombie has none


def ended(home: Path, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while running(home) and time.monotonic() < end:
        time.sleep(0.2)
    return not running(home)


# ---- One federation of two clients: three algorithms, a server that is killed -------------------


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    return study.run_equal(tmp_path_factory.mktemp("equal"), 0)


@pytest.mark.slow
def test_fedavg_over_processes_equals_the_simulation(equal):
    expected = study.simulated(equal["clients"], 0)
    assert study.distance(equal["params"]["fedavg"], expected) < TOLERANCE
    assert study.distance(expected, fl.params_of(study.load_app().model)) > 1e-2  # it did move


@pytest.mark.slow
def test_fine_tuning_at_home_equals_the_simulation_and_stays_there(equal):
    clients, model = equal["clients"], study.load_app().model
    how = dict(steps=5, lr=0.1, batch_size=10, part="head", seed=0)
    params = study.simulated(clients, 0)
    personal = fl.fine_tune(model, params, clients, **how)
    for expected, place in zip(personal, equal["places"], strict=True):
        found = flower.load_params(place / "personal.safetensors")
        assert study.distance(found, expected) < TOLERANCE
    pairs = fl.evaluate(model, params, clients), fl.evaluate(model, personal, clients)
    assert [equal["told"][str(i)] for i in range(2)] == np.transpose(pairs).tolist()


@pytest.mark.slow
def test_ditto_over_processes_equals_the_simulation_and_keeps_its_models(equal):
    parts, clients = study.load_app(), equal["clients"]
    assert study.distance(equal["params"]["ditto"], study.simulated(clients, 0)) < TOLERANCE
    params, own, config = fl.params_of(parts.model), [None, None], parts.config(study.ROUNDS)
    for t in range(study.ROUNDS):
        _, batches = fl.draw_round(clients, config, rng=np.random.default_rng([0, t]))
        moved = []
        for i, rows in enumerate(batches):
            alone = fl.ClientData(*clients[i], clients.sizes[[i]])
            end, own[i] = parts.ditto(parts.model, params, alone, rows, config.client_lr, own[i])
            moved.append({n: p[0] for n, p in end.params.items()})
        params = fl.weighted_average(moved, clients.sizes)
    for expected, place in zip(own, equal["places"], strict=True):
        kept = flower.load_params(place / "own-ditto.safetensors")
        found = {n.removeprefix("after/"): p for n, p in kept.items() if n.startswith("after/")}
        assert study.distance(found, expected) < TOLERANCE
        assert study.distance(found, params) > 1e-3  # it is a model of its own


@pytest.mark.slow
def test_fedadam_equals_the_simulation_though_the_server_was_killed_and_started_again(equal):
    assert equal["halfway"]
    expected = study.simulated(equal["clients"], 0, server_rule=fl.fedadam())
    assert study.distance(equal["params"]["fedadam"], expected) < TOLERANCE


@pytest.mark.slow
def test_no_process_is_left(equal):
    assert ended(equal["home"]), running(equal["home"])


# ---- One federation of three: everything that goes wrong ----------------------------------------


@pytest.fixture(scope="module")
def trap():
    """A proxy that everybody is told to use for all but loopback; it counts who calls."""
    server, calls = socket.create_server(("127.0.0.1", 0)), []

    def listen():
        while True:
            try:
                call, _ = server.accept()
            except OSError:
                return
            calls.append(call.recv(200))
            call.close()

    threading.Thread(target=listen, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    told = {name: address for each in names for name in (each, each.upper())}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    yield calls
    server.close()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, trap):
    return study.run_faulty(tmp_path_factory.mktemp("faulty"), 0) | {"calls": list(trap)}


@pytest.mark.slow
def test_every_round_is_the_average_of_those_that_count(faulty):
    expected = study.survivors(faulty["clients"], 0, study.COUNTED)
    assert study.distance(faulty["params"], expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("nan", "round 1: client 1 left out: its body.1.weight is not finite"),
        (
            "shape",
            "round 1: client 2 left out: its body.1.weight is torch.float64 of shape (1, 64)",
        ),
        ("huge", "round 2: client 1 left out: its update is "),
        ("slow", "round 3: client 1 did not answer within 40 s"),
        ("killed", "round 3: client 2 "),  # late, or known to be gone
    ],
)
def test_a_fault_is_one_line_of_the_log(faulty, fault, line):
    assert sum(line in said for said in faulty["log"].splitlines()) == 1, faulty["log"]


@pytest.mark.slow
def test_a_node_that_nobody_registered_is_turned_away(faulty):
    assert faulty["stranger"] not in (None, 0)
    assert "Failed to initialize the connection to the SuperLink" in faulty["refused"]
    assert faulty["superlink"].count("Activated node_id") == 3


@pytest.mark.slow
def test_no_request_leaves_loopback(faulty):
    assert faulty["calls"] == []


@pytest.mark.slow
def test_processes_end_when_whoever_started_them_is_killed(tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from fedlib.loopback import Loopback
Loopback({str(tmp_path / "f")!r}, clients=[Path({str(tmp_path)!r})]).start()
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as starter:
        try:
            assert starter.stdout.readline() == "ready\n"
            study.until(lambda: len(running(tmp_path / "f" / "flower")) >= 3)
        finally:
            starter.kill()
    assert ended(tmp_path / "f" / "flower")


# ---- The same in one process, quickly: every answer that a client may give -----------------------


@Grid.register
class Room:
    """What of a grid `fedlib.flower` uses, without a network: clients are called where they are."""

    def __init__(self, app, places, *, change=None):
        self.app, self.places, self.change, self.box, self.sent = app, places, change, {}, []

    def get_node_ids(self):
        return list(range(100, 100 + len(self.places)))

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"message {len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            client = message.metadata.dst_node_id - 100
            config = {"client": client, "folder": str(self.places[client])}
            here = Context(1, 100 + client, config, RecordDict(), {})
            try:
                answer = self.app(message, here)
            except Exception as error:
                answer = Message(Error(0, str(error)), reply_to=message)
            if self.change is not None:
                answer = self.change(client, message, answer)
            if answer is not None:
                self.box[ids[-1]] = answer
        return ids

    def pull_messages(self, ids):
        return [self.box.pop(i) for i in ids if i in self.box]


MODEL = fl.MLP((1, 8, 8), 10, hidden=(8,)).double()
CONFIG = fl.FedAvgConfig(num_rounds=3, local_steps=4, cohort_size=2, batch_size=10, client_lr=0.1)


@pytest.fixture(autouse=True)
def identity():
    """What Flower's own processes know of themselves, and a message cannot be made without."""
    for name in ("run_id", "task_id", "node_id"):
        setattr(TaskIdentity, name, 1)


def over_room(tmp_path, *, change=None, config=CONFIG, how=None, client=None, rounds=3):
    clients = study.federation(3)
    places = study.disks(tmp_path, clients)
    room = Room(flower.client_app(MODEL, **(client or {})), places, change=change)
    federation = flower.meet(room, num_clients=3)
    assert federation.sizes.tolist() == clients.sizes.tolist()
    algorithm = flower.fedavg(MODEL, federation, config, **({"deadline": 0.5} | (how or {})))
    result = fl.run(algorithm, MODEL, num_rounds=rounds, seed=7, progress=False)
    return result, clients


@pytest.mark.parametrize(
    ("client", "server", "same"),
    [
        ({}, {}, {}),
        ({"rule": fl.proximal(0.1)}, {}, {"step": fl.proximal(0.1)}),
        ({"rule": fl.momentum(0.9)}, {}, {"step": fl.momentum(0.9)}),
        ({}, {"server_rule": fl.fedadam()}, {"server_rule": fl.fedadam()}),
        ({}, {"server_rule": fl.fedavgm()}, {"server_rule": fl.fedavgm()}),
    ],
)
def test_drawn_cohorts_and_rules_equal_run_fedavg(tmp_path, client, server, same):
    result, clients = over_room(tmp_path, client=client, how=server)
    expected = fl.run_fedavg(MODEL, clients, CONFIG, seed=7, progress=False, **same)
    assert study.distance(result.params, expected.params) < 1e-13
    assert np.allclose(result.history.loss, expected.history.loss)
    assert result.history["answers"].tolist() == [2, 2, 2]


def changed(edit):
    """Let client 1 answer otherwise whenever it trains."""

    def change(client, message, answer):
        if client != 1 or message.metadata.message_type != "train":
            return answer
        return edit(message, answer)

    return change


def with_params(edit):
    def change(message, answer):
        arrays = {n: a.numpy() for n, a in answer.content["params"].items()}
        arrays = edit(arrays)
        answer.content["params"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
        return answer

    return changed(change)


def without(message, answer, part):
    del answer.content[part]
    return answer


FIRST = "body.1.weight"
ANSWERS = {
    "nothing": (changed(lambda message, answer: None), "did not answer within 0.5 s"),
    "an error": (
        changed(lambda message, answer: Message(Error(1, "no memory"), reply_to=message)),
        r"it failed \(no memory\)",
    ),
    "no parameters": (changed(lambda m, a: without(m, a, "params")), "params"),
    "no loss": (changed(lambda m, a: without(m, a, "values")), "values"),
    "NaN": (with_params(lambda p: p | {FIRST: p[FIRST] * np.nan}), "not finite"),
    "infinity": (with_params(lambda p: p | {FIRST: p[FIRST] + np.inf}), "not finite"),
    "huge": (with_params(lambda p: p | {FIRST: p[FIRST] + 1e9}), "times as long as the median"),
    "1e300": (with_params(lambda p: p | {FIRST: p[FIRST] + 1e300}), "times as long as the median"),
    "a shape": (with_params(lambda p: p | {FIRST: p[FIRST].T.copy()}), r"of shape \(64, 8\)"),
    "a type": (with_params(lambda p: p | {FIRST: p[FIRST].astype(np.float32)}), "torch.float32"),
    "integers": (with_params(lambda p: p | {FIRST: p[FIRST].astype(np.int64)}), "torch.int64"),
    "texts": (with_params(lambda p: p | {FIRST: np.full(p[FIRST].shape, "x")}), "client 1 left"),
    "a name too few": (with_params(lambda p: {FIRST: p[FIRST]}), "its parameters are named"),
    "a name too many": (with_params(lambda p: p | {"x": p[FIRST]}), "its parameters are named"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_does_not_count_leaves_the_others_average(tmp_path, caplog, name):
    change, said = ANSWERS[name]
    everyone = fl.FedAvgConfig(
        num_rounds=2, local_steps=4, cohort_size=None, batch_size=10, client_lr=0.1
    )
    result, clients = over_room(tmp_path, change=change, config=everyone, rounds=2)
    params = fl.params_of(MODEL)
    for t in range(2):
        _, batches = fl.draw_round(clients, everyone, rng=np.random.default_rng([7, t]))
        moved = [fl.local_sgd(MODEL, params, *clients[i], batches[i], lr=0.1) for i in (0, 2)]
        params = fl.weighted_average([each.params for each in moved], clients.sizes[[0, 2]])
    assert study.distance(result.params, params) < 1e-13
    assert result.history["answers"].tolist() == [2, 2]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.startswith(f"round {t + 1}: client 1 ") for t, line in enumerate(lines)] == [1, 1]
    assert all(re.search(said, line) for line in lines)


def test_a_round_below_the_quorum_is_no_round(tmp_path):
    change, _ = ANSWERS["NaN"]
    with pytest.raises(RuntimeError, match="2 of 3 clients count, fewer than the quorum of 0.9"):
        over_room(
            tmp_path,
            change=change,
            config=fl.FedAvgConfig(
                num_rounds=1, local_steps=1, cohort_size=None, batch_size=10, client_lr=0.1
            ),
            how={"quorum": 0.9},
            rounds=1,
        )


def test_a_repeated_round_starts_from_what_was_kept_before_it(tmp_path):
    file, one, two = tmp_path / "own", {"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}
    assert flower._recall(file, 0) is None
    flower._remember(file, 0, None, one)
    assert flower._recall(file, 0) is None  # the same round once more
    assert flower._recall(file, 1)["w"] == 1
    flower._remember(file, 1, one, two)
    assert flower._recall(file, 1)["w"] == 1
    assert flower._recall(file, 2)["w"] == flower._recall(file, 9)["w"] == 2


def said(values):
    def change(client, message, answer):
        if client == 1:
            answer.content["values"] = MetricRecord(values)
        return answer

    return change


@pytest.mark.parametrize(
    "values",
    [{"client": 0, "examples": 5}, {"client": 3, "examples": 5}, {"client": 1, "examples": 0}],
)
def test_who_says_to_be_another_client_is_refused(tmp_path, values):
    with pytest.raises(ValueError, match="Invalid client=.*Use each of 0..2 once"):
        over_room(tmp_path, change=said(values))


def test_clients_that_are_missing_are_named(tmp_path):
    places = study.disks(tmp_path, study.federation(2))
    room = Room(flower.client_app(MODEL), places)
    with pytest.raises(TimeoutError, match=r"Only clients \[0, 1\] of 3 answered within 0.5 s"):
        flower.meet(room, num_clients=3, deadline=0.5)


def test_secrets_are_for_their_owner_alone(tmp_path):
    make_certificates(tmp_path)
    make_key(tmp_path / "key")
    for name in ("server.key", "key"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in (tmp_path / "key.pub").read_bytes()


PRIVACY = fl.load_result("privacy")


def test_the_accountants_noise_is_the_exact_one_of_a_gaussian_mechanism():
    """Rounds that all see everybody compose to one release with z / sqrt(T) (Balle and Wang)."""
    for row in PRIVACY["rows"]:
        s, epsilon = row["multiplier"] / PRIVACY["rounds"] ** 0.5, row["epsilon"]
        sides = norm.cdf(0.5 / s - epsilon * s), norm.cdf(-0.5 / s - epsilon * s)
        delta = sides[0] - np.exp(epsilon) * sides[1]
        assert 0.9 * PRIVACY["delta"] < delta < 1.01 * PRIVACY["delta"]


def test_stored_floors_are_what_the_study_computes_and_no_update_was_clipped():
    row = PRIVACY["rows"][-1]
    noise = row["multiplier"] * PRIVACY["clip"] / row["clients"]
    again = privacy.play(noise, 0, PRIVACY["clip"])
    assert again["D"] == pytest.approx(row["floors"][0], rel=1e-6)
    assert all(row["longest"] <= PRIVACY["clip"] for row in PRIVACY["rows"])
    assert all(row["nu"] >= again["nu"] for row in PRIVACY["rows"])


def test_clipping_is_to_the_length():
    short = privacy.play(0.0, 0, PRIVACY["clip"] / 100)
    assert short["D"] > 0.08  # it began at 0.1, and without clipping it ends below 1e-4


def test_the_app_says_what_it_is():
    text = (ROOT / "studies" / "federation_app" / "pyproject.toml").read_text()
    assert 'clientapp = "app:client"' in text
