"""A variant that moves nothing, in every stacked chunk: it must give the losses of the base.

What differs by variant without having been moved (a random draw), or mixes the rows of variants (a statistic
over the batch), shows in it at every step, at the price of one query a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.utils._pytree import tree_leaves

from blackbox import BlackBoxFunction
from blackbox.calls import current, intercepted
from zo.batches import Batch, tensors
from zo.evaluators.evaluator import Step, Unservable
from zo.evaluators.loop import Loop
from zo.evaluators.operations import Operations
from zo.objective import Objective, losses, uncompiled
from zo.perturbation import Coordinates, Directions, Perturbation

# Of a loss: units in its last place by which equal rows may differ in passes of different length.
ROUNDING = 64
# A sentinel that is off by less than this part of what the chunk's other queries changed does no harm.
HARMLESS = 1e-3
# Evaluations with every weight moved by some units in its last place, which shows what rounding does.
SHAKES, LOCAL_SHAKES, SHAKEN_UNITS = 3, 8, 4


# Of the sentinel among the queries: at an end, or in the middle, it would meet itself in `x[-1:]` or `flip`.
PLACE = 1


def with_sentinel(queries: Perturbation) -> Perturbation:
    """The queries, and behind the first one a further one that moves nothing."""
    still = torch.zeros_like(queries.steps[:1])
    if isinstance(queries, Coordinates):
        return inserted(queries, Coordinates(queries.indices[:1], still))
    return inserted(queries, Directions(still))


def inserted(queries: Perturbation, one: Perturbation) -> Perturbation:
    """The queries, and behind the first one a further one of the same kind."""
    steps = torch.cat([queries.steps[:PLACE], one.steps, queries.steps[PLACE:]])
    if isinstance(queries, Coordinates) and isinstance(one, Coordinates):
        indices = queries.indices
        return Coordinates(torch.cat([indices[:PLACE], one.indices, indices[PLACE:]]), steps)
    return Directions(steps)


def left_out(by_query: Tensor) -> Tensor:
    """The rows of the queries, `(queries, ...)`, without that of the inserted one."""
    return torch.cat([by_query[:PLACE], by_query[PLACE + 1 :]])


def rounding_of(step: Step, base: Tensor) -> Tensor:
    """Measure how far each row's losses may be off by rounding and by noise, `(rows,)`; takes four queries.

    Rounding is what some units in the last place of the weights change. It can be far above the loss's
    own: a confident row's is the small difference of large logits.
    """
    shifts, still, eps = _shaken(step, base, torch.zeros(step.parameters.size), SHAKES)
    noise = still.abs().nan_to_num(0.0).max()
    shifts = shifts.abs().nan_to_num(0.0).amax(dim=0)
    # A confident row's losses are multiples of a step of their own, and most draws leave them as they
    # are: what moves the others says how long it is.
    if (shifts > 0).any():
        shifts = torch.maximum(shifts, shifts[shifts > 0].median())
    unit = max(eps, torch.finfo(base.dtype).eps)
    return 3 * ROUNDING * unit * base.abs().nan_to_num(0.0) + 10 * (noise + shifts)


def jumps_at(step: Step, base: Tensor, query: Perturbation, truth: Tensor) -> Tensor:
    """Measure how far a query's losses jump when weights and sums move by their last place, `(rows,)`.

    A box that rounds its outputs, or has a table, is between two of its values there, where it is by chance
    which one a slightly other order of sums gives. Takes nine queries.

    Args:
        step: The step, with its network, objective and batch.
        base: Losses of the base, `(rows,)`.
        query: The single query.
        truth: `(rows,)`, how it changed the losses.
    """
    here = torch.zeros(step.parameters.size, dtype=step.parameters.dtype)
    if isinstance(query, Coordinates):
        here[query.indices] = query.steps.to(here)
    else:
        here = query.steps[0].to(here)
    shaken, still, _ = _shaken(step, base, here, LOCAL_SHAKES)
    return 2 * (torch.cat([shaken, still[None]]) - truth).abs().nan_to_num(0.0).amax(dim=0)


def _shaken(step: Step, base: Tensor, here: Tensor, shakes: int) -> tuple[Tensor, Tensor, float]:
    """The losses with every weight moved by some units in its last place, around the query's weights.

    All sums and products after them move by a unit, too: an offset inside of a network rounds away changes
    that no weight's last place shows.

    Args:
        step: The step, with its network, objective and batch.
        base: Losses of the base, `(rows,)`.
        here: The query's move of the weights, `(size,)`.
        shakes: How many shakes, each with signs of its own.

    Returns:
        Changes of the losses `(shakes, rows)`, changes without a shake `(rows,)`, and the unit.
    """
    weights, loop = step.parameters.flat(), Loop().begin(step, base)
    here = here.to(weights)
    coarsest = _Coarsest()
    with uncompiled(), coarsest:
        still = loop(Directions(here[None]))[0]
    # What is rounded further still, to 16 bits, jumps as a box does that rounds its outputs.
    eps = min(coarsest.eps, torch.finfo(torch.float32).eps)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (shakes, len(weights)), generator=generator) * 2 - 1
    step.tally.queries += shakes + 1
    shaken = Loop().begin(replace(step, objective=_rounded(step.objective)), base)
    return shaken(Directions(here + SHAKEN_UNITS * eps * weights * signs)), still, eps


class _Coarsest(Operations):
    """Notes the coarsest numbers that operations give: in a network of float64 a part may be in float32.

    Attributes:
        eps: The distance of one of them from the next, at 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.finfo(torch.float64).eps

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Note how coarse the result is."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        return result


