"""The clients' weights are left out.

Fails: unequal weights
"""


def fixed_point(A, c, p, alpha, taus):
    eye = np.eye(A.shape[-1])
    W = np.array([eye - np.linalg.matrix_power(eye - alpha * a, t) for a, t in zip(A, taus)])
    return np.linalg.solve(W.sum(axis=0), np.einsum("iab,ib->a", W, c))
