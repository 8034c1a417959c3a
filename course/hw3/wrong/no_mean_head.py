"""The floor forgets what one step learns: the mean head.

Fails: the mean head lowers the floor; no run of one step gets below
"""


def floor(B_star, heads, B0):
    return distance(B0, B_star)