def _rounded(objective: Objective) -> Objective:
    """An objective in which what is computed is off by units in the last place, otherwise at each call."""
    generators: dict[torch.device, torch.Generator] = {}

    def rounded(network: nn.Module, batch: Batch) -> Tensor:
        with uncompiled(), _Rounded(generators) as mode, intercepted(mode.pass_on):
            return objective(network, batch)

    return rounded


# Operations that round; what only chooses, as a maximum does, gives the very number that it was given.
_ROUNDING = {
    *(
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "sum",
        "mean",
        "mm",
        "bmm",
        "addmm",
        "addbmm",
        "baddbmm",
        "mv",
        "dot",
    ),
    *("convolution", "mkldnn_convolution", "cudnn_convolution", "_to_copy", "addcmul", "lerp", "cumsum"),
}
_PRODUCTS = {"mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "dot"}
TENSOR_FLOAT = 2.0**-11  # of a number, by which TF32 is off at most


class _Rounded(Operations):
    """Moves results of operations by a unit in the last place, up or down: twice the effect of rounding.

    Args:
        generators: The generators of signs, by device: draws on the CPU for a GPU would take most of a step.
    """

    def __init__(self, generators: dict[torch.device, torch.Generator]) -> None:
        super().__init__()
        self._generators, self._handler = generators, current()

    def pass_on(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """Let a box answer as without this mode; while its call runs no handler is at work."""
        return box.call(*arrays) if self._handler is None else self._handler(box, arrays)

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Move the result of an operation that rounds."""
        plain = type(result) is Tensor and result.layout is torch.strided and result.is_floating_point()
        name = operation.overloadpacket.__name__
        if (
            not plain
            or name not in _ROUNDING
            or (name == "_to_copy" and current() is None)  # of a box, whose session knows all digits
            or result.is_nested
            or result.is_meta
        ):
            return result
        unit = max(torch.finfo(result.dtype).eps, unit_of_product(name, result))
        place = result.device
        if place not in self._generators:
            self._generators[place] = torch.Generator(place).manual_seed(1)
        bits = torch.randint(
            0, 2, result.shape, generator=self._generators[place], device=place, dtype=result.dtype
        )
        return result * (1 + unit * (2 * bits - 1))


def unit_of_product(operation: str, result: Tensor) -> float:
    """Return the relative error of an operation's result if its factors are cut to fewer bits; 0 if not.

    On a GPU torch may take products of float32 from factors with ten bits (TF32), as it does by default in
    convolutions. Half a unit in the place of the last of them is as far as a factor is off.
    """
    if result.dtype != torch.float32 or not _has_tensor_floats(result.device):
        return 0.0
    if "convolution" in operation:
        cut = _is_cut(torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None))
    else:
        cut = operation in _PRODUCTS and _is_cut(torch.backends.cuda.matmul, torch.backends.cuda.matmul)
    return TENSOR_FLOAT if cut else 0.0


def _is_cut(backend: Any, operations: Any) -> bool:
    precision = getattr(operations, "fp32_precision", None)  # since torch 2.9
    return backend.allow_tf32 if precision is None else precision == "tf32"


def _has_tensor_floats(device: torch.device) -> bool:
    return device.type == "cuda"


def refuse_shifted(
    step: Step,
    perturbation: Perturbation,
    base: Tensor,
    changes: Tensor,
    run: Callable[[], Tensor],
    lost_rows: Callable[[], None],
) -> None:
    """Refuse a chunk whose sentinel is off the base.

    Args:
        step: The step, with its network, objective and batch.
        perturbation: The queries of the chunk with its sentinel.
        base: Losses of the base, `(rows,)`.
        changes: The changes of the losses, `(queries, rows)`, with the sentinel's.
        run: Evaluates the chunk once more, for the error to name the module.
        lost_rows: Refuses the chunk if rows of its sentinel that failed did not fail by themselves.

    Raises:
        Unservable: The sentinel is off by more than rounding, and by more than a thousandth of the others'
            changes.
    """
    rows = torch.isfinite(base) & torch.isfinite(changes[PLACE])  # a failed row is not a fault
    eps = max(torch.finfo(dtype).eps for dtype in (base.dtype, step.parameters.dtype))
    largest = torch.where(rows, torch.stack([changes[PLACE], base]), 0.0).abs().amax(dim=1)
    lost = (torch.isfinite(base) & ~rows).any()
    if (largest[0] <= ROUNDING * eps * largest[1]) & ~lost:  # of a chunk all that the host waits for
        return
    if lost:
        lost_rows()
    off = changes[PLACE, rows].abs()
    size = left_out(changes)[:, rows].double().nan_to_num(0.0).square().mean(dim=1).sqrt()
    if off.double().square().mean().sqrt() <= HARMLESS * size.median():
        return
    if step.draws is None or not step.draws.any:  # else what rounding changes may be how much is drawn
        allowed = rounding_of(step, base)[rows]
        if (off <= allowed).all():
            return
        still = Directions(torch.zeros(1, step.parameters.size))
        if (off <= allowed + jumps_at(step, base, still, torch.zeros_like(base))[rows]).all():
            return
    step.tally.queries += len(perturbation)
    raise Unservable(
        f"a variant that moves nothing changed the loss by up to {off.max().item():.1e}, as if "
        f"{_culprit(step, len(perturbation), run)} drew at random for each variant, or mixed the rows of "
        "different variants"
    )


def _culprit(step: Step, variants: int, run: Callable[[], Tensor]) -> str:
    """The first module, in the order of the forward, whose output differs for the sentinel's rows."""
    alone = _outputs(step.network, lambda: _base(step))
    of_all = _outputs(step.network, run)
    for (name, output), (_, stacked) in zip(alone, of_all, strict=False):
        if stacked.shape != (variants * output.shape[0], *output.shape[1:]):
            continue
        of_sentinel = stacked.unflatten(0, (variants, -1))[PLACE]
        allowed = 1000 * torch.finfo(output.dtype).eps * output.abs().nan_to_num(0.0).max()
        if ((of_sentinel - output).abs().nan_to_num(0.0) > allowed).any():
            return name
    return "the objective, or what it calls outside of the network's modules,"


def _base(step: Step) -> Tensor:
    start = step.snapshot()
    try:
        step.tally.queries += 1
        return losses(step.objective, step.network, step.batch, step.rows)
    finally:
        start.restore()


def _outputs(network: nn.Module, run: Callable[[], Any]) -> list[tuple[str, Tensor]]:
    """The first floating tensor that each module gives in a run, by name, inner modules first."""
    outputs: list[tuple[str, Tensor]] = []

    def hook(name: str, module: nn.Module) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            for tensor in tensors(output):
                if tensor.is_floating_point() and not is_batchedtensor(tensor):
                    outputs.append(
                        (f"{name or 'the network'} ({type(module).__name__})", tensor.detach().clone())
                    )
                return

        return module.register_forward_hook(note)

    handles = [
        hook(name, module)
        for name, module in network.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return outputs
