"""What an optimizer does to coordinates outside the sparse set: decay and coast, or stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from zo.errors import ConfigurationError
from zo.parameters import Parameters

# Entry by entry, with state that starts at zero or exists before the first step.
ENTRYWISE = (SGD, Adam, AdamW, RMSprop, Adagrad)


@torch.no_grad()
def masked_step(optimizer: Optimizer, parameters: Parameters, indices: Tensor) -> None:
    """`optimizer.step()`, but outside the set neither weights nor the optimizer's state change.

    Compare the two, for a set S_t that changes:

        optimizer.step()        the standard optimizer on the sparse gradient (the paper's way): outside
                                S_t the gradient is zero, but momentum goes on moving a weight, weight
                                decay goes on shrinking it, and Adam's averages decay
        masked_step(...)        outside S_t nothing moves; momentum waits there, as old as it is, for
                                the step that draws its coordinate again

    The set is drawn from its key, so it can be drawn again:

        key = zo.estimators.Key(seed, gradient.counts.steps)       # before backward
        gradient.backward(batch)
        zo.masked_step(optimizer, gradient.parameters, sparsity.draw(gradient.parameters, key))

    Adam counts its steps for all coordinates together, so a coordinate that is first drawn late gets no bias
    correction: its first update is (1 - beta1) / sqrt(1 - beta2) learning rates, 3.2 by default. Parameters
    of the optimizer that are not among `parameters` are stepped as usual.

    Args:
        optimizer: SGD, Adam, AdamW, RMSprop or Adagrad, in any setting.
        parameters: the parameters that the indices refer to.
        indices: `(coordinates,)` int64, flat: the set of this step.

    Raises:
        ConfigurationError: another optimizer, or indices that leave the parameters.
    """
    if not isinstance(optimizer, ENTRYWISE):
        raise ConfigurationError(
            f"masked_step, optimizer: expected one of {', '.join(kind.__name__ for kind in ENTRYWISE)}, got "
            f"{type(optimizer).__name__}, whose state need not be one number for each weight. "
            "Call its own step() on the sparse gradient."
        )
    if not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= parameters.size:
        raise ConfigurationError(
            f"masked_step, indices: expected flat indices in [0, {parameters.size}), at least one, got "
            f"{indices.tolist()[:8]}. Draw them with the sparsity of the estimator, from the same parameters."
        )
    outside = torch.ones(parameters.size, dtype=torch.bool)
    outside[indices.cpu()] = False
    tensors, masks = parameters.tensors, parameters.split(outside)
    weights = [tensor.detach().clone() for tensor in tensors]
    before = [_entries(optimizer, tensor, copy=True) for tensor in tensors]
    optimizer.step()
    for tensor, mask, weight, kept in zip(tensors, masks, weights, before, strict=True):
        mask = mask.to(tensor.device)
        tensor.data[mask] = weight[mask]
        for name, state in _entries(optimizer, tensor, copy=False).items():
            # State made by this very step holds weight decay outside the set, unless it is cleared.
            state[mask] = kept[name][mask] if name in kept else 0


def _entries(optimizer: Optimizer, tensor: Tensor, *, copy: bool) -> dict[str, Tensor]:
    """The state that has one number for each weight; the count of steps has none, whatever its shape."""
    found = {
        name: state
        for name, state in optimizer.state.get(tensor, {}).items()
        if isinstance(state, Tensor) and state.shape == tensor.shape and name != "step"
    }
    return {name: state.clone() for name, state in found.items()} if copy else found
