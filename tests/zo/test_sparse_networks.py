"""Networks with sparse matrices, as on graphs: variants stack, silently, to the loop's numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch

NODES = 12
LAYOUTS = {"coo": lambda a: a.to_sparse(), "csr": lambda a: a.to_sparse_csr()}


class GraphNetwork(nn.Module):
    """A weight for each node on what its neighbours have; the adjacency is a sparse buffer."""

    def __init__(self, layout: str, *, buffer: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        adjacency = (torch.rand(NODES, NODES, generator=generator) < 0.3).double()
        self.weight = nn.Parameter(0.1 * torch.ones(NODES, dtype=torch.float64))
        self.last = nn.Linear(NODES, NODES).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that CSR is in beta
            sparse = LAYOUTS[layout](adjacency)
        if buffer:
            self.register_buffer("adjacency", sparse)
        else:
            self.adjacency = sparse

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Of `(rows, nodes)`."""
        return u + 0.1 * self.last(self.weight * torch.sparse.mm(self.adjacency, u.T).T)


BOX = FromTorch(lambda u: u + 0.1 * u**2, (ArraySpec("u", (NODES,)),), (ArraySpec("u", (NODES,)),))


def values(network, batch):
    with torch.no_grad():
        return (network(batch) ** 2).mean(dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("buffer", [True, False])
def test_a_sparse_matrix_stacks_to_the_loops_gradient(layout, buffer):
    batch = torch.rand(4, NODES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", zo.errors.EvaluatorWarning)
        for evaluator in ("stacked", "loop"):
            torch.manual_seed(3)
            network = GraphNetwork(layout, buffer=buffer)
            gradient = zo.LossGradient(network, values, zo.CGE(mu=1e-4), evaluator=evaluator, seed=0)
            gradient.backward(batch)
            grads[evaluator] = torch.cat([p.grad.flatten() for p in network.parameters()])
            assert evaluator in repr(gradient).lower()
    assert torch.allclose(grads["stacked"], grads["loop"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tangents_serve_and_nothing_is_said(layout):
    def through(network, batch):
        return (BOX(network(BOX(network(batch)))) ** 2).mean(dim=1)

    batch = torch.rand(4, NODES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = GraphNetwork(layout)
    gradient = zo.TangentGradient(
        network, through, boxes=[BOX], tangent=zo.tangents.IdentityTangent(), seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            gradient.backward(batch)
    assert network.weight.grad is not None and network.weight.grad.abs().sum() > 0
