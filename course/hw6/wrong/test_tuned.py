"""Step sizes are chosen on the clients that are reported.

Fails: test clients are used once, after tuning
"""


def compare(run, grid, seeds, *, tuning_seed):
    scores = {}
    for name in ["fedavg", *ONE_STEP]:
        lr, _ = choose(lambda lr, name=name: run(name, lr, tuning_seed, "test"), grid)
        scores[name] = np.array([run(name, lr, seed, "test") for seed in seeds])
    return {name: interval(scores["fedavg"] - scores[name]) for name in ONE_STEP}
