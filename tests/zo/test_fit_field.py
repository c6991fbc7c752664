"""`fit_field` where boxes fail, are spent, or are stopped: the best field is kept."""

import math
import warnings

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Budgeted
from blackbox.errors import BudgetError, RowFailedError
from zo.field import _Search
from zo.tangents import IdentityTangent


class Cliff(BlackBoxFunction):
    """The root of each number, which there is none of below zero."""

    arrays = "torch"
    inputs = outputs = (ArraySpec("numbers", (4,), "float64"),)

    def evaluate_rows(self, numbers):
        return numbers.sqrt()


def search(box, start=1.0, **settings):
    """Towards roots of .1 by the identity in the place of the derivative, which goes too far: below zero."""
    field = zo.Field(torch.full((4,), start, dtype=torch.float64))

    def objective(field, rows):
        return (box(field(rows)) - 0.1).square().sum(dim=1)

    settings = {"rows": 12, "inner": 1, "tangent": IdentityTangent()} | settings
    return field, lambda: zo.fit_field(field, objective, boxes=[box], **settings)


@pytest.mark.parametrize("failures", ["raise", "keep"])
def test_a_move_to_where_the_box_fails_is_shortened(failures):
    field, fit = search(Cliff(failures=failures), start=0.15)
    with pytest.warns(zo.TangentWarning, match="a move went to where a box fails") as told:
        found = fit()
    assert sum("where a box fails" in str(each.message) for each in told) == 1
    assert math.inf in found.losses and found.loss < found.losses[0]
    roots = field.values.detach().sqrt()
    assert float((roots - 0.1).square().sum()) == pytest.approx(found.loss)


def test_a_loss_of_fewer_rows_is_not_the_least():
    """The second row fails where its loss grows: the mean of the first one alone would be the lower."""

    class Half(BlackBoxFunction):
        arrays = "torch"
        inputs = outputs = (ArraySpec("number", (1,), "float64"),)

        def evaluate_rows(self, number):
            return torch.where((number > -9.7) & (number < -5), math.nan, 3 * number)

    places = torch.tensor([[0.0], [-10.0]], dtype=torch.float64)
    box, field = Half(failures="keep"), zo.Field(torch.zeros(1, dtype=torch.float64))

    def objective(field, places):
        answers = box(field(places) + places) - 3 * places
        return (answers - torch.where(places < 0, -1.0, 2.0)).square().sum(dim=1)

    settings = {"rows": 12, "batch": places, "tangent": IdentityTangent()}
    with pytest.warns(zo.TangentWarning, match="fails; it is shortened. 1 of 2 rows of the batch failed"):
        fit = zo.fit_field(field, objective, boxes=[box], **settings)
    assert fit.loss == pytest.approx(2.25, rel=0.01)
    assert 3 * field.values.item() == pytest.approx(0.5, abs=0.1)


def test_boxes_that_fail_where_the_field_begins_end_the_search():
    field, fit = search(Cliff(), start=-1.0)
    with pytest.raises(RowFailedError):
        fit()
    assert torch.equal(field.values.detach(), torch.full((4,), -1.0, dtype=torch.float64))


def test_a_gradient_that_is_not_finite_is_no_failure_of_the_box():
    field, box = zo.Field(torch.full((4,), 1.0, dtype=torch.float64)), Cliff()

    def objective(field, rows):
        return (box(field(rows)) - 1.0).abs().sum(dim=1).sqrt()  # has no derivative at zero

    with pytest.raises(zo.errors.NonFiniteGradientError, match="roots"):
        zo.fit_field(field, objective, boxes=[box], rows=12, tangent=IdentityTangent())


def test_a_box_s_own_budget_is_a_bound_as_rows_are():
    field, fit = search(Budgeted(Cliff(failures="keep"), 2), rows=100)
    found = fit()
    assert found.why == "rows" and found.rows == len(found.losses) == 2
    assert float((field.values.detach().sqrt() - 0.1).square().sum()) == pytest.approx(found.loss)
    with pytest.raises(BudgetError):
        fit()


@pytest.mark.parametrize("evaluation", range(5))
def test_wherever_it_is_stopped_the_field_has_the_least_loss(evaluation):
    """The first move fails, and shorter ones lower the loss."""
    losses = []

    def stop(loss):
        losses.append(loss)
        if len(losses) > evaluation:
            raise KeyboardInterrupt

    field, fit = search(Cliff(failures="keep"), start=0.15, evaluated=stop)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("ignore", zo.TangentWarning)
        fit()
    assert float((field.values.detach().sqrt() - 0.1).square().sum()) == pytest.approx(min(losses))


@pytest.mark.filterwarnings("ignore::zo.errors.ZeroGradientWarning")
@pytest.mark.parametrize("varied", [False, True])
def test_a_field_of_which_the_first_answers_show_nothing_is_told(varied):
    field, fit = search(Cliff(), start=0.15, tangent=zo.tangents.ZeroTangent())
    if varied:
        field.values.data[0] = 0.2
    before = field.values.detach().clone()
    with pytest.warns(zo.TangentWarning, match="show no derivative with respect to the field") as told:
        found = fit()
    told_of = [str(each.message) for each in told if "no derivative" in str(each.message)]
    assert len(told_of) == 1 and "Begin at a field that varies" in told_of[0]
    assert ("the same everywhere" in told_of[0]) is not varied
    assert found.why == "stalled" and len(found.losses) == 1
    assert torch.equal(field.values.detach(), before)


NUMBERS, MIXED = 6, 40


