"""The sum.

Fails: two heads; any heads; heads that agree
"""


def mean_head(heads):
    return heads.sum(axis=0)
