"""Parameters: what names, patterns, module types and `Exclude` choose; the steps that weights can take."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from blackbox.adapters import from_callable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, bias=False)
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))


ALL = {"scale", "first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight", "head.weight"}
ALL |= {"head.bias"}
CONVOLUTIONS = {"first.weight", "first.bias", "second.weight"}
CHOICES = [
    (None, ALL),
    ("head.*", {"head.weight", "head.bias"}),
    (nn.Conv2d, CONVOLUTIONS),
    ([nn.Conv2d, nn.Linear], CONVOLUTIONS | {"head.weight", "head.bias"}),
    ([nn.Conv2d, "head.weight"], CONVOLUTIONS | {"head.weight"}),
    (["*.weight", zo.Exclude(nn.BatchNorm2d)], {"first.weight", "second.weight", "head.weight"}),
    ([zo.Exclude(nn.BatchNorm2d, "*.bias", "scale")], {"first.weight", "second.weight", "head.weight"}),
    (zo.Exclude("*.bias"), ALL - {"first.bias", "norm.bias", "head.bias"}),
    ([nn.modules.batchnorm._BatchNorm], {"norm.weight", "norm.bias"}),
]


@pytest.mark.parametrize(("choices", "expected"), CHOICES, ids=range(len(CHOICES)))
def test_choices(choices, expected):
    network = Net()
    parameters = zo.estimators.Parameters(network, choices)
    assert set(parameters.names) == expected
    order = [name for name, _ in network.named_parameters() if name in expected]
    assert list(parameters.names) == order
    assert parameters.size == sum(network.get_parameter(name).numel() for name in expected)


@pytest.mark.parametrize(
    "choice",
    [None, "*.weight", "first.*", nn.Conv2d, nn.Module, [zo.Exclude("*.bias")], ["*.weight", "*.bias"]],
)
def test_frozen_parameters_are_chosen_by_their_full_names_or_a_star_only(choice):
    """A pattern or a type that meant the layers would move the frozen ones among them, in silence."""
    network = Net()
    network.first.requires_grad_(False)
    try:
        names = zo.estimators.Parameters(network, choice).names
    except zo.errors.ParameterError as error:
        assert "requires_grad=False" in str(error)
        names = ()
    assert not any(name.startswith("first.") for name in names)
    both = zo.estimators.Parameters(network, ["first.weight", *names])
    assert set(both.names) == {"first.weight", *names}
    assert {"first.weight", "first.bias"} < set(zo.estimators.Parameters(network, "*").names)


def test_a_frozen_weight_that_a_pattern_covers_is_not_trained():
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    network[0].requires_grad_(False)
    gradient = zo.LossGradient(
        network, lambda n, x: n(x).square().mean(dim=1), zo.CGE(1e-3), parameters="*.weight"
    )
    gradient.backward(torch.randn(8, 4))
    gradient.backward(torch.randn(8, 4))  # it is still the same choice
    assert network[0].weight.grad is None and network[2].weight.grad.any()


def test_a_sparse_gradient_that_is_there_is_added_to():
    network = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    words = torch.tensor([[0, 1, 2, 1], [3, 4, 4, 1]])
    network(words).square().mean(dim=1).mean().backward()
    expected = network[0].weight.grad.to_dense() * 2
    assert network[0].weight.grad.is_sparse
    zo.LossGradient(network, lambda n, x: n(x).square().mean(dim=1), zo.CGE(1e-6, central=True)).backward(
        words
    )
    assert torch.allclose(network[0].weight.grad, expected, rtol=1e-6, atol=1e-9)


def test_a_tied_parameter_answers_to_each_name_and_type():
    network = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    network["out"].weight = network["embed"].weight
    for choice in ("embed.weight", "out.weight", nn.Linear, nn.Embedding):
        assert zo.estimators.Parameters(network, [choice]).names == ("embed.weight",)
    with pytest.raises(zo.errors.ParameterError, match="found none"):
        zo.estimators.Parameters(network, [zo.Exclude("out.*")])


def test_a_type_reaches_weights_under_a_parametrization():
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.Conv2d(1, 1, 1))
    names = zo.estimators.Parameters(network, nn.Linear).names
    assert len(names) == 3 and all(name.startswith("0.") for name in names)


BAD = [
    (["hed.weight"], ["'hed.weight'", "head.weight"]),
    ([nn.ConvTranspose2d], ["ConvTranspose2d", "BatchNorm2d, Conv2d, Linear, Net"]),
    (["*.weight", zo.Exclude(nn.GroupNorm)], ["GroupNorm", "matches none"]),
    ([nn.ReLU], ["ReLU", "matches none"]),
    ([int], ["module types", "int"]),
    ([nn.Linear(1, 1)], ["give its name"]),
    ([], ["found none"]),
    (["first.bias", zo.Exclude(nn.Conv2d)], ["found none"]),
]


@pytest.mark.parametrize(("choices", "words"), BAD, ids=range(len(BAD)))
def test_bad_choices_are_named_errors(choices, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ParameterError) as raised:
        zo.estimators.Parameters(Net(), choices)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("chosen", [None, ["spectrum"]], ids=["all", "by name"])
def test_complex_parameters_are_refused_by_name(chosen):
    network = nn.ParameterDict({"gain": torch.ones(2), "spectrum": torch.ones(3, dtype=torch.complex64)})
    with pytest.raises(zo.errors.ParameterError) as raised:
        zo.estimators.Parameters(network, chosen)
    assert all(word in str(raised.value) for word in ("'spectrum'", "complex64", "view_as_complex"))
    assert zo.estimators.Parameters(network, ["gain"]).names == ("gain",)


@pytest.mark.parametrize("batch", [np.ones((3, 2)), (torch.ones(3, 2), {"y": np.ones(3, dtype=np.float32)})])
@pytest.mark.parametrize("evaluator", ["auto", "loop"])
def test_a_batch_with_numpy_arrays_is_refused_with_the_mend(batch, evaluator):
    network = nn.Linear(2, 1)
    gradient = zo.LossGradient(
        network, lambda network, batch: network(torch.ones(3, 2))[:, 0], zo.CGE(1e-3), evaluator=evaluator
    )
    with pytest.raises(
        zo.errors.ObjectiveError, match=r"NumPy arrays \(float(64|32) of shape.*torch\.from_numpy"
    ):
        gradient.backward(batch)
    assert network.weight.grad is None


def test_parameters_without_axes_are_split_like_others():
    parameters = zo.estimators.Parameters(nn.ParameterList([torch.tensor(2.0), torch.ones(2, 1)]))
    assert [tuple(t.shape) for t in parameters.split(torch.zeros(3))] == [(), (2, 1)]
    assert [tuple(t.shape) for t in parameters.split(torch.zeros(5, 3))] == [(5,), (5, 2, 1)]


def test_steps_are_those_of_each_weight_in_its_own_floats():
    """Beside a float64 layer a float32 weight of 1 still moves by a multiple of its own last place."""
    network = nn.ParameterList([torch.tensor([1.0]), torch.tensor([1.0]).double()])
    steps = zo.estimators.Parameters(network).steps(torch.tensor([0, 1]), 1e-4)
    assert steps[0] == (torch.tensor(1.0) + 1e-4 - 1).double() != 1e-4
    assert steps[1] == (torch.tensor(1.0).double() + 1e-4) - 1


class Views(nn.Module):
    """Parameters that are views of one memory."""

    def __init__(self, *views) -> None:
        super().__init__()
        self.held = nn.ParameterList([nn.Parameter(view) for view in views])

    def forward(self, x):
        return x * sum(view.sum() for view in self.held)


def test_views_that_interleave_and_share_nothing_are_taken():
    memory = torch.randn(10, 2)
    network = Views(memory[:, 0], memory[:, 1])
    assert zo.estimators.Parameters(network).size == 20
    memory = torch.randn(12)
    network = Views(memory[:6], memory[6:])
    gradient = zo.LossGradient(network, lambda n, x: n(x)[:, 0], zo.CGE(1e-3), evaluator="loop")
    gradient.backward(torch.ones(3, 1))
    for view in network.held:
        assert torch.allclose(view.grad, torch.ones(6), atol=1e-3)


OVERLAPPING = {
    "same": lambda memory: (memory, memory[:]),
    "by one number": lambda memory: (memory[:6], memory[5:]),
    "strides": lambda memory: (memory[::2], memory[::3]),
    "not neighbours": lambda memory: (memory[0::2], memory[1::2][:2], memory[4:5]),
}


@pytest.mark.parametrize("views", OVERLAPPING.values(), ids=OVERLAPPING)
def test_views_with_a_number_in_common_are_refused(views):
    with pytest.raises(zo.errors.ParameterError, match=r"held\.\d' and 'held\.\d'.*a step of one moves both"):
        zo.estimators.Parameters(Views(*views(torch.randn(12))))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", ["loop", "stacked"])
def test_memory_that_two_layers_share_from_a_later_step_on_is_refused(way, frozen):
    """As by `target.weight.data = online.weight.data`: autograd would see one of the two."""
    network = nn.ModuleDict({"online": nn.Linear(3, 2), "target": nn.Linear(3, 2)})
    network["target"].requires_grad_(not frozen)

    def objective(network, batch):
        return (network["online"](batch) - network["target"](batch.flip(1))).square().mean(dim=1)

    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=way)
    gradient.backward(torch.randn(4, 3))
    network["target"].weight.data = network["online"].weight.data
    with pytest.raises(zo.errors.ParameterError, match=r"online\.weight.*a step of one moves both.*copy_"):
        gradient.backward(torch.randn(4, 3))
    network["target"].weight.data = network["online"].weight.data.clone()
    gradient.backward(torch.randn(4, 3))


def test_an_expanded_parameter_is_refused():
    with pytest.raises(zo.errors.ParameterError, match=r"'held\.0'.*a step of one moves several"):
        zo.estimators.Parameters(Views(torch.randn(1).expand(3)))


@pytest.mark.parametrize("evaluator", ["loop", "auto"])
def test_expanded_buffers_and_frozen_weights_stay_as_they_are(evaluator):
    network = nn.Linear(3, 2)
    network.register_buffer("mask", torch.tensor([[1.0], [2.0]]).expand(2, 5))
    network.frozen = nn.Parameter(torch.ones(1).expand(4), requires_grad=False)

    def objective(network, batch):
        return (network(batch) * network.mask[:, 0] * network.frozen[0]).square().mean(dim=1)

    zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=evaluator).backward(torch.randn(4, 3))
    assert network.weight.grad.any() and network.mask.stride() == (1, 0)
    assert torch.equal(network.mask[:, 4], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "network", [nn.LazyLinear(2), nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d(affine=False))]
)
def test_a_lazy_module_that_has_not_run_is_refused_with_the_mend(network):
    with pytest.raises(zo.errors.ParameterError, match="Run one batch through the network"):
        zo.estimators.Parameters(network)
    network(torch.randn(4, 3))
    assert zo.estimators.Parameters(network).size == 8


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
def test_another_dtype_since_the_gradient_was_made_is_refused(change):
    network = nn.Linear(3, 2)
    gradient = zo.LossGradient(network, lambda n, x: n(x)[:, 0], zo.CGE(1e-3))
    change(network)
    with pytest.raises(zo.errors.ParameterError, match=r"'weight' became (b?float16|float64) of shape"):
        gradient.backward(torch.randn(4, 3).to(network.weight.dtype))


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    return network


def moved_into_another(network: nn.Module) -> None:
    layer = nn.Linear(3, 3)
    layer.weight, layer.bias = network[2].weight, network[2].bias
    network[2] = layer


def untied(network: nn.Module) -> None:
    network[2].weight = nn.Parameter(network[0].weight.detach().clone())


CHANGES = {
    "frozen": lambda network: network[0].requires_grad_(False),
    "added": lambda network: network.append(nn.Linear(3, 3)),
    "'2.weight' was added": untied,
    "came into another module": moved_into_another,
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("way", ["loop", "stacked", "tangents"])
def test_a_network_that_trains_other_weights_since_the_gradient_was_made_is_refused(change, way):
    """Or a frozen weight would be trained on, and a new one not at all."""
    spec = ArraySpec("y", (3,))
    network, box = tied(), from_callable(lambda y: y, inputs=[spec], outputs=[spec])

    def objective(network, batch):
        return box(network(batch)).square().mean(dim=1)

    if way == "tangents":
        gradient = zo.TangentGradient(network, objective, boxes=[box])
    else:
        gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=way)
    gradient.backward(torch.randn(4, 3))
    change(network)
    expected = next(name for name, edit in CHANGES.items() if edit is change)
    with pytest.raises(zo.errors.ParameterError, match=expected):
        gradient.backward(torch.randn(4, 3))


def test_a_chosen_weight_may_be_frozen_and_others_may_come_and_go():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    gradient = zo.LossGradient(
        network, lambda n, x: n(x).square().mean(dim=1), zo.CGE(1e-3), parameters=iter(["0.*"])
    )
    gradient.backward(torch.randn(4, 3))
    network.requires_grad_(False)
    network.append(nn.Linear(3, 3))
    before = network[0].weight.grad.clone()
    gradient.backward(torch.randn(4, 3))
    assert not torch.equal(network[0].weight.grad, before) and network[2].weight.grad is None


def test_a_parameter_under_two_names_in_one_module_is_moved_under_both():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Parameter(torch.randn(3, dtype=torch.float64))

        def forward(self, x):
            return x * self.first + self.second

    network, batch = Both(), torch.randn(4, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(network(batch).square().mean(dim=1).mean(), [network.first])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient = zo.LossGradient(
            network, lambda n, x: n(x).square().mean(dim=1), zo.CGE(1e-6, central=True), evaluator="stacked"
        )
        gradient.backward(batch)
    assert torch.allclose(network.first.grad, expected, rtol=1e-6)
    assert set(gradient.state_dict()["evaluators"].values()) == {"Stacked"}


def gradient_of(way, network, objective, box):
    if way == "tangents":
        exact = zo.tangents.ModelTangent(lambda y: y)
        return zo.TangentGradient(network, objective, boxes=[box], tangent=exact)
    return zo.LossGradient(network, objective, zo.CGE(1e-6, central=True), evaluator=way)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("way", ["loop", "stacked", "tangents"])
def test_hooks_on_parameters_run_and_padding_gets_nothing_as_with_autograd(way):
    spec = ArraySpec("y", (2,))
    box = from_callable(lambda y: y, inputs=[spec], outputs=[spec])
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(12, 2)).double()
    accumulated = []
    network[0].weight.register_hook(lambda gradient: gradient * torch.arange(5.0)[:, None])
    network[2].bias.register_post_accumulate_grad_hook(accumulated.append)
    words = torch.tensor([[0, 1, 2, 1], [3, 4, 4, 1], [2, 2, 0, 3]])
    for _ in range(2):  # the second time it is added
        network(words).square().mean(dim=1).mean().backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    accumulated.clear()
    gradient = gradient_of(way, network, lambda n, x: box(n(x)).square().mean(dim=1), box)
    for _ in range(2):
        gradient.backward(words)
    assert len(accumulated) == 2 and accumulated[0] is network[2].bias
    assert not expected[0][1].any() and expected[0][4].any()
    for parameter, exact in zip(network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, exact, rtol=1e-6, atol=1e-9)


class Tied(nn.Module):
    """A language model whose head has the weight of its embedding, by a layer or by hand."""

    def __init__(self, tied="layer") -> None:
        super().__init__()
        self.tied, self.words = tied, nn.Embedding(4, 3, padding_idx=0)
        self.out = nn.Linear(3, 4, bias=False)
        if tied == "layer":
            self.out.weight = self.words.weight
        else:
            self.out.requires_grad_(False)
        with torch.no_grad():
            self.words.weight.copy_(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        features = self.words(x).tanh()
        if self.tied == "layer":
            return self.out(features)
        return nn.functional.linear(features, self.words.weight)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-6, central=True), zo.RGE(mu=1e-6, q=4000, central=True)])
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
def test_a_padding_word_that_another_layer_reads_too_has_the_gradient_of_that_reading(evaluator, estimator):
    network, words = Tied().double(), torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 0]])

    def squared(y, _):
        return y.square().flatten(1).mean(dim=1)

    squared(network(words), None).mean().backward()
    expected = network.words.weight.grad.clone()
    assert expected[0].any()
    network.zero_grad()
    objective = zo.OutputLoss(squared, targets=lambda batch: batch[0])
    zo.LossGradient(network, objective, estimator, evaluator=evaluator).backward((words,))
    found = network.words.weight.grad
    if isinstance(estimator, zo.CGE):
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    else:
        assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


def test_an_embedding_with_padding_that_is_read_by_hand_is_refused():
    network = Tied("hand").double()
    gradient = zo.LossGradient(network, lambda n, x: n(x).exp().mean(dim=(1, 2)), zo.CGE(1e-6))
    with pytest.raises(zo.errors.ParameterError, match=r"words.weight.*read by hand as well. Tie a layer"):
        gradient.backward(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("way", ["loop", "stacked", "tangents"])
def test_a_sparse_embedding_gets_a_dense_gradient(way):
    """Autograd's is sparse, on which most of torch's functions are not defined."""
    spec = ArraySpec("y", (2,))
    box = from_callable(lambda y: y, inputs=[spec], outputs=[spec])
    network = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    words = torch.tensor([[0, 1, 2, 1], [3, 4, 4, 1], [2, 2, 0, 3]])
    network(words).square().mean(dim=1).mean().backward()
    expected = network[0].weight.grad.to_dense()
    network.zero_grad()
    gradient = gradient_of(way, network, lambda n, x: box(n(x)).square().mean(dim=1), box)
    gradient.backward(words)
    assert torch.allclose(network[0].weight.grad, expected, rtol=1e-6, atol=1e-9)


def test_an_empty_parameter_is_left_out():
    network = nn.Linear(3, 2)
    network.placeholder = nn.Parameter(torch.zeros(0))
    gradient = zo.LossGradient(
        network, lambda n, x: n(x).square().mean(dim=1), zo.CGE(1e-3), evaluator="stacked"
    )
    gradient.backward(torch.randn(4, 3))
    assert gradient.parameters.names == ("weight", "bias") and network.weight.grad.any()


def test_what_is_no_network_objective_or_estimator_is_refused_with_a_sentence():
    network, objective = nn.Linear(3, 2), lambda n, x: n(x).square().mean(dim=1)
    with suppress_type_checks():
        with pytest.raises(zo.errors.ParameterError, match=r"expected an nn.Module, got list.*ModuleDict"):
            zo.LossGradient([network], objective, zo.CGE(1e-3))
        for estimator in (zo.CGE, "cge"):
            with pytest.raises(zo.errors.ConfigurationError, match=r"estimator: expected .* such as zo.CGE"):
                zo.LossGradient(network, objective, estimator)
        with pytest.raises(zo.errors.ConfigurationError, match=r"objective: expected .* got None"):
            zo.LossGradient(network, None, zo.CGE(1e-3))


def test_frozen_ones_in_one_memory_cost_nothing(limits):
    network = nn.ModuleDict({"teacher": nn.Linear(3, 3), "copy": nn.Linear(3, 3), "own": nn.Linear(3, 3)})
    network.teacher.requires_grad_(False)
    network.copy.requires_grad_(False)
    network.copy.weight.data = network.teacher.weight.data
    asked = []
    words = zo.parameters._words
    limits(memory_compared=lambda tensor: asked.append(tensor) or words(tensor))
    zo.parameters.Parameters(network).refuse_replaced(network)
    assert asked == []
    network.own.weight.data = network.teacher.weight.data
    with pytest.raises(zo.errors.ParameterError, match="expected each to have memory of its own"):
        zo.parameters.Parameters(network)
