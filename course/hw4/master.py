# %% [markdown]
# # Homework 4: Two steps see the covariance
#
# *After Chapter 6. About 90 minutes. Hand in this notebook.*
#
# Client $i$ has the loss $f_i(B,w)=\frac12|Bw-\theta_i|^2$ with $\theta_i=B_*w_i^*$. In a round every client starts from the server's $(B,w)$ and takes $\tau$ steps of size $\alpha$, body and head **at once**; the server averages. All clients count equally.

# %%
import numpy as np

# %% [markdown]
# **A. The round.** `B` is $(d,k)$, `w` is $(k,)$, `thetas` is $(M,d)$.


# %%
def local_round(B, w, thetas, *, alpha, tau):
    """Return the averaged body and head after one round."""
    # BEGIN SOLUTION
    bodies, heads = [], []
    for theta in thetas:
        body, head = B, w
        for _ in range(tau):
            r = body @ head - theta
            body, head = body - alpha * np.outer(r, head), head - alpha * body.T @ r
        bodies.append(body)
        heads.append(head)
    return np.mean(bodies, axis=0), np.mean(heads, axis=0)
    # END SOLUTION


# %% public: from a zero head, one step moves the head alone (1 point)
B, thetas = np.eye(3)[:, :2], np.array([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])
body, head = local_round(B, np.zeros(2), thetas, alpha=0.5, tau=1)
assert np.allclose(body, B)
assert np.allclose(head, [0.25, 0.25])

# %% hidden: body and head move at once (3 points)
rng = np.random.default_rng()
B, w, theta = rng.standard_normal((4, 2)), rng.standard_normal(2), rng.standard_normal(4)
r = B @ w - theta
B1, w1 = B - 0.1 * np.outer(r, w), w - 0.1 * B.T @ r
body, head = local_round(B, w, theta[None], alpha=0.1, tau=1)
assert np.allclose(body, B1)
assert np.allclose(head, w1)
r = B1 @ w1 - theta
body, head = local_round(B, w, theta[None], alpha=0.1, tau=2)
assert np.allclose(body, B1 - 0.1 * np.outer(r, w1))
assert np.allclose(head, w1 - 0.1 * B1.T @ r)

# %% [markdown]
# **B. Prior and signal.** A round has the form $B'=BP+B_*S$. Give $P$ and $S$, both $(k,k)$.


# %%
def prior_signal(B, w, B_star, heads, *, alpha, tau):
    """Return P and S with B' = B P + B_star S; heads is (M, k)."""
    # BEGIN SOLUTION
    eye, priors, signals = np.eye(B.shape[1]), [], []
    for w_star in heads:
        body, head, P, S = B, w, eye, 0 * eye
        for _ in range(tau):
            shrink = eye - alpha * np.outer(head, head)
            P, S = P @ shrink, S @ shrink + alpha * np.outer(w_star, head)
            r = body @ head - B_star @ w_star
            body, head = body - alpha * np.outer(r, head), head - alpha * body.T @ r
        priors.append(P)
        signals.append(S)
    return np.mean(priors, axis=0), np.mean(signals, axis=0)
    # END SOLUTION


# %% public: from a zero head, one step has no signal (1 point)
P, S = prior_signal(np.eye(4)[:, :2], np.zeros(2), np.eye(4)[:, 1:3], np.eye(2), alpha=0.3, tau=1)
assert np.allclose(P, np.eye(2))
assert np.allclose(S, 0)

# %% hidden: prior and signal make up the body (3 points)
rng = np.random.default_rng()
B, w = rng.standard_normal((5, 2)) / 2, rng.standard_normal(2)
truth, heads = np.linalg.qr(rng.standard_normal((5, 2)))[0], rng.standard_normal((4, 2))
for tau in (1, 2, 3):
    bodies = []
    for theta in heads @ truth.T:
        b, h = B, w
        for _ in range(tau):
            r = b @ h - theta
            b, h = b - 0.1 * np.outer(r, h), h - 0.1 * b.T @ r
        bodies.append(b)
    P, S = prior_signal(B, w, truth, heads, alpha=0.1, tau=tau)
    assert np.allclose(B @ P + truth @ S, np.mean(bodies, axis=0))

# %% [markdown]
# **C. How much the heads differ after one step:** the covariance over clients of their heads $w_{i,1}$.


