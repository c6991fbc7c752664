"""The check of evaluators: it finds a fast one that is wrong, names where, and is silent otherwise."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import OutputError
from tests.networks import UNSTACKABLE
from tests.networks.case import INPUTS
from tests.networks.keeping import Counting
from tests.networks.ordinary import NarrowInside
from tests.networks.treacherous import MomentumEncoder
from tests.networks.unstackable import Asleep, Attending, Transposing
from tests.zo.row_boxes import FromTorch
from zo.evaluators import Step, sentinel


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


def serving(gradient):
    """The names of what evaluates queries."""
    return set(gradient.state_dict()["evaluators"].values())


@pytest.mark.quick_cases(3)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", UNSTACKABLE)
def test_falls_back_to_loop_with_one_warning_and_to_its_bits(name):
    case, gradients = UNSTACKABLE[name], []
    objective = case.objective or mean_square
    for evaluator in ("loop", "stacked"):
        torch.manual_seed(0)
        network, batch = case.make().double(), torch.randn(4, 5, 3).double()
        gradient = zo.LossGradient(network, objective, zo.CGE(1e-6), evaluator=evaluator)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", zo.errors.EvaluatorWarning)
            torch.manual_seed(1)  # of what a network draws itself
            gradient.backward(batch)
            gradient.backward(batch)
        said = [str(w.message) for w in caught if w.category is zo.errors.EvaluatorWarning]
        assert len(said) == (evaluator == "stacked")
        assert all("Stacked" in words and case.word in words for words in said)
        gradients.append(torch.cat([p.grad.flatten() / 2 for p in network.parameters()]))
    assert torch.equal(*gradients)
    if name != "dropout by the function":  # each of whose two steps has another mask
        network.zero_grad()
        objective(network, batch).mean().backward()
        exact = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        assert torch.allclose(gradients[0], torch.cat([p.flatten() for p in exact]), atol=1e-5)


def test_is_silent_and_keeps_the_fast_one_where_they_agree():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator="stacked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(4, 2, 5, 5))
    assert serving(gradient) == {"Stacked"}
    assert (
        gradient.counts.queries == gradient.next_queries() + gradient.counts.checks
    )  # they are paid for, and said
    assert gradient.counts.checks > 0


def test_noise_of_the_objective_is_not_taken_for_a_fault():
    generator = torch.Generator().manual_seed(0)

    def noisy(network, batch):
        noise = torch.randn(len(batch), generator=generator)
        return mean_square(network, batch) + 1e-3 * noise

    gradient = zo.LossGradient(nn.Linear(3, 2), noisy, zo.CGE(0.1, central=True), evaluator="stacked")
    with pytest.warns(zo.errors.NoiseWarning):
        gradient.backward(torch.randn(40, 3))
    assert serving(gradient) == {"Stacked"}


def test_an_error_in_the_objective_itself_is_not_hidden():
    def broken(network, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        zo.LossGradient(nn.Linear(3, 2), broken, zo.CGE(1e-3)).backward(torch.randn(4, 3))


def test_loop_stays_in_use_after_a_fall_back():
    gradient = zo.LossGradient(Transposing(), mean_square, zo.CGE(1e-3), evaluator="stacked")
    with pytest.warns(zo.errors.EvaluatorWarning):
        gradient.backward(torch.randn(4, 5, 3))
    assert serving(gradient) == {"Loop"}


def penalised(network, batch):
    return mean_square(network, batch) + 1e-6 * sum(p.square().sum() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "objective"),
    [(nn.Linear(3, 2), penalised), (Asleep(), mean_square)],
    ids=["penalty", "asleep"],
)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=4)], ids=["cge", "rge"])
def test_a_weight_read_outside_its_layer_is_found_however_little_it_does(network, objective, estimator):
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.warns(zo.errors.EvaluatorWarning, match="read outside its layer"):
        gradient = zo.LossGradient(network, objective, estimator, evaluator="stacked")
        gradient.backward(torch.randn(4, 3))
    assert serving(gradient) == {"Loop"}
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert "forward" not in vars(network)


@pytest.mark.parametrize("how", ["nan", "raises"])
def test_a_box_that_is_down_after_the_base_is_no_fault_of_the_objective(how):
    """What all rows say of hidden weights, they say of weights in sight as well."""
    calls = []

    def goes_down(network, batch):
        calls.append(len(batch))
        if len(calls) == 1:
            return mean_square(network, batch)
        if how == "raises":
            raise ConnectionError("the server does not answer")
        return torch.full((len(batch),), math.nan)

    gradient = zo.LossGradient(nn.Linear(3, 2), goes_down, zo.CGE(1e-3), evaluator="stacked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((zo.errors.FailedQueriesError, ConnectionError)):
            gradient.backward(torch.randn(4, 3))


class Late(nn.Module):
    """From step 2 on it reads weights of its small last layer outside of that layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.head, self.how, self.begun = nn.Linear(3, 4), nn.Linear(4, 2), how, False

    def forward(self, x):
        y = self.head(self.body(x).tanh())
        if not self.begun:
            return y
        return nn.functional.linear(y, self.head.weight[:, :2]) if self.how == "layer" else y


