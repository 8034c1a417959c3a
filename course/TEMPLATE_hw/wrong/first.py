"""The first client alone.

Fails: two heads; any heads; heads that cancel
"""


def mean_head(heads):
    return heads[0]
