"""All clients take the mean number of steps.

Fails: unequal numbers of steps
"""


def fixed_point(A, c, p, alpha, taus):
    eye, tau = np.eye(A.shape[-1]), round(np.mean(taus))
    W = np.array(
        [p_i * (eye - np.linalg.matrix_power(eye - alpha * a, tau)) for a, p_i in zip(A, p)]
    )
    return np.linalg.solve(W.sum(axis=0), np.einsum("iab,ib->a", W, c))
