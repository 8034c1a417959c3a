"""Flower's simulation engine: clients in two Ray actors, a core each. Settings: 2 actors."""

import logging
import os
from functools import cache

# Neither is asked to report home from a benchmark. Before they are imported.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from flwr.simulation import run_simulation

from benchmarks.contestants._common import Clock, Work, arguments
from benchmarks.contestants._torch import build, loss


@cache
def load():
    """Read the work, once in every process."""
    return Work(os.environ["BENCHMARK_WORK"])


# --- user code ---
client_app, server_app = ClientApp(), ServerApp()


@cache
def model_and_data():
    # Kept by the actor from client to client, which costs least.
    work = load()
    return build(work), torch.from_numpy(work.inputs), torch.from_numpy(work.targets)


@client_app.train()
def train(message, context):
    work, (model, inputs, targets) = load(), model_and_data()
    client, t = message.content["config"]["client"], message.content["config"]["round"]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=work.client_lr)
    for rows in torch.from_numpy(work.positions(t)[client] + client * work.size):
        optimizer.zero_grad()
        loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": work.size})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Cohorts(FedAvg):
    """Sends the cohort's clients to as many nodes: which node plays which client is no matter."""

    def configure_train(self, server_round, arrays, config, grid):
        t, cohort = server_round - 1, load().cohort(server_round - 1).tolist()
        nodes, _ = sample_nodes(grid, load().num_clients, len(cohort))
        for node, client in zip(nodes, cohort, strict=True):
            config = ConfigRecord({"client": client, "round": t})
            content = RecordDict({"arrays": arrays, "config": config})
            yield Message(content=content, message_type="train", dst_node_id=node)


@server_app.main()
def serve(grid, context):
    grid.pull_interval = 0.001  # instead of looking for replies every 0.1 s
    arrays = ArrayRecord(build(load()).state_dict())
    strategy = Cohorts(fraction_evaluate=0.0)
    strategy.start(grid, arrays, num_rounds=10**6, evaluate_fn=after_round)


# --- end of user code ---
def after_round(server_round, arrays):
    state = arrays.to_torch_state_dict()
    if server_round and not clock(lambda: {name: p.numpy() for name, p in state.items()}):
        os._exit(0)  # the loop has no other way out; Ray's processes end with this one


if __name__ == "__main__":
    # Ray sends functions of modules by name, but those of the main script by value, with all that
    # they refer to: so the apps are those of this file as a module.
    from benchmarks.contestants import flower

    options = arguments()
    os.environ["BENCHMARK_WORK"] = str(options.work.resolve())
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    flower.clock = Clock(options)
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"num_cpus": 2, "log_to_driver": False, "logging_level": "error"},
    }
    run_simulation(flower.server_app, flower.client_app, load().num_clients, backend_config=backend)
