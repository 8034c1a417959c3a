# %% [markdown]
# # Homework 2: Drift with unequal clients
#
# *After Chapter 2. About 90 minutes. Hand in this notebook.*
#
# Client $i$ has the loss $f_i(\theta)=\frac12(\theta-c_i)^\top A_i(\theta-c_i)$ with a symmetric positive definite $A_i$, and weight $p_i$. Chapter 2 lets all clients take $\tau$ steps. Phones do not: a fast one takes more. Let client $i$ take $\tau_i\ge1$ steps per round, all of size $\alpha$ with $\alpha A_i\prec 2I$; the server averages with weights $p_i$.

# %%
import numpy as np

# %% [markdown]
# **A. One round** from `theta`, played step by step. `A` has shape $(M,d,d)$, `c` is $(M,d)$, `p` and `taus` are $(M,)$.


# %%
def play_round(theta, A, c, p, alpha, taus):
    """Return the server's parameters after one round."""
    # BEGIN SOLUTION
    average = np.zeros_like(theta)
    for A_i, c_i, p_i, tau in zip(A, c, p, taus, strict=True):
        local = theta
        for _ in range(tau):
            local = local - alpha * A_i @ (local - c_i)
        average = average + p_i * local
    return average
    # END SOLUTION


# %% public: a round on the line (1 point)
A, c, p = np.array([[[1.0]], [[1.0]]]), np.array([[0.0], [4.0]]), np.array([0.5, 0.5])
assert np.allclose(play_round(np.array([2.0]), A, c, p, 0.5, [1, 2]), [2.25])

# %% [markdown]
# **B. Where it comes to rest.** Give the point that a round leaves as it is, in closed form: no loop over rounds.


# %%
def fixed_point(A, c, p, alpha, taus):
    """Return the fixed point of `play_round`, shape (d,)."""
    # BEGIN SOLUTION
    eye = np.eye(A.shape[-1])
    W = np.array(
        [
            p_i * (eye - np.linalg.matrix_power(eye - alpha * A_i, tau))
            for A_i, p_i, tau in zip(A, p, taus, strict=True)
        ]
    )
    return np.linalg.solve(W.sum(axis=0), np.einsum("iab,ib->a", W, c))
    # END SOLUTION


# %% public: one step each, equal curvature (1 point)
A, c = np.array([np.eye(2)] * 2), np.array([[0.0, 2.0], [2.0, 0.0]])
assert np.allclose(fixed_point(A, c, np.array([0.5, 0.5]), 0.3, [1, 1]), [1, 1])

# %% hidden: unequal numbers of steps (3 points)
rng = np.random.default_rng()
roots = rng.standard_normal((3, 2, 2))
A = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(2)
alpha = 1 / np.linalg.norm(A, 2, axis=(1, 2)).max()
c, p = rng.standard_normal((3, 2)), np.full(3, 1 / 3)


def rest(p, taus):
    theta = np.zeros(2)
    for _ in range(20_000):
        moved = sum(
            w * (x + np.linalg.matrix_power(np.eye(2) - alpha * a, t) @ (theta - x))
            for w, a, x, t in zip(p, A, c, taus, strict=True)
        )
        if np.abs(moved - theta).max() < 1e-15:
            break
        theta = moved
    return theta


for taus in ([1, 5, 2], [7, 1, 3]):
    assert np.allclose(fixed_point(A, c, p, alpha, taus), rest(p, taus), atol=1e-9)

# %% hidden: unequal weights (3 points)
rng = np.random.default_rng()
A, c = np.array([[[1.0]], [[1.0]], [[1.0]]]), rng.standard_normal((3, 1))
p = rng.dirichlet([1, 2, 5])
for tau in (1, 4):  # equal curvatures, equal steps: the weighted mean of the optima
    assert np.allclose(fixed_point(A, c, p, 0.2, [tau] * 3), p @ c)

# %% hidden: several steps move it off the optimum (3 points)
A, c, p = np.array([[[1.0]], [[4.0]]]), np.array([[0.0], [1.0]]), np.array([0.5, 0.5])
for alpha in (0.05, 0.1, 0.2):
    for tau in (2, 5, 50):
        W = 1 - (1 - alpha * A[:, 0, 0]) ** tau
        assert np.allclose(fixed_point(A, c, p, alpha, [tau, tau]), W[1] / W.sum())

# %% [markdown] written: Unequal steps, proved (6 points)
# Prove: for $0<\alpha A_i\prec2I$ and any $\tau_i\ge1$ the round has exactly one fixed point, and $|\theta_T-\hat\theta|\le\rho^T|\theta_0-\hat\theta|$ with some $\rho<1$. Whom does a client with more steps pull towards itself, and why is that unfair even if all $A_i$ are equal?
# BEGIN SOLUTION
# *Model answer.* A local step maps $\theta-c_i$ to $(I-\alpha A_i)(\theta-c_i)$, so a round is $\theta\mapsto G\theta+h$ with $G=\sum_ip_i(I-\alpha A_i)^{\tau_i}$. The eigenvalues of $I-\alpha A_i$ lie in $(-1,1)$, so $\|(I-\alpha A_i)^{\tau_i}\|\le\rho_i<1$ and $\|G\|\le\rho=\sum_ip_i\rho_i<1$. An affine contraction has exactly one fixed point and approaches it by the factor $\rho$ per round. It solves $\sum_ip_iW_i(\hat\theta-c_i)=0$ with $W_i=I-(I-\alpha A_i)^{\tau_i}$. With equal $A_i=aI$ it is the mean of the $c_i$ with weights proportional to $p_i(1-(1-\alpha a)^{\tau_i})$: for $\alpha a\le 1$ these grow with $\tau_i$, so the server rests nearer to the client that computes more, though $F$ knows nothing of speed.
#
# *Rubric.* 1: the round as an affine map. 2: $\|G\|<1$, with the norm of a power (not only its eigenvalues' sign). 1: uniqueness and rate from it. 1: the weights for equal $A_i$. 1: says against what it is unfair (the objective's weights $p_i$).
# END SOLUTION
