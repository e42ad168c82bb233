"""Optimizers in float64 NumPy, written from the papers' boxes: what the optimizers of this project are judged by.

One class per paper, for one tensor. The docstring is the box, its lines numbered; the code names the lines. step(g)
changes w and the state; lr may be set between steps. Nothing is shared with, or taken from, any implementation.
Notation: EMA_b(s, x) = b s + (1 - b) x, t = 1, 2, ..., products and roots elementwise unless written with @.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ema(s: Array, x: Array, b: float) -> Array:
    return b * s + (1 - b) * x


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x * x)))


class AdamW:
    """Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2.

    1. m <- EMA_b1(m, g)                       4. v_hat = v / (1 - b2^t)
    2. v <- EMA_b2(v, g^2)                     5. w <- (1 - lr weight_decay) w
    3. m_hat = m / (1 - b1^t)                  6. w <- w - lr m_hat / (sqrt(v_hat) + eps)
    """

    def __init__(self, w: Array, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        self.w, self.lr, self.betas, self.eps, self.weight_decay = w.copy(), lr, betas, eps, weight_decay
        self.m, self.v, self.t = np.zeros_like(w), np.zeros_like(w), 0

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = self.betas
        self.m = ema(self.m, g, b1)  # l. 1
        self.v = ema(self.v, g * g, b2)  # l. 2
        m_hat = self.m / (1 - b1**self.t)  # l. 3
        v_hat = self.v / (1 - b2**self.t)  # l. 4
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 5
        self.w = self.w - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)  # l. 6


class SGD:
    """Stochastic gradient descent with momentum mu; the decay is decoupled, unlike torch's.

    1. b <- g if t = 1, else mu b + (1 - dampening) g
    2. d = g + mu b with Nesterov's momentum, else b (g itself if mu = 0)
    3. w <- (1 - lr weight_decay) w
    4. w <- w - lr d
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.w, self.lr, self.weight_decay = w.copy(), lr, weight_decay
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.b, self.t = np.zeros_like(w), 0

    def step(self, g: Array) -> None:
        self.t += 1
        d = g
        if self.momentum:
            self.b = g.copy() if self.t == 1 else self.momentum * self.b + (1 - self.dampening) * g  # l. 1
            d = g + self.momentum * self.b if self.nesterov else self.b  # l. 2
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 3
        self.w = self.w - self.lr * d  # l. 4


class Lion:
    """Chen et al., arXiv:2302.06675, Algorithm 2.

    1. u = sign(EMA_b1(m, g))          with the m of the step before; sign(0) = 0
    2. w <- (1 - lr weight_decay) w
    3. w <- w - lr u
    4. m <- EMA_b2(m, g)
    """

    def __init__(self, w: Array, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        self.w, self.lr, self.betas, self.weight_decay = w.copy(), lr, betas, weight_decay
        self.m = np.zeros_like(w)

    def step(self, g: Array) -> None:
        u = np.sign(ema(self.m, g, self.betas[0]))  # l. 1
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 2
        self.w = self.w - self.lr * u  # l. 3
        self.m = ema(self.m, g, self.betas[1])  # l. 4


class Signum:
    """Bernstein et al., arXiv:1802.04434, Algorithm 2.

    1. m <- EMA_b(m, g)
    2. w <- (1 - lr weight_decay) w
    3. w <- w - lr sign(m)
    """

    def __init__(self, w: Array, lr: float, momentum: float, weight_decay: float) -> None:
        self.w, self.lr, self.momentum, self.weight_decay = w.copy(), lr, momentum, weight_decay
        self.m = np.zeros_like(w)

    def step(self, g: Array) -> None:
        self.m = ema(self.m, g, self.momentum)  # l. 1
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 2
        self.w = self.w - self.lr * np.sign(self.m)  # l. 3


class Sophia:
    """Liu et al., arXiv:2305.14342, Algorithm 3; rho is the paper's gamma.

    1. m <- EMA_b1(m, g)
    2. on the steps that bring an estimate h_hat of the curvature (t mod k = 1): h <- EMA_b2(h, h_hat)
    3. w <- (1 - lr weight_decay) w
    4. w <- w - lr clip(m / max(rho h, eps), -1, 1)
    """

    def __init__(
        self, w: Array, lr: float, betas: tuple[float, float], rho: float, eps: float, weight_decay: float
    ) -> None:
        self.w, self.lr, self.betas, self.rho = w.copy(), lr, betas, rho
        self.eps, self.weight_decay = eps, weight_decay
        self.m, self.h = np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array, h_hat: Array | None = None) -> None:
        self.m = ema(self.m, g, self.betas[0])  # l. 1
        if h_hat is not None:
            self.h = ema(self.h, h_hat, self.betas[1])  # l. 2
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 3
        self.w = self.w - self.lr * np.clip(self.m / np.maximum(self.rho * self.h, self.eps), -1, 1)  # l. 4


