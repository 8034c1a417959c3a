"""The Frobenius norm in place of the spectral one.

Fails: the norm is the spectral one; dependent columns span less;
    no run of one step gets below
"""


def distance(B, B_star):
    U, s, _ = np.linalg.svd(B, full_matrices=False)
    U = U[:, s > 1e-10 * max(s[0], 1e-300)]
    return np.linalg.norm(B_star - U @ (U.T @ B_star))
