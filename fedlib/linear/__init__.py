r"""The linear theory of Part II: tasks, exact recursions, floors, guarantees, risks.

NumPy in float64 only; nothing here imports the simulator. Letters are the book's:

====================  ====================================================================
d, k, M, c            inputs, features, clients, outputs (one, unless heads are matrices)
B_star, ``heads``     the truth: orthonormal columns, and one head w*_i per client
B, w                  the model, x -> <w, Bᵀx>; client i's loss is ½|Bw - B_star w*_i|²
τ, α, T, m            ``local_steps``, ``lr``, ``num_rounds``, ``cohort_size``
η = α²L²              the step size in normalised variables, L the norm of the longest head
Δ = I - αBᵀB          how far B is from orthonormal columns, in those variables
D                     √α|B_star_perpᵀB|, the part of B outside the truth
P, S                  what a round keeps of B, and what it adds: B_new = B P + B_star S
μ²                    diversity, the least eigenvalue of the heads' covariance
====================  ====================================================================

Example:
    >>> import numpy as np
    >>> from fedlib import linear
    >>> rng = np.random.default_rng(0)
    >>> tasks = linear.LinearTasks.random(20, 2, num_clients=30, rng=rng)
    >>> B0 = linear.matched_start(tasks, lr=0.3, distance=0.9, rng=rng)
    >>> several = linear.run(tasks, B0, np.zeros(2), local_steps=5, lr=0.3, num_rounds=300)
    >>> one = linear.run(tasks, B0, np.zeros(2), local_steps=1, lr=0.3, num_rounds=1500)
    >>> bool(several.distance[-1] < 1e-5), bool(one.distance[-1] > 0.5)
    (True, True)
"""

from fedlib.linear import exact
from fedlib.linear.certificate import Condition, Guarantee, guarantee
from fedlib.linear.choices import Cohort, asymptotic_rate, cohort_needed, largest_lr
from fedlib.linear.floors import one_step_floor, span_floor, worst_case_tasks
from fedlib.linear.rounds import Round, one_round
from fedlib.linear.samples import (
    fine_tuning_risk,
    fine_tuning_threshold,
    head_step_risk,
    scratch_risk,
)
from fedlib.linear.subspace import principal_angles, subspace_distance
from fedlib.linear.tasks import LinearTasks, matched_start
from fedlib.linear.trajectory import Trajectory, run

__all__ = [
    "Cohort",
    "Condition",
    "Guarantee",
    "LinearTasks",
    "Round",
    "Trajectory",
    "asymptotic_rate",
    "cohort_needed",
    "exact",
    "fine_tuning_risk",
    "fine_tuning_threshold",
    "guarantee",
    "head_step_risk",
    "largest_lr",
    "matched_start",
    "one_round",
    "one_step_floor",
    "principal_angles",
    "run",
    "scratch_risk",
    "span_floor",
    "subspace_distance",
    "worst_case_tasks",
]
