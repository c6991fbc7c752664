"""`OwnState`: each member's own part of network and optimiser in a `Population`, and the shared rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.evaluators.state import Inside, Snapshot
from zo.tangents.gradient import TangentGradient
from zo.tangents.population.members import Member
from zo.tangents.population.optimizers import copied


class OwnState:
    """A member's own are the weights that the gradient trains, buffers, attributes, and the moments of these.

    The other weights belong to all. A change of them, by a second optimiser or the update of a target
    network, is a change for each member.

    Args:
        gradient: the gradient of the network.
        optimizer: the optimiser of its weights; the moments are its memory of steps.
    """

    def __init__(self, gradient: TangentGradient, optimizer: torch.optim.Optimizer) -> None:
        self._network, parameters = gradient.network, gradient.parameters
        self._optimizer = optimizer
        self._trained = dict(zip(parameters.names, parameters.tensors, strict=True))

    def snapshot(self) -> Snapshot:
        """A member's own of the network, as it is now."""
        return Snapshot(self._network, self._trained)

    @contextmanager
    def rest_kept(self) -> Iterator[None]:
        """A block behind which the weights of all are as before, where a forward writes to some.

        Those that one evaluation should add to, as to a running mean, are not added to by each member.
        """
        trained = {id(tensor) for tensor in self._trained.values()}
        untrained = {name: w for name, w in self._network.named_parameters() if id(w) not in trained}
        snapshot = Snapshot(self._network, untrained, Inside({}))
        try:
            yield
        finally:
            snapshot.restore(generators=False)

    def tensors(self) -> dict[str, Tensor]:
        """A member's own of the network, by name, but for attributes."""
        return {**self._trained, **dict(self._network.named_buffers())}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give the network values of such tensors; those that have none stay."""
        for name, tensor in self.tensors().items():
            value = values.get(name, tensor)
            if value.shape == tensor.shape:
                tensor.copy_(value)
            else:  # a buffer, in whose place a forward puts others
                module, _, local = name.rpartition(".")
                setattr(self._network.get_submodule(module), local, value.to(tensor))

    def shapes(self) -> dict[str, list[int]]:
        """Return the shapes of such tensors, without buffers that the network's state_dict leaves out."""
        saved_names = {*self._trained, *self._network.state_dict()}
        return {name: list(tensor.shape) for name, tensor in self.tensors().items() if name in saved_names}

    def refuse_other(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a state of other tensors.

        Args:
            shapes: the shapes of the state, by name.

        Raises:
            ConfigurationError: a name or a shape differs.
        """
        own_shapes = self.shapes()
        for name in {**own_shapes, **shapes}:
            expected, got = own_shapes.get(name), shapes.get(name)
            if expected != got:
                wanted = f"no {name!r}" if expected is None else f"{name!r} of shape {tuple(expected)}"
                came = "none" if got is None else f"one of shape {tuple(got)}"
                raise ConfigurationError(
                    f"Population: expected a state whose members have {wanted}, got {came}. Make the "
                    "network, and what the gradient trains of it, as when the state was saved, or start anew."
                )

    def become(self, member: Member) -> None:
        """Give network and optimiser what a member has."""
        if member.state is not None:
            member.state.restore(generators=False)
        self._optimizer.state = member.moments

    @contextmanager
    def at(self, member: Member) -> Iterator[None]:
        """A block in which network and optimiser are a member's; they stay so behind it."""
        self.become(member)
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * member.factor
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            member.state = self.snapshot()  # of the step that its moments are of, behind an interrupt too

    @contextmanager
    def then_back(self) -> Iterator[None]:
        """A block in which network and optimiser may become any member's; they are as they were behind it."""
        optimizer, snapshot = self._optimizer, self.snapshot()
        moments, groups = optimizer.state, optimizer.param_groups
        try:
            yield
        finally:
            snapshot.restore(generators=False)
            optimizer.state, optimizer.param_groups = moments, groups

    def saved(self, member: Member) -> dict[str, Any]:
        """A member's tensors and moments, for a state; network and optimiser are its own behind this."""
        self.become(member)
        moments = self._optimizer.state_dict()["state"]
        return {"network": copied(self.tensors()), "moments": copied(moments)}

    def loaded(self, part: dict[str, Any], now: dict[str, Any]) -> Member:
        """Restore a saved member.

        Args:
            part: the member's part of the saved state.
            now: the optimiser's state; after this call it and the network are the member's own.
        """
        member = Member(part["factor"], losses=list(part["losses"]), lost=[*map(tuple, part["lost"])])
        if "network" in part:
            self._optimizer.load_state_dict({**now, "state": copied(part["moments"])})
            member.moments = self._optimizer.state
            self.put(part["network"])
            member.state = self.snapshot()
        return member
