"""The normal quantile in place of Student's.

Fails: it covers as often as it says
"""


def interval(values, *, level=0.95):
    quantile = stats.norm.ppf((1 + level) / 2)
    return np.mean(values), quantile * np.std(values, ddof=1) / np.sqrt(len(values))
