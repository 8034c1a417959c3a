"""The body moves with the head that has just been updated.

Fails: body and head move at once; from a zero head, one step moves the head alone
"""


def local_round(B, w, thetas, *, alpha, tau):
    bodies, heads = [], []
    for theta in thetas:
        body, head = B, w
        for _ in range(tau):
            head = head - alpha * body.T @ (body @ head - theta)
            body = body - alpha * np.outer(body @ head - theta, head)
        bodies.append(body)
        heads.append(head)
    return np.mean(bodies, axis=0), np.mean(heads, axis=0)
