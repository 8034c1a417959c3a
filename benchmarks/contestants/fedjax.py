"""FedJAX: clients one by one through a compiled step, or by twos on two virtual devices.

Settings: jit, pmap.
"""

import os

from benchmarks.contestants._common import Clock, Work, arguments

options = arguments()
if options.setting == "pmap":
    # Before JAX is imported; a CPU is one device unless told otherwise.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import fedjax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402


def put(trees, devices):
    """Lay one tree per device side by side, each on its device."""
    spread = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), "d"), jax.P("d"))
    stacked = jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), *trees)
    return jax.device_put(stacked, spread)


# FedJAX 0.0.17, its latest, is older than JAX: two functions that its pmap backend calls are gone,
# and what it takes from one device now keeps the axis of the devices.
if options.setting == "pmap":
    jax.device_put_sharded = put
    jax.device_put_replicated = lambda tree, devices: put([tree] * len(devices), devices)
    first = jax.jit(lambda tree: jax.tree_util.tree_map(lambda leaf: leaf[0], tree))
    for_each_client = fedjax.for_each_client

    def without_axis(*functions):
        run = for_each_client(*functions)
        return lambda *args: ((i, first(output)) for i, output in run(*args))

    fedjax.for_each_client = without_axis

work = Work(options.work)
if work.model == "lenet":
    images = work.inputs.reshape(-1, *work.shape[1:], work.shape[0])
    for i in range(work.num_clients):  # in place, without a second copy of all
        images[i * work.size :][: work.size] = work.client(i)[0].transpose(0, 2, 3, 1).copy()
    work.inputs = images
clock = Clock(options)


def forward(params, x):
    """The models of ``_torch``; images with channels last, in which XLA's convolutions run best."""
    if work.model == "linear":
        return x @ params["body.weight"].T @ params["head.weight"][0]
    if work.model == "mlp":
        x = x.reshape(len(x), -1) @ params["body.1.weight"].T + params["body.1.bias"]
        return jax.nn.relu(x) @ params["head.weight"].T + params["head.bias"]
    for layer in ("body.0", "body.3"):
        layouts = "NHWC", "OIHW", "NHWC"
        kernel = params[f"{layer}.weight"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layouts)
        x = jax.nn.relu(x + params[f"{layer}.bias"])
        window = 1, 2, 2, 1
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for layer in ("body.7", "body.9"):
        x = jax.nn.relu(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
    return x @ params["head.weight"].T + params["head.bias"]


def loss(params, batch):
    outputs = forward(params, batch["x"])
    if work.model == "linear":
        return 0.5 * jnp.mean((outputs - batch["y"]) ** 2)
    scores = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], 1))


params = {name: jnp.asarray(p) for name, p in work.start.items()}
fedjax.set_for_each_client_backend(options.setting)


# --- user code ---
def client_init(shared, client_input):
    return shared


def client_step(params, batch):
    grads = jax.grad(loss)(params, batch)
    return jax.tree_util.tree_map(lambda p, g: p - work.client_lr * g, params, grads)


train = fedjax.for_each_client(client_init, client_step)
average = jax.jit(lambda trained: jax.tree_util.tree_map(lambda *p: sum(p) / len(p), *trained))


def client(i, batches):
    inputs, targets = work.client(i)
    return i, [{"x": inputs[batch], "y": targets[batch]} for batch in batches], np.zeros(())


def one_round(t):
    global params
    clients = [client(i, batches) for i, batches in work.positions(t).items()]
    params = average([trained for _, trained in train(params, clients)])
    jax.block_until_ready(params)


# --- end of user code ---
clock.loop(one_round, lambda: {name: np.asarray(p) for name, p in params.items()})