def test_a_chunk_that_cannot_run_at_a_later_step_is_evaluated_in_another_way():
    torch.manual_seed(0)
    network = Attending().double()
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-6), evaluator="stacked", chunk=10)
    for length in (9, 9, 9, 22):  # a chunk of ten queries and a sentinel has 22 rows
        network.zero_grad()
        batch = torch.randn(2, length, 2).double()
        expected = torch.autograd.grad(mean_square(network, batch).mean(), network.parameters())
        if length == 22:
            with pytest.warns(zo.errors.EvaluatorWarning, match="Stacked cannot serve: it could not run"):
                gradient.backward(batch)
        else:
            gradient.backward(batch)
        for parameter, exact in zip(network.parameters(), expected, strict=True):
            assert (parameter.grad - exact).norm() <= 1e-4 * exact.norm() + 1e-8


class Refusing(BlackBoxFunction):
    """Raises on what is not finite."""

    inputs = outputs = (ArraySpec("y", (2,)),)

    def evaluate(self, y):
        return y + 0.1 * y**2


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("how", ["penalty", "layer", "before a box"])
@pytest.mark.parametrize("estimator", [zo.CGE(1e-6), zo.RGE(1e-6, q=4)], ids=["cge", "rge"])
def test_a_weight_that_is_read_outside_its_layer_from_a_later_step_on_is_found_at_once(how, estimator):
    """No check is due between steps 1 and 10, and the drawn query seldom moves the small tensor."""
    box = Refusing()

    def objective(network, batch):
        y = network(batch)
        if how == "before a box":
            y = box(y + network.head.bias if network.begun else y)
        loss = y.square().mean(dim=1)
        return loss + network.head.bias.square().sum() if how == "penalty" and network.begun else loss

    torch.manual_seed(0)
    network = Late(how).double()
    slow = copy.deepcopy(network)
    fast = zo.LossGradient(network, objective, estimator, evaluator="stacked", seed=1, chunk=8)
    truth = zo.LossGradient(slow, objective, estimator, evaluator="loop", seed=1, chunk=8)
    for step in range(3):
        batch = torch.randn(4, 3).double()
        network.begun = slow.begun = step >= 2
        network.zero_grad()
        slow.zero_grad()
        truth.backward(batch)
        if step == 2:
            with pytest.warns(zo.errors.EvaluatorWarning, match="read outside its layer"):
                fast.backward(batch)
        else:
            fast.backward(batch)
        for parameter, right in zip(network.parameters(), slow.parameters(), strict=True):
            assert (parameter.grad - right.grad).norm() <= 1e-6 * right.grad.norm() + 1e-8
    assert serving(fast) == {"Loop"}


def test_rows_that_fail_by_chance_do_not_cost_the_fast_evaluator():
    generator = torch.Generator().manual_seed(0)

    def losing(network, batch):
        lost = torch.rand(len(batch), generator=generator) < 0.02
        return torch.where(lost, float("nan"), mean_square(network, batch))

    gradient = zo.LossGradient(nn.Linear(3, 2), losing, zo.CGE(1e-3), evaluator="stacked", max_dropped=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(10, 3))
    assert serving(gradient) == {"Stacked"}


