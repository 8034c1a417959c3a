# %% [markdown]
# # Homework 7: A title
#
# *After Chapter 4. About 60 minutes. Hand in this notebook.*
#
# What is given, and what is to be written.

# %%
import numpy as np


# %%
def mean_head(heads):
    """Return the mean of the rows; heads is (M, k)."""
    # BEGIN SOLUTION
    return np.mean(heads, axis=0)
    # END SOLUTION


# %% public: two heads (1 point)
assert np.allclose(mean_head(np.array([[1.0, 0.0], [0.0, 1.0]])), [0.5, 0.5])

# %% hidden: any heads (3 points)
heads = np.random.default_rng().standard_normal((5, 3))
assert np.allclose(mean_head(heads), heads.sum(axis=0) / 5)

# %% hidden: heads that cancel (3 points)
heads = np.random.default_rng().standard_normal((5, 3))
assert np.allclose(mean_head(np.vstack([heads, -heads])), 0)

# %% hidden: heads that agree (3 points)
assert np.allclose(mean_head(np.ones((4, 2))), 1)

# %% [markdown] written: Why (3 points)
# Why does it vanish if heads come in opposite pairs?
# BEGIN SOLUTION
# *Model answer.* The sum of a pair is zero.
#
# *Rubric.* 3: says so for every pair.
# END SOLUTION
