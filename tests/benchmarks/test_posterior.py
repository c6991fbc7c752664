"""The Poisson problem's adjoint against differences, and its mesh against a finer one."""

import pytest
import torch

from benchmarks.posterior.poisson import Membrane, measurements, potential
from tests.zo.row_boxes import weights


def test_the_adjoint_is_the_derivative():
    x, box = weights(2, 64).requires_grad_(), Membrane(8)
    assert torch.autograd.gradcheck(lambda x: potential(x, box.torch(x)), x, rtol=1e-4, eps=1e-5)


def test_meshes_converge():
    x = 0.3 * weights(1, 64).numpy()
    fine, middle, coarse = (Membrane(cells)(x) for cells in (64, 32, 16))
    assert abs(fine - middle).max() < 0.6 * abs(fine - coarse).max() < 0.05


def test_what_is_published_fits_its_data_only_where_it_should():
    """No coefficient that is one everywhere gives the published displacements."""
    x = torch.zeros(64).double()
    at = Membrane().torch(x)
    assert measurements().shape == at.shape == (169,)
    assert potential(x, at) > 100


def test_another_mesh_is_refused():
    with pytest.raises(ValueError, match="a multiple of 8, got 12"):
        Membrane(12)
