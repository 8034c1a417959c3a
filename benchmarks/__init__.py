"""fedlib beside other simulators of federated averaging: ``python -m benchmarks``."""