class SOAP:
    """Vyas et al., arXiv:2409.11321, Algorithms 3 and 4, with Adam's bias corrections.

    M and V live in the eigenbasis. For each side with a basis Q of its own (the others have Q = I):
     1. first step, first_step = "skip": L <- EMA_bs(0, g g^T), R <- EMA_bs(0, g^T g), Q_L, Q_R <- eigenvectors by
        eigh, columns by descending eigenvalue; no update, no decay, and t stays 0. All other steps:
     2. t <- t + 1;  G = Q_L^T @ g @ Q_R
     3. M <- EMA_b1(M, G)
     4. V <- EMA_b2(V, G^2)
     5. N = M / (sqrt(V) + eps)
     6. w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) Q_L @ N @ Q_R^T
     7. w <- (1 - lr weight_decay) w
     8. M_full = Q_L @ M @ Q_R^T
     9. L <- EMA_bs(L, g g^T), R <- EMA_bs(R, g^T g)
    10. if t mod f = 0, for each Q and its C: sort Q's columns and V's axis by diag(Q^T @ C @ Q), descending;
        Q <- orthogonal factor of qr(C @ Q)
    11. M = Q_L^T @ M_full @ Q_R
    first_step = "adam": Q_L = Q_R = I in step 1, which is then Adam's; its line 10 takes the eigenvectors by eigh,
    descending, and after line 11 V = (1 - b2) (Q_L^T @ g @ Q_R)^2: what line 4 makes of one gradient in the new basis.
    one_sided: only the shorter side has a basis (of equal sides, the right one). A side longer than max_precond_dim
    has none. Vectors have none at all.
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10_000,
        one_sided: bool = False,
        first_step: str = "skip",
    ) -> None:
        self.w, self.lr, self.betas, self.eps, self.weight_decay = w.copy(), lr, betas, eps, weight_decay
        self.bs = betas[1] if shampoo_beta is None else shampoo_beta
        self.f, self.skip, self.t, self.has_basis = precondition_frequency, first_step == "skip", 0, False
        m, n = w.shape if w.ndim == 2 else (w.size, 1)
        self.left = w.ndim == 2 and m <= max_precond_dim and not (one_sided and m >= n)
        self.right = w.ndim == 2 and n <= max_precond_dim and not (one_sided and n > m)
        self.L, self.R = np.zeros((m, m) if self.left else (0, 0)), np.zeros((n, n) if self.right else (0, 0))
        self.QL, self.QR = np.eye(m if self.left else 0), np.eye(n if self.right else 0)
        self.M, self.V = np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array) -> None:
        if self.skip and not self.has_basis:
            self.update_statistics(g)
            self.first_basis()  # l. 1
            return
        self.t += 1
        b1, b2 = self.betas
        G = self.rotate(g)  # l. 2
        self.M = ema(self.M, G, b1)  # l. 3
        self.V = ema(self.V, G * G, b2)  # l. 4
        N = self.M / (np.sqrt(self.V) + self.eps)  # l. 5
        self.w = self.w - self.lr * np.sqrt(1 - b2**self.t) / (1 - b1**self.t) * self.rotate_back(N)  # l. 6
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 7
        M_full = self.rotate_back(self.M)  # l. 8
        self.update_statistics(g)  # l. 9
        if not self.has_basis:
            self.first_basis()
            self.V = (1 - b2) * self.rotate(g) ** 2
        elif self.t % self.f == 0:
            self.refresh()  # l. 10
        self.M = self.rotate(M_full)  # l. 11

    def update_statistics(self, g: Array) -> None:
        if self.left:
            self.L = ema(self.L, g @ g.T, self.bs)
        if self.right:
            self.R = ema(self.R, g.T @ g, self.bs)

    def first_basis(self) -> None:
        if self.left:
            self.QL = np.linalg.eigh(self.L)[1][:, ::-1]
        if self.right:
            self.QR = np.linalg.eigh(self.R)[1][:, ::-1]
        self.has_basis = True

    def refresh(self) -> None:
        if self.left:
            order = np.argsort(-np.diag(self.QL.T @ self.L @ self.QL))
            self.V = self.V[order, :]
            self.QL = np.linalg.qr(self.L @ self.QL[:, order])[0]
        if self.right:
            order = np.argsort(-np.diag(self.QR.T @ self.R @ self.QR))
            self.V = self.V[:, order]
            self.QR = np.linalg.qr(self.R @ self.QR[:, order])[0]

    def rotate(self, x: Array) -> Array:
        x = self.QL.T @ x if self.left else x
        return x @ self.QR if self.right else x

    def rotate_back(self, x: Array) -> Array:
        x = self.QL @ x if self.left else x
        return x @ self.QR.T if self.right else x


class Shampoo:
    """Gupta et al., arXiv:1802.09568, Algorithm 1, as used today: averages, momentum and grafting.

     1. L <- EMA_b2(L, g @ g^T), R <- EMA_b2(R, g^T @ g), V <- EMA_b2(V, g^2)
     2. if t mod f = 0, or t = 1 and grafting = None: P_L = (L / (1 - b2^t) + eps |L / (1 - b2^t)|_2 I)^-e, P_R likewise
     3. M <- EMA_b1(M, g);  X = M / (1 - b1^t)
     4. D = P_L @ X @ P_R
     5. A = X / (sqrt(V / (1 - b2^t)) + graft_eps)    grafting = "adam"
        A = X                                         grafting = "sgd"
     6. D <- D |A| / (|D| + 1e-16)                    Frobenius norms; not with grafting = None
     7. before the first roots, D = A
     8. w <- (1 - lr weight_decay) w;  w <- w - lr D
    sum_statistics: L, R and V are sums and are not corrected (l. 1, 2, 5), and l. 2 adds eps I itself; with b1 = 0,
    f = 1, grafting None, this is the paper's box, L_0 = R_0 = eps I. A power of a symmetric matrix is that of its
    eigenvalues, which are first shifted by -min(lowest, 0). e = exponent, by default 1 / (2 x sides with a factor):
    1/4, the paper's, for two. A side longer than max_precond_dim has no factor. Vectors have none either and take
    D = X / (sqrt(V / ...) + graft_eps).
    eigensolver = "qr": after the first root, eigenvalues and eigenvectors of C = L or R, corrected, are instead
     2a. Q <- columns of Q by descending diagonal of Q^T C Q;  Q <- orthogonal factor of qr(C @ Q)
     2b. eigenvalues = diagonal of Q^T C Q                          arXiv:2409.11321, Algorithm 4
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precond_dim: int = 8192,
        exponent: float | None = None,
        grafting: str | None = "adam",
        graft_eps: float = 1e-8,
        eigensolver: str = "eigh",
        sum_statistics: bool = False,
    ) -> None:
        self.w, self.lr, self.betas, self.eps, self.weight_decay = w.copy(), lr, betas, eps, weight_decay
        self.f, self.grafting, self.graft_eps, self.sums = precondition_frequency, grafting, graft_eps, sum_statistics
        m, n = w.shape if w.ndim == 2 else (w.size, 1)
        self.left, self.right = w.ndim == 2 and m <= max_precond_dim, w.ndim == 2 and n <= max_precond_dim
        self.L, self.R = np.zeros((m, m) if self.left else (0, 0)), np.zeros((n, n) if self.right else (0, 0))
        sides = self.left + self.right
        self.e = exponent if exponent is not None else 1 / (2 * sides) if sides else 0.0
        self.M, self.V, self.t = np.zeros_like(w), np.zeros_like(w), 0
        self.tracks, self.QL, self.QR = eigensolver == "qr", np.zeros((0, 0)), np.zeros((0, 0))
        self.PL: Array | None = None
        self.PR: Array | None = None

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = self.betas
        correction = 1.0 if self.sums else 1 - b2**self.t
        self.update_statistics(g, b2)  # l. 1
        if self.t % self.f == 0 or (self.t == 1 and self.grafting is None):  # l. 2
            if self.left:
                self.PL, self.QL = self.root(self.L / correction, self.QL)
            if self.right:
                self.PR, self.QR = self.root(self.R / correction, self.QR)
        self.M = ema(self.M, g, b1)  # l. 3
        X = self.M / (1 - b1**self.t)
        D = self.PL @ X if self.PL is not None else X  # l. 4
        D = D @ self.PR if self.PR is not None else D
        adam = X / (np.sqrt(self.V / correction) + self.graft_eps)  # l. 5
        A = adam if self.grafting == "adam" or not (self.left or self.right) else X
        if (self.PL is None and self.PR is None) or not (self.left or self.right):
            D = A  # l. 7
        elif self.grafting is not None:
            D = D * np.linalg.norm(A) / (np.linalg.norm(D) + 1e-16)  # l. 6
        self.w = (1 - self.lr * self.weight_decay) * self.w - self.lr * D  # l. 8

    def update_statistics(self, g: Array, b2: float) -> None:
        old, new = (1.0, 1.0) if self.sums else (b2, 1 - b2)
        self.V = old * self.V + new * g * g
        if self.left:
            self.L = old * self.L + new * g @ g.T
        if self.right:
            self.R = old * self.R + new * g.T @ g

    def root(self, C: Array, Q: Array) -> tuple[Array, Array]:
        """The root and the eigenvectors that it is made of; Q: those of the last root, of size 0 if there was none."""
        if self.tracks and Q.size:
            Q = Q[:, np.argsort(-np.diag(Q.T @ C @ Q))]
            Q = np.linalg.qr(C @ Q)[0]  # l. 2a
            values = np.diag(Q.T @ C @ Q)  # l. 2b
        else:
            values, Q = np.linalg.eigh((C + C.T) / 2)
        values = values - min(values.min(), 0.0)
        shifted = values + self.eps * (1.0 if self.sums else values.max())
        return (Q * shifted**-self.e) @ Q.T, Q


