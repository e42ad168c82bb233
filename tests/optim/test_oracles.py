"""The oracles themselves, against closed forms and the laws that their boxes imply."""

from typing import Any

import numpy as np
import oracles
import pytest
from oracles import Array


def gradients(*shape: int, steps: int = 30, seed: int = 0) -> Array:
    """Gradients with a common part, so that averages matter: (steps, *shape)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + rng.standard_normal((steps, *shape))


def orthogonal(n: int, seed: int) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def run(oracle: oracles.SOAP | oracles.Shampoo | oracles.Adafactor | oracles.AdamW, gs: Array) -> Array:
    for g in gs:
        oracle.step(g)
    return oracle.w


def test_adamw_by_hand() -> None:
    adam = oracles.AdamW(np.array([1.0, -2.0]), lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.5)
    adam.step(np.array([3.0, -4.0]))
    np.testing.assert_allclose(adam.w, [0.95 - 0.1, -1.9 + 0.1])  # decay, then a sign
    adam.step(np.array([0.0, 4.0]))
    # m_hat = (.75 / .75, 1 / .75); v_hat = (.1875 * 9, 7) / .4375
    expected = [0.85 * 0.95 - 0.1 / np.sqrt(27 / 7), -1.8 * 0.95 - 0.1 * (4 / 3) / 4]
    np.testing.assert_allclose(adam.w, expected)


def test_adamw_adds_eps_to_the_corrected_root() -> None:
    adam = oracles.AdamW(np.zeros(1), lr=1.0, betas=(0.9, 0.999), eps=1.0, weight_decay=0.0)
    adam.step(np.array([3.0]))
    np.testing.assert_allclose(adam.w, [-3 / 4])


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({}, [1.0, 1.0, 1.0]),
        ({"momentum": 0.5}, [1.0, 1.5, 1.75]),
        ({"momentum": 0.5, "dampening": 0.5}, [1.0, 1.0, 1.0]),
        ({"momentum": 0.5, "nesterov": True}, [1.5, 1.75, 1.875]),
    ],
)
def test_sgd_by_hand(settings: dict[str, Any], moves: list[float]) -> None:
    sgd = oracles.SGD(np.zeros(1), lr=0.1, **settings)
    for expected in moves:
        before = sgd.w
        sgd.step(np.ones(1))
        np.testing.assert_allclose(before - sgd.w, [0.1 * expected])


def test_sgd_decay_is_decoupled() -> None:
    sgd = oracles.SGD(np.ones(1), lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(3):
        sgd.step(np.zeros(1))
    np.testing.assert_allclose(sgd.w, [0.95**3])


def test_lion_by_hand() -> None:
    lion = oracles.Lion(np.array([1.0, 1.0, 1.0]), lr=0.1, betas=(0.9, 0.5), weight_decay=1.0)
    lion.step(np.array([2.0, 0.0, -2.0]))
    np.testing.assert_allclose(lion.w, [0.8, 0.9, 1.0])
    np.testing.assert_allclose(lion.m, [1.0, 0.0, -1.0])
    lion.step(np.array([-8.0, 0.0, 10.0]))  # .9 m + .1 g = (.1, 0, .1)
    np.testing.assert_allclose(lion.w, [0.62, 0.81, 0.8])


def test_signum_is_lion_with_equal_betas() -> None:
    gs = gradients(5)
    signum = oracles.Signum(np.ones(5), lr=0.1, momentum=0.8, weight_decay=0.1)
    lion = oracles.Lion(np.ones(5), lr=0.1, betas=(0.8, 0.8), weight_decay=0.1)
    for g in gs:
        signum.step(g)
        lion.step(g)
    np.testing.assert_allclose(signum.w, lion.w)


def test_sophia_by_hand() -> None:
    sophia = oracles.Sophia(np.zeros(4), lr=1.0, betas=(0.5, 0.75), rho=2.0, eps=1e-12, weight_decay=0.0)
    sophia.step(np.array([1.0, -1.0, 1.0, 0.0]), np.array([8.0, 1.0, -8.0, -8.0]))
    # m = (.5, -.5, .5, 0), rho h = (4, .5, -4, -4): unclipped, at the edge, negative curvature, and no gradient
    np.testing.assert_allclose(sophia.w, [-0.125, 1.0, -1.0, 0.0])
    sophia.step(np.zeros(4))
    np.testing.assert_allclose(sophia.w, [-0.1875, 1.5, -2.0, 0.0])  # h unchanged, m halved


def test_soap_with_diagonal_gradients_is_adam_one_step_late() -> None:
    """Their eigenbases are orders of the axes, which change here as the entries take turns to grow."""
    gs = np.stack([np.diag(1 + np.cos(t + np.arange(4)) * np.arange(1, 5)) for t in range(30)])
    soap = oracles.SOAP(np.ones((4, 4)), lr=0.1, betas=(0.9, 0.8), eps=0.3, weight_decay=0.2, precondition_frequency=1)
    m, v, w = np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4))
    soap.step(gs[0])
    np.testing.assert_array_equal(soap.w, w)
    for t, g in enumerate(gs[1:], start=1):
        soap.step(g)
        m, v = 0.9 * m + 0.1 * g, 0.8 * v + 0.2 * g * g
        w = w - 0.1 * np.sqrt(1 - 0.8**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 0.3)
        w = w - 0.1 * 0.2 * w
        np.testing.assert_allclose(soap.w, w, rtol=1e-10)


@pytest.mark.parametrize("first_step", ["skip", "adam"])
@pytest.mark.parametrize("limits", [{}, {"one_sided": True}, {"max_precond_dim": 7}])
def test_soap_is_equivariant_on_the_sides_that_it_rotates(limits: dict[str, Any], first_step: str) -> None:
    """Training in other coordinates gives the same weights in those; Adam's first step alone depends on them."""
    gs, n = gradients(8, 6, steps=25), 6
    U = orthogonal(8, 1) if not limits else np.eye(8)
    Q = orthogonal(n, 2)
    plain = oracles.SOAP(np.zeros((8, n)), lr=0.1, precondition_frequency=3, **limits)
    turned = oracles.SOAP(np.zeros((8, n)), lr=0.1, precondition_frequency=3, **limits)
    if first_step == "adam":
        plain.skip = turned.skip = False
    # The null space of a tall L has no basis of its own, so both start from a full-rank one.
    plain.update_statistics(np.eye(8, n))
    plain.L, plain.R = plain.L + np.diag(np.arange(1, len(plain.L) + 1)), plain.R + np.diag(np.arange(1, n + 1))
    turned.L, turned.R = U @ plain.L @ U.T if plain.left else plain.L, Q @ plain.R @ Q.T
    w, w_turned = run(plain, gs), run(turned, U @ gs @ Q.T)
    difference = np.linalg.norm(U @ w @ Q.T - w_turned) / np.linalg.norm(w)
    assert difference < 1e-8 if first_step == "skip" else difference > 1e-3


