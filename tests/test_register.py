import torch

from genfast._register import reference_vjp, wants_double_backward


def test_vjp_counts_a_dependent_input_once():
    """Where one argument was computed from another, the gradient of each is the partial derivative."""
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = x * 2
    gx, gy = reference_vjp(lambda a, b: a * b, (x, y), (torch.ones(3, dtype=torch.float64),))
    assert torch.equal(gx, y)
    assert torch.equal(gy, x)


def test_vjp_is_differentiable_in_inputs_and_cotangents():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, g: reference_vjp(lambda a: a**3, (x,), (g,))[0], (x, g))


def test_vjp_of_unused_and_absent():
    x = torch.ones(2, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    constant = torch.ones(2)
    grads = reference_vjp(lambda a, b, c: (a * c, a + 1), (x, unused, constant), (torch.ones(2), None))
    assert torch.equal(grads[0], constant)
    assert grads[1] is None
    assert grads[2] is None


def test_double_backward_is_wanted_only_with_a_graph():
    x = torch.ones(2, requires_grad=True)
    assert wants_double_backward(None, x)
    assert not wants_double_backward(x.detach())
    with torch.no_grad():
        assert not wants_double_backward(x)
