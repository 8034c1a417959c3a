"""The mean of squares where the covariance is asked for.

Fails: what clients share does not count
"""


def head_covariance(B, w, thetas, *, alpha):
    heads = np.array([w - alpha * B.T @ (B @ w - theta) for theta in thetas])
    return heads.T @ heads / len(heads)
