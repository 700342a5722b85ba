"""A constrained planar layer is invertible as it is stored, for parameters of any size and in every dtype."""

import pytest
import torch

from genfast import ops
from genfast.flows import Planar

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCALES = [1e-3, 1e-1, 1.0, 8.0, 1e2, 1e4, 1e6]


def layers(dim: int, scale: float, dtype: torch.dtype, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n layers of each kind: u anything, near -w, -w itself, and far beyond it."""
    w, noise = (torch.randn(4, n, dim, dtype=torch.float64) for _ in range(2))
    w = w * scale
    u = torch.stack([noise[0] * scale, 1e-3 * scale * noise[1] - w[1], -w[2], noise[3] - 300 * w[3]])
    w, u = w.flatten(0, 1), u.flatten(0, 1)
    fits = (w.to(dtype).isfinite() & u.to(dtype).isfinite()).all(1)
    return w[fits].to(dtype), u[fits].to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 7, 100])
def test_w_u_hat_stays_above_minus_one(dim, dtype):
    for scale in SCALES:
        w, u = layers(dim, scale, dtype, 200)
        u_hat = ops.planar_constrain_u(w, u)
        assert u_hat.dtype == dtype
        assert u_hat.isfinite().all()
        products = w.double() * u_hat.double()
        assert (products.sum(-1) > -1).all(), f"scale {scale}"
        if dtype in (torch.float32, torch.float64):
            t = (w.double() * u.double()).sum(-1)
            rounding = (dim + 16) * torch.finfo(dtype).eps * (products.abs().sum(-1) + (w * u).double().abs().sum(-1))
            want = -torch.nn.functional.logsigmoid(-t) - 1
            assert ((products.sum(-1) - want).abs() <= rounding).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 7, 100])
def test_the_inverse_of_a_constrained_layer_is_finite_and_returns(backend, dim, dtype):
    n = 4 if dim == 100 else 12
    for scale in SCALES:
        w, u = layers(dim, scale, dtype, n)
        u_hat, b = ops.planar_constrain_u(w, u), torch.randn(len(w)).to(dtype)
        w, u_hat, b = (x.to(backend.device) for x in (w, u_hat, b))
        z = (torch.randn(5, dim) * torch.tensor([0.0, 1e-3, 1.0, 3.0, 30.0])[:, None]).to(backend.device, dtype)
        for k in range(len(w)):
            layer = (w[k : k + 1], u_hat[k : k + 1], b[k : k + 1])
            x, log_det = ops.planar_flow(z, *layer)
            if not x.isfinite().all():
                assert dtype == torch.float16, "only float16 is too small for x"
                continue
            back, inverse_log_det = ops.planar_flow_inverse(x, *layer)
            for t in (log_det, back, inverse_log_det):
                assert t.isfinite().all(), f"scale {scale}, w {layer[0]}, u {u[k]}"
            # forward again: the residual is free of the condition of the inverse, up to the rounding of its argument
            again = ops.planar_flow(back.double(), *(t.double() for t in layer))[0]
            w_k, u_k = (t[0].double().abs() for t in layer[:2])
            size = x.double().abs().amax() + u_k.amax()
            error = (again - x.double()).abs().amax()
            eps = torch.finfo(dtype).eps
            assert error <= (dim + 16) * eps * size * (1 + float(w_k.sum() * u_k.amax())), f"scale {scale}"


def test_the_round_trip_at_the_edge_through_the_module():
    planar = Planar(1, 1)
    with torch.no_grad():
        planar.w.fill_(11.7)
        planar.u.fill_(-11.7)
    z = torch.tensor([[0.3], [-2.0]])
    torch.testing.assert_close(planar.inverse(planar(z)[0])[0], z)


def test_gradients_of_the_constraint():
    w, noise = (torch.randn(6, 3, dtype=torch.float64) for _ in range(2))
    for u in (noise, -2 * w + noise, -w, torch.zeros_like(w), -20 * w):
        leaves = (w.clone().requires_grad_(), u.clone().requires_grad_())
        assert torch.autograd.gradcheck(ops.planar_constrain_u, leaves)
        assert torch.autograd.gradcheck(ops.planar_constrain_u, leaves, check_forward_ad=True, check_backward_ad=False)
        assert torch.autograd.gradgradcheck(ops.planar_constrain_u, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_the_constraint_stay_finite(dtype):
    for dim in (1, 4):
        for scale in SCALES:
            w, u = layers(dim, scale, dtype, 50)
            if not len(w):
                continue  # float16 does not hold them
            w[0] = 0
            w, u = w.requires_grad_(), u.requires_grad_()
            u_hat = ops.planar_constrain_u(w, u)
            for g in torch.autograd.grad(u_hat.float().sum(), (w, u)):
                if dtype != torch.float16 or scale == 1.0:  # |u| / |w| may be too large for float16
                    assert g.isfinite().all()
            assert torch.equal(u_hat[0], u[0])


def test_a_very_large_product_does_not_overflow():
    for sign in (1.0, -1.0):
        w = torch.tensor([[1.0, 0.0], [1e15, 3e14], [1e-30, 0.0]], requires_grad=True)
        u = torch.tensor([[sign * 1e30, 1.0], [sign * 1e15, 0.0], [sign * 1e30, 2.0]], requires_grad=True)
        u_hat = ops.planar_constrain_u(w, u)
        assert u_hat.isfinite().all()
        assert ((w.double() * u_hat.double()).sum(-1) > -1).all()


def test_infinite_parameters_give_nan_and_no_plausible_number():
    infinite, one = torch.full((1, 2), torch.inf), torch.ones(1, 2)
    assert ops.planar_constrain_u(infinite, one).isnan().all()
    assert ops.planar_constrain_u(one, infinite).isnan().all()
    assert ops.planar_constrain_u(one.half(), infinite.half()).isnan().all()