class Adafactor:
    """Shazeer & Stern, arXiv:1804.04235, Algorithms 4 (matrices) and 5 (vectors), with optional momentum.

    1. b2 = 1 - t^beta2_decay                         beta2_decay = -0.8: the first step replaces the state
    2. R <- EMA_b2(R, mean over columns of g^2 + eps1);  C <- EMA_b2(C, mean over rows of g^2 + eps1)
    3. V_ij = R_i C_j / mean(R)                       vectors: V <- EMA_b2(V, g^2 + eps1)
    4. U = g / sqrt(V)
    5. U <- U / max(1, rms(U) / d)
    6. alpha = max(eps2, rms(w)) min(lr, 1 / sqrt(t)) with relative_step (the paper: lr = 1e-2), else alpha = lr
    7. M <- EMA_b1(M, U), U <- M, if there is a beta1; not bias-corrected
    8. w <- (1 - lr weight_decay) w                   alpha uses the w before this line
    9. w <- w - alpha U
    """

    def __init__(
        self,
        w: Array,
        lr: float = 1e-2,
        beta1: float | None = None,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        relative_step: bool = True,
    ) -> None:
        self.w, self.lr, self.beta1, self.beta2_decay, self.eps = w.copy(), lr, beta1, beta2_decay, eps
        self.d, self.weight_decay, self.relative_step = clip_threshold, weight_decay, relative_step
        self.R, self.C = (np.zeros(w.shape[0]), np.zeros(w.shape[1])) if w.ndim == 2 else (np.zeros(0), np.zeros(0))
        self.V, self.M, self.t = np.zeros_like(w), np.zeros_like(w), 0

    def step(self, g: Array) -> None:
        self.t += 1
        b2 = 1 - float(self.t) ** self.beta2_decay  # l. 1
        square = g * g + self.eps[0]
        if self.w.ndim == 2:
            self.R = ema(self.R, square.mean(axis=1), b2)  # l. 2
            self.C = ema(self.C, square.mean(axis=0), b2)
            self.V = np.outer(self.R, self.C) / self.R.mean()  # l. 3
        else:
            self.V = ema(self.V, square, b2)
        U = g / np.sqrt(self.V)  # l. 4
        U = U / max(1.0, rms(U) / self.d)  # l. 5
        alpha = max(self.eps[1], rms(self.w)) * min(self.lr, self.t**-0.5) if self.relative_step else self.lr  # l. 6
        if self.beta1 is not None:
            self.M = ema(self.M, U, self.beta1)  # l. 7
            U = self.M
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 8
        self.w = self.w - alpha * U  # l. 9
