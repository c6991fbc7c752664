"""`WindowTangent`: a linear model of the last pairs of all calls, rows and steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from zo.tangents.pairs import CallPairs, reciprocal
from zo.tangents.tangent import IdentityTangent, Tangent


class WindowTangent(Tangent):
    """J = A + R^T (D D^T + rho)^-1 D over the last `window` pairs, whatever state they were seen at.

    D are changes of length one in standard units (see `Units`), R what the prior A, as it is now, leaves of
    the responses. It does not depend on the state; where the box's derivative does, put it behind a tangent
    that does.

    Memory: window x (size_in + size_out) numbers, and the inputs as well if the prior learns; 8 bytes x
    window^2 twice, for the Gram matrix and its factor. A step: window x new pairs x size_in products, a
    Cholesky factorisation, window^3 / 3, and if the prior learns its J d for the whole window.

    Args:
        prior: A; the identity if left out.
        window: pairs kept; of a step with more, the last.
        rho: the ridge, in units of changes of length one.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(self, prior: Tangent | None = None, window: int = 768, rho: float = 1e-3) -> None:
        check_count("WindowTangent", "window", window)
        check_number("WindowTangent", "rho", rho, least=1e-10)
        self.prior = IdentityTangent() if prior is None else prior
        self.window = window
        self.rho = rho
        self._seen = 0  # pairs ever; the next goes to place _seen % window
        self._kept: dict[str, Tensor] = {}  # places first; min(_seen, window) of them are filled
        self._fitted: tuple[Tensor, Tensor, Tensor] | None = None

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """A d + R^T (D D^T + rho)^-1 D d."""
        found = self.prior.apply(pairs, d)
        if not self._seen:
            return found
        changes, residuals, factor = self._fit(pairs)
        flat = d.reshape(-1, d.shape[-1]) * self._per_unit()
        coordinates = torch.cholesky_solve((changes @ flat.T).double(), factor).to(d.dtype)
        return found + (coordinates.T @ residuals).reshape(found.shape)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """A^T v + D^T (D D^T + rho)^-1 R v."""
        found = self.prior.vjp(pairs, cotangent)
        if not self._seen:
            return found
        changes, residuals, factor = self._fit(pairs)
        slopes = torch.cholesky_solve((residuals @ cotangent.T).double(), factor).to(cotangent.dtype)
        return found + (slopes.T @ changes) * self._per_unit()

    def observe(self, pairs: CallPairs) -> None:
        """Keep the pairs, the oldest going."""
        self.prior.observe(pairs)
        self._fitted = None  # the prior has moved, and with it the residuals
        count = min(pairs.d.shape[1], self.window)
        if not count:
            return
        new = {"d": pairs.d[0], "response": pairs.response[0]}
        if self.prior.learns:  # then what it leaves changes, and has to be found again
            new |= {"z": pairs.z}
            new |= {f"other {n}": t for n, t in enumerate(pairs.others) if t is not None}
        else:
            new["response"] = new["response"] - self.prior.apply(pairs, pairs.d)[0]
        kept = self._kept
        if not kept:
            kept |= {name: tensor.new_zeros(self.window, *tensor.shape[1:]) for name, tensor in new.items()}
            kept["gram"] = torch.zeros(self.window, self.window, dtype=torch.float64, device=pairs.z.device)
            kept["scale"] = pairs.d_scale.clone()
        places = (self._seen + torch.arange(count, device=pairs.z.device)) % self.window
        for name, tensor in new.items():
            kept[name][places] = tensor[len(tensor) - count :]
        self._seen += count
        anew = not torch.equal(pairs.d_scale, kept["scale"])
        kept["scale"] = pairs.d_scale.clone()
        changes = (kept["d"] * self._per_unit()).double()
        if anew:
            kept["gram"] = changes @ changes.T
        else:
            products = changes[places] @ changes.T
            kept["gram"][places] = products
            kept["gram"][:, places] = products.T

    def state_dict(self) -> dict[str, Any]:
        """The pairs, their Gram matrix, and the prior's state."""
        kept = {name: tensor.clone() for name, tensor in self._kept.items()}
        return {"prior": self.prior.state_dict(), "seen": self._seen, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.prior.load_state_dict(state["prior"])
        self._seen, self._fitted = state["seen"], None
        self._kept = {name: tensor.clone() for name, tensor in state["kept"].items()}

    def _fit(self, pairs: CallPairs) -> tuple[Tensor, Tensor, Tensor]:
        """D `(pairs, size_in)`, R `(pairs, size_out)` and the factor of D D^T + rho, once a step."""
        if self._fitted is None:
            count = min(self._seen, self.window)
            d, residuals = self._kept["d"][:count] * self._per_unit(), self._kept["response"][:count]
            if self.prior.learns:
                residuals = residuals - self._of_prior(pairs, count)
            gram = self._kept["gram"][:count, :count].clone()
            gram.diagonal().add_(self.rho)
            self._fitted = d, residuals, torch.linalg.cholesky(gram)
        return self._fitted

    def _per_unit(self) -> Tensor:
        return reciprocal(self._kept["scale"])

    def _of_prior(self, pairs: CallPairs, count: int) -> Tensor:
        """What the prior, as it is now, says to the pairs that are kept, `(count, size_out)`."""
        z, d, response = (self._kept[name][:count] for name in ("z", "d", "response"))
        others = [self._kept.get(f"other {n}") for n in range(len(pairs.others))]
        kept = replace(
            pairs,
            z=z,
            d=d[None],
            response=response[None],
            valid=torch.ones(1, count, dtype=torch.bool, device=d.device),
            y=pairs.y[:0],
            alive=pairs.alive[:0],
            others=tuple(None if other is None else other[:count] for other in others),
        )
        return self.prior.apply(kept, kept.d)[0]

    def __repr__(self) -> str:
        """With its prior."""
        return f"WindowTangent({self.prior!r}, window={self.window})"