@pytest.mark.parametrize("call", range(1, 10))  # the base is call 0, the check takes the next nine
def test_one_row_lost_anywhere_in_the_check_does_not_cost_the_fast_evaluator(call):
    calls = 0

    def losing(network, batch):
        nonlocal calls
        loss = mean_square(network, batch)
        if calls == call:
            loss[1] = float("nan")
        calls += 1
        return loss

    gradient = zo.LossGradient(nn.Linear(3, 2), losing, zo.CGE(1e-3), evaluator="stacked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(10, 3))
    assert serving(gradient) == {"Stacked"}


def confident(seed):
    """A trained network, as good as: float32 logits of order ten, and labels that it is sure of."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(2) for layer in (nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU())]
    layers[3] = nn.Linear(24, 24)
    network, x = nn.Sequential(*layers, nn.Linear(24, 5)), torch.randn(32, 8)
    with torch.no_grad():
        network[-1].weight.mul_(15)
        return network, (x, network(x).argmax(1))


CLASSIFIED = zo.OutputLoss(lambda y, label: nn.functional.cross_entropy(y, label, reduction="none"))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("fast", ["stacked", "difference"])
@pytest.mark.parametrize("seed", range(3))
def test_the_rounding_of_confident_rows_is_not_taken_for_a_fault(fast, seed):
    network, batch = confident(seed)
    estimator = zo.CGE(1e-3, zo.RandomCoordinates(5))
    gradient = zo.LossGradient(network, CLASSIFIED, estimator, evaluator=fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            gradient.backward(batch)
    assert serving(gradient) == {fast.capitalize()}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("number", range(8))
def test_a_tenth_too_much_for_one_tensor_is_found_on_confident_rows(number):
    class Off(zo.evaluators.Difference):
        def begin(self, problem, base):
            right = super().begin(problem, base)

            def changes(queries):
                of_chosen = problem.parameters.locate(queries.indices)[0] == chosen
                return right(queries) * torch.where(of_chosen, 1.1, 1.0)[:, None]

            return changes

    network, batch = confident(0)
    names = [
        name for name, _ in network.named_parameters() if name not in ("0.bias", "3.bias")
    ]  # BN's follow
    chosen = [name for name, _ in network.named_parameters()].index(names[number])
    estimator = zo.CGE(1e-3, zo.RandomCoordinates(5))
    gradient = zo.LossGradient(network, CLASSIFIED, estimator, evaluator=Off())
    with pytest.warns(zo.errors.EvaluatorWarning, match=f"Off disagreed with loop for {names[number]}"):
        gradient.backward(batch)


def test_the_check_is_repeated_at_recorded_steps_and_counted():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator="stacked", chunk=20)
    spent = []
    for _ in range(12):
        before = gradient.counts.checks
        gradient.backward(torch.randn(4, 3))
        spent.append(gradient.counts.checks - before)
    assert [step for step, checks in enumerate(spent) if checks > 3] == [0, 1, 10]
    assert set(spent[2:10]) == {3}  # a sentinel for the one chunk, and one query by both evaluators


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_state_outside_of_torch_is_told_with_the_size_of_its_noise(evaluator):
    gradient = zo.LossGradient(Counting(), mean_square, zo.CGE(1e-3), evaluator=evaluator)
    with pytest.warns(
        zo.errors.NoiseWarning, match="at the same weights.*differ by .*differences that mu makes"
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)
            gradient.backward(torch.randn(6, 3))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "auto"])
@pytest.mark.parametrize("write", ["in place", "by data"])
def test_weights_that_a_forward_writes_are_written_once_a_step(write, evaluator):
    torch.manual_seed(0)
    network, batch = MomentumEncoder(write).double(), torch.randn(5, INPUTS).double()
    frozen = [p.detach().clone() for p in network.slow.parameters()]
    encoder = [p.detach() for p in network.encoder.parameters()]
    expected = [0.7 * slow + 0.3 * fast for slow, fast in zip(frozen, encoder, strict=True)]

    def at(weight, bias, head, last):  # a forward of its own, from the same frozen weights
        slow, less = (0.7 * old + 0.3 * new for old, new in zip(frozen, (weight, bias), strict=True))
        output = torch.tanh(batch @ weight.T + bias) @ head.T + last - torch.tanh(batch @ slow.T + less)
        return output.square().mean()

    trained = [*network.encoder.parameters(), *network.head.parameters()]
    values = [p.detach().clone().requires_grad_() for p in trained]
    truth = torch.autograd.grad(at(*values), values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)
        zo.LossGradient(network, mean_square, zo.CGE(1e-6, central=True), evaluator=evaluator).backward(batch)
    for p, slope in zip(trained, truth, strict=True):
        assert torch.allclose(p.grad, slope, atol=1e-8)
    for p, value in zip(network.slow.parameters(), expected, strict=True):
        assert torch.allclose(p, value, rtol=0, atol=1e-15)


def test_a_query_that_writes_other_weights_than_the_base_is_refused_by_name():
    class Late(MomentumEncoder):
        def follow(self):
            calls.append(1)
            if len(calls) > 4:
                super().follow()

    calls, network = [], Late("in place")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator="loop")
    with pytest.raises(zo.errors.ObjectiveError, match=r"slow\.weight, slow\.bias in a query"):
        gradient.backward(torch.randn(5, INPUTS))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_the_rounding_of_a_part_in_float32_is_not_taken_for_a_fault_behind_float64():
    for seed in range(4):
        torch.manual_seed(seed)
        estimator = zo.CGE(1e-3, zo.RandomCoordinates(20))
        gradient = zo.LossGradient(NarrowInside(), mean_square, estimator, evaluator="stacked")
        with warnings.catch_warnings():
            warnings.simplefilter("error", zo.errors.EvaluatorWarning)
            for _ in range(3):
                gradient.backward(torch.randn(32, 4).double())


class AnotherOrder(zo.evaluators.Evaluator):
    """As the loop, but for units in the last place, as if sums were in another order."""

    def begin(self, problem, base):
        loop = zo.evaluators.Loop().begin(problem, base)
        return lambda queries: loop(zo.estimators.Coordinates(queries.indices, queries.steps * (1 - 1e-5)))


@pytest.mark.parametrize("step", [0, 2])  # of which one is checked, and each has a drawn query
def test_a_row_between_two_values_of_a_box_that_rounds_is_not_taken_for_a_fault(step):
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.5)
    edge = torch.tensor(0.5) + 1e-2 if step == 0 else torch.tensor(2.0)

    def jumping(network, batch):
        y = network(batch)[:, 0]
        return y + 1e-2 * (y >= edge)

    gradient = zo.LossGradient(network, jumping, zo.CGE(1e-3, central=True), evaluator=AnotherOrder())
    with warnings.catch_warnings():
        warnings.simplefilter("error", zo.errors.EvaluatorWarning)
        for _ in range(step + 1):
            gradient.backward(torch.ones(5, 1))
        edge = torch.tensor(0.5) + 1e-2
        for _ in range(4):  # one of the two queries is drawn, upwards or downwards
            gradient.backward(torch.ones(5, 1))
    assert serving(gradient) == {"AnotherOrder"}


def test_a_warning_names_the_evaluator_once():
    class Mixing(zo.evaluators.Stacked):
        """Wrong in real chunks alone, whose steps are those of mu but for one query."""

        def begin(self, problem, base):
            right = super().begin(problem, base)
            return lambda queries: right(queries) * (1.0 if queries.steps.abs().min() > 2e-3 else 1.1)

    gradient = zo.LossGradient(nn.Linear(3, 2), mean_square, zo.CGE(1e-3), evaluator=Mixing(), chunk=4)
    with pytest.warns(zo.errors.EvaluatorWarning, match="queries of a step") as caught:
        gradient.backward(torch.randn(5, 3))
    words = [str(warning.message) for warning in caught if warning.category is zo.errors.EvaluatorWarning]
    assert len(words) == 1 and words[0].count("Mixing") == 1


class Fragile(BlackBoxFunction):
    """Ends the call where an input is farther from those that it was made for than mu takes it."""

    inputs = outputs = (ArraySpec("x", (3,)),)
    arrays = "torch"

    def __init__(self, bears, failures):
        super().__init__(failures=failures)
        self.bears = bears

    def evaluate(self, x):
        if not (-self.bears < x - 0.5).all() or not (x - 0.5 < self.bears).all():
            raise ValueError("out of its domain")
        return torch.sin(1.3 * x)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("bears", "failures"),
    [
        *((5e-3, "raise"), (0.5, "keep")),
        *(pytest.param(*values, marks=pytest.mark.slow) for values in ((5e-3, "keep"), (0.5, "raise"))),
    ],
)
@pytest.mark.parametrize(
    "estimator", [zo.CGE(1e-3), zo.CGE(1e-3, central=True), zo.RGE(1e-3, 6)], ids=["cge", "central", "rge"]
)
@pytest.mark.parametrize("evaluator", [pytest.param("loop", marks=pytest.mark.slow), "stacked", "auto"])
def test_a_box_that_bears_no_long_step_is_checked_by_shorter_ones(evaluator, estimator, bears, failures):
    network, box = nn.Linear(4, 3).double(), Fragile(bears, failures)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.fill_(0.5)
    objective = lambda network, batch: box(network(batch)).square().mean(dim=1)  # noqa: E731
    if evaluator == "auto":
        objective = zo.OutputLoss(
            lambda y, _: box(y).square().mean(dim=1), inputs=lambda x: x, targets=lambda x: x
        )
    gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator)
    batch = torch.rand(5, 4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            network.zero_grad()
            gradient.backward(batch)
    fastest = "Difference" if isinstance(estimator, zo.CGE) else "Stacked"
    assert serving(gradient) == {{"loop": "Loop", "stacked": "Stacked", "auto": fastest}[evaluator]}
    if isinstance(estimator, zo.CGE):
        of_bias = network.bias.grad.clone()
        y = torch.sin(1.3 * network.bias)
        assert torch.allclose(of_bias, 2 / 3 * y * 1.3 * torch.cos(1.3 * network.bias), atol=2e-3)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bears", [5e-3, 0.5])
def test_a_fault_is_found_also_where_the_box_bears_no_long_step(bears):
    class Off(zo.evaluators.Stacked):
        def begin(self, problem, base):
            right = super().begin(problem, base)
            return lambda queries: right(queries) * 1.1

    network, box = nn.Linear(4, 3).double(), Fragile(bears, "raise")
    with torch.no_grad():
        network.weight.zero_()
        network.bias.fill_(0.5)
    gradient = zo.LossGradient(
        network, lambda n, x: box(n(x)).square().mean(dim=1), zo.CGE(1e-3), evaluator=Off()
    )
    with pytest.warns(zo.errors.EvaluatorWarning, match=r"Off disagreed with loop for (weight|bias)"):
        gradient.backward(torch.rand(5, 4).double())


def test_an_output_of_a_wrong_shape_is_the_boxs_fault_and_no_evaluators():
    """Rows last pass for rows first where they are as many as cells, and show with more queries at once."""
    cells = ArraySpec("u", (4,))
    box = FromTorch(lambda u: u.T, (cells,), (cells,))
    network = nn.Linear(4, 4)
    gradient = zo.LossGradient(network, lambda n, x: box(n(x)).square().mean(1), zo.RGE(q=2, mu=1e-3))
    with pytest.raises(OutputError, match=r"expected shape \(.*, 4\).*here they are last, np.moveaxis\(u"):
        gradient.backward(torch.eye(4))


@pytest.mark.parametrize("cut", [True, False])
def test_factors_that_a_gpu_cuts_to_ten_bits_count_as_rounding(cut, monkeypatch):
    """The GPU is not there: what it would round is what is asked for."""
    torch.manual_seed(0)
    network, batch = nn.Conv2d(1, 2, 3), torch.randn(4, 1, 5, 5)
    step = Step(network, zo.estimators.Parameters(network), mean_square, batch, len(batch))
    base = mean_square(network, batch).detach()
    exact = sentinel.rounding_of(step, base)
    monkeypatch.setattr(sentinel, "_has_tensor_floats", lambda device: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", cut)
    seen = sentinel.rounding_of(step, base) / exact
    assert (seen > 30).all() if cut else torch.equal(seen, torch.ones(4))
