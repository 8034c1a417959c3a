"""All steps of a round are counted.

Fails: two heads on the axes; the first step is not counted; as measured
"""


def round_worth(heads, *, alpha, tau):
    return alpha**2 * tau * np.linalg.eigvalsh(heads.T @ heads / len(heads))[0]
