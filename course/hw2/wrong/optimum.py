"""The minimiser of the objective: where one local step comes to rest.

Fails: unequal numbers of steps; several steps move it off the optimum
"""


def fixed_point(A, c, p, alpha, taus):
    W = p[:, None, None] * A
    return np.linalg.solve(W.sum(axis=0), np.einsum("iab,ib->a", W, c))
