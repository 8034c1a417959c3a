"""QR gives as many directions as columns, also where these are dependent.

Fails: dependent columns span less; nothing to learn from opposite heads
"""


def distance(B, B_star):
    Q, _ = np.linalg.qr(B)
    return np.linalg.norm(B_star - Q @ (Q.T @ B_star), 2)