def test_soap_that_may_rotate_nothing_is_adam() -> None:
    gs = gradients(5, 3)
    none = oracles.SOAP(np.zeros((5, 3)), lr=0.1, max_precond_dim=2, first_step="adam", eps=0.0)
    adam = oracles.AdamW(np.zeros((5, 3)), lr=0.1, betas=(0.95, 0.95), eps=0.0, weight_decay=0.0)
    np.testing.assert_allclose(run(none, gs), run(adam, gs))
    vector = oracles.SOAP(np.zeros(5), lr=0.1, first_step="adam", eps=0.0)
    adam = oracles.AdamW(np.zeros(5), lr=0.1, betas=(0.95, 0.95), eps=0.0, weight_decay=0.0)
    np.testing.assert_allclose(run(vector, gs[:, :, 0]), run(adam, gs[:, :, 0]))


class VNotPermuted(oracles.SOAP):
    def refresh(self) -> None:
        V = self.V
        super().refresh()
        self.V = V


class MomentumNotRotated(oracles.SOAP):
    def step(self, g: Array) -> None:
        b1 = self.betas[0]
        kept = oracles.ema(self.M, self.rotate(g), b1)
        super().step(g)
        self.M = kept


class BasisBeforeStep(oracles.SOAP):
    def step(self, g: Array) -> None:
        if self.has_basis and (self.t + 1) % self.f == 0:
            M = self.rotate_back(self.M)
            self.L, self.R = oracles.ema(self.L, g @ g.T, self.bs), oracles.ema(self.R, g.T @ g, self.bs)
            self.refresh()
            self.M = self.rotate(M)
        super().step(g)


class FirstStepTaken(oracles.SOAP):
    def step(self, g: Array) -> None:
        if not self.has_basis:
            super().step(g)
        super().step(g)


class Untransposed(oracles.SOAP):
    def rotate(self, x: Array) -> Array:
        return self.QL @ x @ self.QR


@pytest.mark.parametrize("mistake", [VNotPermuted, MomentumNotRotated, BasisBeforeStep, FirstStepTaken, Untransposed])
def test_soap_sees_the_usual_mistakes(mistake: type[oracles.SOAP]) -> None:
    gs = gradients(6, 6, steps=30) * np.array([1, 3, 2, 5, 4, 6])
    right = run(oracles.SOAP(np.zeros((6, 6)), lr=0.1, precondition_frequency=2), gs)
    wrong = run(mistake(np.zeros((6, 6)), lr=0.1, precondition_frequency=2), gs)
    assert np.linalg.norm(right - wrong) > 1e-3 * np.linalg.norm(right)


def test_shampoo_as_in_the_paper_starts_with_the_nearest_orthogonal_matrix() -> None:
    g = gradients(4, 4, steps=1)[0]
    u, s, vt = np.linalg.svd(g)
    paper: dict[str, Any] = {"betas": (0.0, 0.9), "precondition_frequency": 1, "grafting": None, "sum_statistics": True}
    shampoo = oracles.Shampoo(np.zeros((4, 4)), lr=1.0, eps=1e-12, **paper)
    shampoo.step(g)
    np.testing.assert_allclose(shampoo.w, -u @ vt, atol=1e-8)
    halves = oracles.Shampoo(np.zeros((4, 4)), lr=1.0, exponent=0.5, eps=0.0, **paper)
    halves.step(g)
    np.testing.assert_allclose(halves.w, -(u / s) @ vt, rtol=1e-8)


