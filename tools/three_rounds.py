"""Is an installed fedlib, without the book around it, whole? Used by .ci/run."""

import json
from importlib import resources

import numpy as np

import fedlib as fl

digits = fl.load_digits()
parts = fl.partition_by_class(
    digits.labels,
    num_clients=10,
    classes_per_client=2,
    examples_per_client=60,
    rng=np.random.default_rng(0),
)
clients = fl.ClientData.from_parts(digits.images, digits.labels, parts)
model = fl.MLP(digits.images.shape[1:], 10)
config = fl.FedAvgConfig(num_rounds=3, local_steps=10, cohort_size=5, batch_size=10, client_lr=0.1)
result = fl.run_fedavg(model, clients, config, seed=0, progress=False)
before, after = (
    float(fl.evaluate(model, params, clients).mean())
    for params in (fl.params_of(model), result.params)
)
assert after > before, f"three rounds taught nothing: accuracy {before:.3f}, then {after:.3f}"

stored = [
    file for file in resources.files("fedlib.results").iterdir() if file.name.endswith("json")
]
assert stored, "no stored results were installed"
for file in stored:
    assert "provenance" in json.loads(file.read_text()), f"{file.name} does not say how it was made"
print(
    f"fedlib {fl.__version__}: accuracy {before:.2f} before, {after:.2f} after three rounds; "
    f"{len(stored)} stored results"
)
