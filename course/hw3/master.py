# %% [markdown]
# # Homework 3: Distance and floor
#
# *After Chapters 4 and 5. About 60 minutes. Hand in this notebook.*
#
# The truth is $B_*\in\mathbb R^{d\times k}$ with orthonormal columns; client $i$ has the head $w_i^*$. A body $B$ is judged by $\operatorname{dist}(B)=\|(I-P)B_*\|$, where $P$ projects onto $\operatorname{col}(B)$. Write both functions so that they are right for a body of **any rank**, with dependent columns or a zero one.

# %%
import numpy as np

# %% [markdown]
# **A. The distance.**


# %%
def distance(B, B_star):
    """Return the sine of the largest principal angle; B is (d, any), B_star is (d, k)."""
    # BEGIN SOLUTION
    U, s, _ = np.linalg.svd(B, full_matrices=False)
    U = U[:, s > 1e-10 * max(s[0], 1e-300)]
    return np.linalg.norm(B_star - U @ (U.T @ B_star), 2)
    # END SOLUTION


# %% public: right angle and no angle (1 point)
eye = np.eye(3)
assert np.isclose(distance(2 * eye[:, :1], eye[:, :1]), 0)
assert np.isclose(distance(eye[:, 1:2], eye[:, :1]), 1)

# %% [markdown]
# **B. The floor** that one local step per round never beats, from the one-step theorem of Chapter 5. `heads` has shape $(M,k)$; all clients count equally.


# %%
def floor(B_star, heads, B0):
    """Return the least distance that D-GD could reach from the body B0."""
    # BEGIN SOLUTION
    mean = B_star @ heads.mean(axis=0)
    return distance(np.column_stack([B0, mean]), B_star)
    # END SOLUTION


# %% public: nothing to learn from opposite heads (1 point)
B_star, B0 = np.eye(4)[:, :2], np.array([[0.6, 0.0], [0.0, 1.0], [0.8, 0.0], [0.0, 0.0]])
heads = np.array([[1.0, 2.0], [-1.0, -2.0]])
assert np.isclose(floor(B_star, heads, B0), 0.8)

# %% hidden: the norm is the spectral one (3 points)
rng = np.random.default_rng()
for _ in range(5):
    B = np.linalg.qr(rng.standard_normal((7, 3)))[0]
    truth = np.linalg.qr(rng.standard_normal((7, 3)))[0]
    cosines = np.linalg.svd(truth.T @ B, compute_uv=False)
    assert np.isclose(distance(B, truth), np.sqrt(1 - cosines[-1] ** 2))

# %% hidden: dependent columns span less (3 points)
rng = np.random.default_rng()
truth = np.linalg.qr(rng.standard_normal((6, 2)))[0]
line = rng.standard_normal((6, 1))
alone = np.linalg.norm(truth - line @ (line.T @ truth) / (line.T @ line), 2)
for B in (np.hstack([line, -3 * line]), np.hstack([0 * line, line])):
    assert np.isclose(distance(B, truth), alone)
assert np.isclose(distance(np.zeros((6, 2)), truth), 1)

# %% hidden: the mean head lowers the floor (3 points)
rng = np.random.default_rng()
truth, B0 = np.eye(6)[:, :2], np.eye(6)[:, 3:5]  # at right angles
heads = rng.standard_normal((4, 2)) + 2
assert np.isclose(floor(truth, heads, B0), 1)  # two directions are missing, one is learned
one = np.eye(6)[:, [0, 4]]
assert np.isclose(floor(truth, heads, one), 0, atol=1e-7)
assert np.isclose(floor(truth, np.array([heads[0], -heads[0]]), one), 1)

# %% hidden: no run of one step gets below (3 points)
rng = np.random.default_rng()
truth = np.linalg.qr(rng.standard_normal((8, 3)))[0]
heads = rng.standard_normal((5, 3)) + np.array([1.0, 0.0, 0.0])
B0 = 0.5 * np.linalg.qr(rng.standard_normal((8, 3)))[0]
B, w = B0, np.zeros(3)
low, v, lowest = floor(truth, heads, B), truth @ heads.mean(axis=0), 1.0
for _ in range(2000):
    r = B @ w - v
    B, w = B - 0.1 * np.outer(r, w), w - 0.1 * B.T @ r
    Q = np.linalg.qr(B)[0]
    lowest = min(lowest, np.linalg.norm(truth - Q @ (Q.T @ truth), 2))
assert 0 < low <= lowest + 1e-9
U = np.linalg.qr(np.column_stack([B0, v]))[0]
assert np.isclose(low, np.linalg.norm(truth - U @ (U.T @ truth), 2))

# %% [markdown] written: Why a floor (4 points)
# In your own words and at most eight lines: why can a run with one local step never leave $\operatorname{col}(B_0)+\operatorname{span}(B_*\bar w^*)$, whatever its step sizes? Where does the argument break with two local steps?
# BEGIN SOLUTION
# *Model answer.* With one step all clients use the server's $(B_t,w_t)$, and averaging their gradients replaces $\theta_i$ by its mean $B_*\bar w^*$. The body's gradient is $(B_tw_t-B_*\bar w^*)w_t^\top$: its columns are multiples of a vector in the span of $\operatorname{col}(B_t)$ and $B_*\bar w^*$. By induction every body stays there, whatever the factors in front. With two steps, clients' second gradients use heads of their own, $w_{i,1}$, and the mean of $\theta_iw_{i,1}^\top$ is not $\bar\theta\,\bar w_1^\top$: it contains their covariance, and new directions enter.
#
# *Rubric.* 1: the mean of the gradients contains the heads only through $\bar w^*$. 1: the column space of the gradient. 1: induction. 1: the mean of a product is not the product of the means once heads differ.
# END SOLUTION
