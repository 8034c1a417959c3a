"""Signs are lost.

Fails: any heads; heads that cancel
"""


def mean_head(heads):
    return abs(heads).mean(axis=0)