# %%
def head_covariance(B, w, thetas, *, alpha):
    """Return the (k, k) covariance of the heads after one local step (divide by M)."""
    # BEGIN SOLUTION
    heads = np.array([w - alpha * B.T @ (B @ w - theta) for theta in thetas])
    heads -= heads.mean(axis=0)
    return heads.T @ heads / len(heads)
    # END SOLUTION


# %% public: heads that differ in one direction (1 point)
thetas = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
assert np.allclose(
    head_covariance(np.eye(3)[:, :2], np.zeros(2), thetas, alpha=1.0), np.diag([1.0, 0.0])
)

# %% hidden: what clients share does not count (3 points)
rng = np.random.default_rng()
B, w, thetas = rng.standard_normal((5, 2)), rng.standard_normal(2), rng.standard_normal((6, 5))
found = head_covariance(B, w, thetas, alpha=0.2)
assert np.allclose(found, 0.04 * B.T @ np.cov(thetas.T, bias=True) @ B)
shifted = thetas + rng.standard_normal(5)
assert np.allclose(head_covariance(B, 3 * w, shifted, alpha=0.2), found)
assert np.allclose(head_covariance(B, w, thetas[[0, 0, 0]], alpha=0.2), 0)

# %% [markdown]
# **D. What a round is worth.** Let $\alpha B^\top B=I$, $w=0$ and $\operatorname{col}(B)$ close to the truth. To first order in $\alpha^2$ the norm of the prior is $1-v$. Give $v$ from the heads, $\alpha$ and $\tau$. Mind which moment it is, and which steps count.


# %%
def round_worth(heads, *, alpha, tau):
    """Return v; heads is (M, k)."""
    # BEGIN SOLUTION
    return alpha**2 * (tau - 1) * np.linalg.eigvalsh(heads.T @ heads / len(heads))[0]
    # END SOLUTION


# %% public: two heads on the axes (1 point)
assert np.isclose(round_worth(np.array([[1.0, 0.0], [0.0, 1.0]]), alpha=0.1, tau=2), 0.005)

# %% hidden: the first step is not counted (3 points)
heads = np.random.default_rng().standard_normal((6, 2))
heads -= heads.mean(axis=0)
assert round_worth(heads, alpha=0.1, tau=1) == 0
ratio = round_worth(heads, alpha=0.1, tau=6) / round_worth(heads, alpha=0.1, tau=2)
assert np.isclose(ratio, 5)

# %% hidden: as measured (3 points)
rng = np.random.default_rng()
truth = np.eye(6)[:, :2]
heads = rng.standard_normal((8, 2)) + np.array([1.5, 0.0])
B = np.linalg.qr(truth + 1e-3 * rng.standard_normal((6, 2)))[0] / np.sqrt(alpha := 0.01)
for tau in (2, 4):
    priors = []
    for theta in heads @ truth.T:
        b, h, P = B, np.zeros(2), np.eye(2)
        for _ in range(tau):
            P = P @ (np.eye(2) - alpha * np.outer(h, h))
            r = b @ h - theta
            b, h = b - alpha * np.outer(r, h), h - alpha * b.T @ r
        priors.append(P)
    measured = 1 - np.linalg.norm(np.mean(priors, axis=0), 2)
    assert abs(round_worth(heads, alpha=alpha, tau=tau) / measured - 1) < 0.05

# %% [markdown] written: Covariance or second moment (5 points)
# In C the covariance appears, in D the second moment. Say why each is the right one (five to ten lines), and which of the two guarantees learning even if the server's head is as good as it can be for the average client.
# BEGIN SOLUTION
# *Model answer.* In C all clients start with the same head and add $\alpha B^\top\theta_i$ to a common vector, so what they share, the mean, drops out of their differences. In D the prior of a client is a product of factors $I-\alpha hh^\top$ with its heads themselves, not their deviations; from $w=0$ they are $w_{i,s}\approx\alpha B^\top\theta_i$ for $s\ge1$, and the mean of $hh^\top$ is a second moment. Step 0 uses $w=0$ and does nothing. The second moment is covariance plus $\bar h\bar h^\top$. Its mean part can vanish or point in one direction only, and a server head may add or remove a common vector; the covariance does not depend on it. So diversity, $\lambda_{\min}(\mathrm{Cov})>0$, is what guarantees shrinkage in *all* directions for any server head.
#
# *Rubric.* 1: common part drops out in C. 1: factors hold the heads themselves in D. 1: why step 0 does not count. 1: second moment = covariance + mean part. 1: the covariance guarantees it for any server head.
# END SOLUTION