def test_shampoo_of_one_number_is_adagrad_or_adam() -> None:
    gs = gradients(1, 1)
    paper = oracles.Shampoo(np.zeros((1, 1)), 0.1, (0.0, 0.9), 0.0, 0.0, 1, grafting=None, sum_statistics=True)
    expected = -0.1 * (gs / np.sqrt(np.cumsum(gs**2, axis=0))).sum(0)
    np.testing.assert_allclose(run(paper, gs), expected)
    today = oracles.Shampoo(np.zeros((1, 1)), 0.1, (0.9, 0.8), 0.0, 0.1, 1, grafting=None)
    adam = oracles.AdamW(np.zeros((1, 1)), 0.1, (0.9, 0.8), 0.0, 0.1)
    np.testing.assert_allclose(run(today, gs), run(adam, gs))


def test_shampoo_takes_its_length_from_adam() -> None:
    gs = gradients(5, 4)
    shampoo = oracles.Shampoo(np.zeros((5, 4)), lr=0.1, betas=(0.9, 0.8), precondition_frequency=3)
    adam = oracles.AdamW(np.zeros((5, 4)), lr=0.1, betas=(0.9, 0.8), eps=1e-8, weight_decay=0.0)
    for t, g in enumerate(gs, start=1):
        before, adam_before = shampoo.w, adam.w
        shampoo.step(g)
        adam.step(g)
        move, adam_move = shampoo.w - before, adam.w - adam_before
        np.testing.assert_allclose(np.linalg.norm(move), np.linalg.norm(adam_move))
        assert np.allclose(move, adam_move) == (t < 3)  # no roots before step 3


def test_shampoo_without_a_factor_is_adam() -> None:
    for gs in (gradients(4), gradients(3, 4)):
        shampoo = oracles.Shampoo(np.ones(gs[0].shape), 0.1, (0.9, 0.8), weight_decay=0.1, max_precond_dim=2)
        adam = oracles.AdamW(np.ones(gs[0].shape), 0.1, (0.9, 0.8), 1e-8, 0.1)
        np.testing.assert_allclose(run(shampoo, gs), run(adam, gs))


@pytest.mark.parametrize("exponent", [None, 0.5])
def test_shampoo_is_equivariant(exponent: float | None) -> None:
    gs, U, Q = gradients(5, 4, steps=20), orthogonal(5, 1), orthogonal(4, 2)
    settings: dict[str, Any] = {
        "lr": 0.1,
        "precondition_frequency": 3,
        "grafting": "sgd",
        "exponent": exponent,
        "eps": 1e-6,
    }
    w = run(oracles.Shampoo(np.zeros((5, 4)), **settings), gs)
    turned = run(oracles.Shampoo(np.zeros((5, 4)), **settings), U @ gs @ Q.T)
    np.testing.assert_allclose(U @ w @ Q.T, turned, rtol=1e-6, atol=1e-8)


def test_adafactor_first_steps_by_hand() -> None:
    g = np.outer([1.0, -2.0, 3.0], [0.5, -4.0])  # its square has rank one, so that V = g^2
    w = np.full((3, 2), 0.5)
    adafactor = oracles.Adafactor(w)
    adafactor.step(g)
    np.testing.assert_allclose(adafactor.w, w - 0.5 * 1e-2 * np.sign(g))
    plain = oracles.Adafactor(w, lr=0.1, relative_step=False, weight_decay=0.5, beta1=0.75)
    plain.step(g)
    np.testing.assert_allclose(plain.w, 0.95 * w - 0.25 * 0.1 * np.sign(g))


def test_adafactor_of_a_vector_by_hand() -> None:
    b2 = 1 - 2**-0.8
    u = np.array([10.0, 0.5]) / np.sqrt([b2 + (1 - b2) * 100, b2 + (1 - b2) * 0.25])
    clipped = u / np.sqrt((u**2).mean())
    for threshold, expected in ((1.0, clipped), (1.5, u)):
        vector = oracles.Adafactor(np.zeros(2), lr=1.0, relative_step=False, clip_threshold=threshold)
        vector.step(np.array([1.0, -1.0]))
        before = vector.w
        vector.step(np.array([10.0, 0.5]))
        np.testing.assert_allclose(before - vector.w, expected)
    assert np.sqrt((u**2).mean()) > 1  # or the first case would have shown nothing


def test_adafactor_relative_step_is_bounded() -> None:
    start = oracles.Adafactor(np.zeros((2, 2)), lr=10.0)
    for t in range(1, 5):
        before = start.w
        start.step(np.ones((2, 2)))
        np.testing.assert_allclose(before - start.w, np.full((2, 2), max(1e-3, oracles.rms(before)) / np.sqrt(t)))
