"""`EquationTangent`: for states on periodic grids, a differential equation of few terms, fitted to values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec
from blackbox.checks import check_count
from zo.errors import ConfigurationError, TangentError
from zo.tangents.models.at_rows import ModelAt, Together, Values, at_calls
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.equation.equation import Equation, EquationTerms, fitted, forms
from zo.tangents.models.form import Form
from zo.tangents.models.maps.lattice import Lattice, space_of
from zo.tangents.models.structure import MOST_CELLS, Specs, structure_of
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised, sources

# decision 133:
MOST_TERMS = 600  # of a form: of several channels in three dimensions there are thousands
ROWS, NUMBERS = 24, 2**22  # that a fit is made to, at most, and the numbers of all terms at these
NEWER = 10  # it is fitted again where one row in so many is new
FIRST, LATER = 12, 2  # rounds of a fit
CLEARLY = 0.7  # times the error of a form of fewer terms: what one of more must leave less than
AGAIN = 3  # times the rows: then forms are compared anew, if the one that was taken is poor
HOPELESS = 0.3  # of a call's change: what leaves more is another box, or another form; decision 145
POOR = 0.01  # of a call's change: where the forms leave more, those that cut waves early are tried too


class EquationTangent(ValueTangent):
    """The derivative of a partial differential equation's flow, with coefficients fitted to values.

    For a box that moves a state `(channels, *space)` on by some time, on a periodic grid of one to three axes
    whose cells are as long along all of them: `state` in, `state` out. Other inputs on the grid, and numbers
    such as a viscosity, are fields that stay during a call. The rate of change is

        sum of a_f D_f x + sum of b_fg D_o (D_f x) (D_g x),

    with D_f derivatives, up to the fourth in the linear part, and inverses of the Laplacian. The inverses
    stand inside of products (a velocity in a vorticity's equation) or outside of them (a pressure in a
    velocity's). Waves of the upper third, or of one more, enter products or do not. Another form is that of
    reactions, drift and diffusion: D_f up to the second in the linear part, and products of two and of three
    channels without derivatives. The form of fewest terms is taken, unless another leaves clearly less error.
    These some hundred numbers are fitted by least squares, in float64, to a few rows, with the flow taken in
    Runge-Kutta steps of fourth order. There are no steps of learning, and nothing is drawn.

    Ten rows of a flow suffice. Waves that rows hardly show obey the same equation; a network fitted to the
    same rows knows nothing of them. The model knows this kind of physics and no other: take another model
    where `measured` says that it leaves a tenth of a call's change or more, as beside walls, obstacles,
    shocks or limiters. Nothing checks that cells are as long along all axes. Where its flow from a row is
    not finite, far from all rows before, the derivative is that of `IdentityTangent`.

    Memory: window x (size_in + size_out) numbers, and some 260 MB during a fit of the largest forms. A fit,
    when one row in ten is new, on the CPU: rows x cells x terms^2 operations in each of a few rounds. A
    call's VJP: 4 x steps evaluations of the rate, each with FFTs of channels x factors (1 to 11) fields, and
    as much again for the way back.

    Args:
        steps: the number of time steps in a call; twice as many for stiff reactions.
        window: rows kept, the oldest going.

    Attributes:
        measured: the form that was taken (`outer`, `dealiased`; `early` where waves are cut one earlier,
            `reaction` for the form of reactions), its `terms`, and its `error` over the change of a call, on
            the rows that it was fitted to; empty before.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box that does not move all of
            its outputs on from inputs of the same name and shape, on one periodic grid.
        TangentError: no form's flow is finite on the rows.
    """

    def __init__(self, steps: int = 2, *, window: int = 200) -> None:
        check_count("EquationTangent", "steps", steps)
        self.steps = steps
        super().__init__(window, output_map=False)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self._equation: Equation | None = None
        self._error, self._scale = math.inf, 1.0
        self._rows_at_fit, self._rows_at_comparison = 0, 0  # ever seen, at the last ones

    @property
    def measured(self) -> dict[str, Any]:
        """The form that was fitted, and its error."""
        if self._equation is None:
            return {}
        terms = self._equation.terms
        figures: dict[str, Any] = {"outer": terms.outer, "dealiased": terms.dealiased, "terms": terms.count}
        figures |= {name: True for name in ("early", "reaction") if getattr(terms, name)}
        return figures | {"error": self._error}

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return self._equation is not None

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Look at the first rows: what the state is, and its size."""
        if not self._moments:
            refuse_no_state(form)
            self._scale = float(y.double().square().mean().sqrt()) or 1.0
        super().take(form, z, others, y)

    @torch.no_grad()
    def learn_from_window(self, steps: int | None) -> None:
        """Fit anew, where enough rows are new: at first in each form, then from where it is.

        A form that leaves much is compared with the others again when there are three times as many rows, or
        as soon as it is hopeless.
        """
        self._lessons += 1
        count = self._window.seen
        if self.knows and NEWER * (count - self._rows_at_fit) < min(count, self._window.most):
            return
        previous, best = self._equation, None
        if previous is not None:
            best = self._best([(previous.terms, previous.steps)], previous.coefficients)
        if (
            best is None
            or best[1] > HOPELESS >= self._error
            or (self._error > POOR and count >= AGAIN * self._rows_at_comparison)
        ):
            best = self._compared_anew() or best
            self._rows_at_comparison = count
        if best is None:
            raise TangentError(
                f"{self!r}: expected rows from which an equation's flow stays finite, got none of its forms. "
                "Take zo.tangents.GridTangent."
            )
        self._equation, self._error = best
        self._rows_at_fit = count

    def _compared_anew(self) -> tuple[Equation, float] | None:
        """Choose among all forms anew; those that cut waves earlier are tried if the others leave much."""
        sizes = _sizes(self._form)
        best = self._best(self._with_steps(forms(*sizes, MOST_TERMS)))
        if best is None or best[1] > POOR:
            best = self._best(self._with_steps(forms(*sizes, MOST_TERMS, early=True)), best=best)
        return best

    def _with_steps(self, several: Sequence[EquationTerms]) -> list[tuple[EquationTerms, int]]:
        """Each form with the steps of a call; reactions, which may be stiff, with twice as many too."""
        return [(t, n * self.steps) for t in several for n in ((1, 2) if t.reaction else (1,))]

    def _best(
        self,
        tried: Sequence[tuple[EquationTerms, int]],
        start: Tensor | None = None,
        best: tuple[Equation, float] | None = None,
    ) -> tuple[Equation, float] | None:
        """Fit each of these forms from some coefficients on, and return the best of them and of `best`."""
        for terms, steps in tried:
            rows = max(2, min(ROWS, NUMBERS // (terms.count * math.prod(terms.space))))
            z, others, y = (column.double().cpu() for column in self._window.spread(rows))
            x, static = self._parts(z, others)
            rounds = FIRST if start is None else LATER
            fit = fitted(terms, x, self._grid(y), static, steps, start, rounds)
            if math.isfinite(fit[1]) and (best is None or fit[1] < CLEARLY * best[1]):
                best = fit
        return best

    def _grid(self, numbers: Tensor) -> Tensor:
        """Return outputs as `(rows, channels, *space)`, in units of their size."""
        lattice = self._form.lattices("EquationTangent")[1]
        return numbers.reshape(len(numbers), lattice.channels, *lattice.space) / self._scale

    def _parts(self, z: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The state, as its output lies, and all other inputs as fields."""
        space = self._form.lattices("EquationTangent")[1].space
        following = set(sources(self._form.inputs, self._form.outputs))
        shapes = [spec.shape for spec in self._form.inputs]
        pieces = z.split([math.prod(shape) for shape in shapes], dim=1)
        static_pieces = [piece for place, piece in enumerate(pieces) if place not in following]
        static_shapes = tuple(shape for place, shape in enumerate(shapes) if place not in following)
        static = Lattice((*static_shapes, *self._form.others), space)
        if not static.shapes:
            fields = z.new_zeros(len(z), 0, *space)
        else:
            fields = static.joined(torch.cat([*static_pieces, others], 1))
        return self._grid(self._form.followed(z)), fields

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """The flow: `(rows, size_in)` to `(rows, size_out)`."""
        assert self._equation is not None
        whole = torch.promote_types(z.dtype, torch.float32)  # there are no transforms of shorter numbers
        x, static = self._parts(z.to(whole), others.to(whole))
        return (self._equation(x, static) * self._scale).flatten(1).to(z.dtype)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The flow at calls, and the identity at rows from which it is not finite."""
        together = at_calls(calls, self.values)
        return [_FlowAt(rows, self.values, together, number, self._form) for number, rows in enumerate(calls)]

    def state_dict(self) -> dict[str, Any]:
        """The equation, and the rows that the next one is fitted to."""
        if not self._form:
            return {"form": None}
        entry, equation = None, self._equation
        if equation is not None:
            t = equation.terms
            entry = (t.outer, t.dealiased, t.early, t.reaction), equation.steps, equation.coefficients.clone()
        at = self._error, self._scale, self._rows_at_fit, self._rows_at_comparison
        return self.kept() | {"equation": entry, "fitted": at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        self.load_kept(state)
        self._error, self._scale, self._rows_at_fit, self._rows_at_comparison = state["fitted"]
        self._equation = None
        if state["equation"] is not None:
            kind, steps, coefficients = state["equation"]
            terms = EquationTerms(*_sizes(self._form), *kind)
            self._equation = Equation(terms, coefficients.clone(), steps)

    def __repr__(self) -> str:
        """The steps of a call."""
        return f"EquationTangent(steps={self.steps})"


class _FlowAt(ModelAt):
    """A flow at the rows of a call; at those from which it is not finite, the identity.

    Args:
        rows, model, together, number: the arguments of `ModelAt`.
        form: the specs of the rows, which say what the flow moves on.
    """

    def __init__(self, rows: CallPairs, model: Values, together: Together, number: int, form: Form) -> None:
        super().__init__(rows, model, together, number)
        self._form = form

    def push(self, d: Tensor) -> Tensor:
        """J d; d itself where that is not finite."""
        pushed = super().push(d)
        return pushed.where(_finite(pushed), self._form.followed(d))

    def pull(self, v: Tensor) -> Tensor:
        """J^T v; v itself where that is not finite."""
        pulled = super().pull(v)
        return pulled.where(_finite(pulled), self._form.followed_back(v))


def _finite(numbers: Tensor) -> Tensor:
    """Say which rows are finite, `(..., rows, 1)`."""
    return numbers.isfinite().all(dim=-1, keepdim=True)


def _sizes(form: Form) -> tuple[tuple[int, ...], int, int]:
    """Cells along each axis, channels of the state, and of all other inputs."""
    outputs = form.lattices("EquationTangent")[1]
    following = set(sources(form.inputs, form.outputs))
    static_shapes = tuple(spec.shape for place, spec in enumerate(form.inputs) if place not in following)
    return outputs.space, outputs.channels, Lattice((*static_shapes, *form.others), outputs.space).channels


def refuse_no_state(form: Form) -> None:
    """Refuse what is no state on a periodic grid.

    Raises:
        ConfigurationError: it is none.
    """
    space = space_of(form.outputs, form.inputs)
    whole = space is not None and Lattice(tuple(spec.shape for spec in form.outputs), space).whole
    walls = any(_has_walls(spec) for spec in (*form.inputs, *form.outputs))
    if not whole or walls or None in sources(form.inputs, form.outputs):
        arrays = [spec.shape for spec in form.inputs], [spec.shape for spec in form.outputs]
        raise ConfigurationError(
            "EquationTangent: expected outputs (channels, *space) on one periodic grid, each of the name and "
            f"shape of an input that it moves on, got inputs and outputs {arrays[0]} and {arrays[1]}"
            f"{', with walls' if walls else ''}. Take a GridTangent, or name input and output alike."
        )


def _has_walls(spec: ArraySpec) -> bool:
    ends = getattr(spec.layout, "periodic", None)
    return ends is False or (isinstance(ends, tuple) and False in ends)


def _does_not_fit(specs: Specs) -> str | None:
    """Why no equation is tried on a box by default."""
    inputs, outputs = ([s for s in both if s.learned] for both in (specs.inputs, specs.outputs))
    structure, space = structure_of(inputs, outputs), space_of(outputs, inputs)
    if specs.structure.kind != "grid" or structure.kind != "grid" or math.prod(space or ()) > MOST_CELLS:
        return f"an equation wants a grid of at most {MOST_CELLS:,} cells, not a {structure.kind}"
    try:
        refuse_no_state(Form(tuple(inputs), tuple(outputs), ()))
    except ConfigurationError as error:
        return str(error)
    return None


def _is_hopeless(equation: EquationTangent) -> bool:
    """Say whether it leaves much of the rows that it was fitted to: then the box is another one."""
    return equation.measured.get("error", 0.0) > HOPELESS


CANDIDATE = Candidate(
    "equation", _does_not_fit, lambda box, seed: EquationTangent(), light=True, hopeless=_is_hopeless
)