class Mixed(BlackBoxFunction):
    """Smooth mixtures of numbers that lie on no grid; none where one of them is beyond a limit."""

    arrays = "torch"
    inputs = (ArraySpec("numbers", (NUMBERS,), "float64"),)
    outputs = (ArraySpec("mixed", (MIXED,), "float64"),)

    def __init__(self, limit=math.inf):
        super().__init__(failures="keep")
        draws = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(NUMBERS, MIXED, generator=draws, dtype=torch.float64) / NUMBERS**0.5
        self.limit = limit

    def evaluate_rows(self, numbers):
        mixed = numbers @ self.matrix
        mixed = mixed + 0.3 * torch.sin(mixed)
        return torch.where((numbers.abs() > self.limit).any(dim=1, keepdim=True), torch.nan, mixed)


def find(box, start, rows, truth):
    """The field and the fit by default, of values whose answers are seen."""
    seen, field = box(truth[None]).detach(), zo.Field(start)

    def objective(field, rows):
        return (box(field(rows)) - seen).square().sum(dim=1)

    return field, zo.fit_field(field, objective, boxes=[box], rows=rows)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("start", ["varied", 0.0, 0.7])
def test_numbers_without_a_layout_are_found_by_default_in_few_rows(start):
    draws = torch.Generator().manual_seed(1)
    truth = torch.randn(NUMBERS, generator=draws, dtype=torch.float64)
    varied = 0.2 * torch.randn(NUMBERS, generator=draws, dtype=torch.float64)
    begin = varied if start == "varied" else torch.full_like(truth, start)
    box = Mixed()
    field, fit = find(box, begin, 20, truth)
    assert fit.rows <= 20 and box.ledger.rows_run == fit.rows + 1
    assert fit.loss < 1e-2 * fit.losses[0]
    assert float((field.values.detach() - truth).norm()) < 0.1 * float((begin - truth).norm())


def test_first_changes_that_fail_become_smaller():
    """Beyond 3.1 the box fails, so that of changes by half of one few arrive."""
    begin = torch.full((NUMBERS,), 3.0, dtype=torch.float64)
    begin[0] = -3.0  # so values vary by 1.7, and changes are three tenths of that
    truth = torch.linspace(-1, 1, NUMBERS, dtype=torch.float64)
    with pytest.warns(zo.TangentWarning, match="a move went to where a box fails"):
        _, fit = find(Mixed(limit=3.1), begin, 24, truth)
    infinite = [math.isinf(loss) for loss in fit.losses]
    assert infinite[1] and infinite[1:7].count(False) >= 3
    assert fit.loss < 1e-2 * fit.losses[0]


@pytest.mark.slow
def test_a_search_that_stalls_looks_around_again_where_it_is(monkeypatch):
    """Answers about the start say little of where the search arrives."""

    class Bent(Mixed):
        def evaluate_rows(self, numbers):
            return torch.exp(1.5 * numbers @ self.matrix)

    truth = torch.linspace(-1, 1, NUMBERS, dtype=torch.float64)
    begin = torch.zeros_like(truth)
    _, fit = find(Bent(), begin, 60, truth)
    look = _Search._look_around

    def once(search, draws, tolerance):
        look(search, draws, tolerance)
        search.looked = -math.inf  # so that no later loss is lower

    monkeypatch.setattr(_Search, "_look_around", once)
    _, without = find(Bent(), begin, 60, truth)
    assert without.why == "stalled"
    assert fit.loss < 0.9 * without.loss


def test_a_field_that_is_found_at_once_takes_no_look_around():
    box, truth = Mixed(), torch.ones(NUMBERS, dtype=torch.float64)
    _, fit = find(box, truth, 50, truth)
    assert fit.why == "tolerance" and fit.rows == 1


def test_draws_go_by_the_seed():
    truth = torch.linspace(-1, 1, NUMBERS, dtype=torch.float64)
    losses = [find(Mixed(), torch.zeros_like(truth), 12, truth)[1].losses for _ in range(2)]
    assert losses[0] == losses[1] and len(losses[0]) == 12


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_looking_around_keeps_within_the_rows(rows):
    box, truth = Mixed(), torch.linspace(-1, 1, NUMBERS, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.TangentWarning)  # of two rows no derivative is seen
        _, fit = find(box, torch.zeros_like(truth), rows, truth)
    assert fit.rows == len(fit.losses) <= rows


def test_a_batch_of_equal_rows_has_as_many_changes_as_there_are_numbers():
    box, truth = Mixed(), torch.linspace(-1, 1, NUMBERS, dtype=torch.float64)
    seen, field = box(truth[None]).detach(), zo.Field(torch.zeros_like(truth))

    def objective(field, rows):
        return (box(field(rows)) - seen).square().sum(dim=1)

    fit = zo.fit_field(field, objective, boxes=[box], rows=80, batch=torch.zeros(4, 1))
    assert fit.rows <= 80 and fit.loss < 1e-2 * fit.losses[0]


def test_a_change_without_a_gradient_is_left_out():
    """Roots have none below zero, where `where` hides what they answer."""

    class Hidden(Mixed):
        def evaluate_rows(self, numbers):
            return numbers @ self.matrix

    box, truth = Hidden(), torch.full((NUMBERS,), 0.5, dtype=torch.float64)
    seen = box(truth[None]).detach()
    begin = torch.linspace(0.02, 1.0, NUMBERS, dtype=torch.float64)

    class Rooted(zo.Field):
        def forward(self, rows):
            values = self.values.expand(len(rows), NUMBERS)
            return torch.where(values > 0, values.sqrt(), 0 * values).square()

    field = Rooted(begin)

    def objective(field, rows):
        return (box(field(rows)) - seen).square().sum(dim=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.TangentWarning)
        fit = zo.fit_field(field, objective, boxes=[box], rows=40)
    assert math.inf in fit.losses and fit.loss < 1e-2 * fit.losses[0]
