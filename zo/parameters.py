"""`Parameters`: a flat view, tensor by tensor, of the parameters of a network that are perturbed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from threading import Lock
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from zo.batches import sent
from zo.errors import ConfigurationError, ParameterError
from zo.perturbation import Coordinates, Perturbation


@dataclass(frozen=True)
class Owner:
    """A module that holds a parameter, under its own name for it; a tied one has several owners."""

    module: nn.Module
    local_name: str


class Exclude:
    """Parameters to leave out of a choice: `[zo.Exclude(nn.BatchNorm2d, "*.bias")]` is all but those."""

    def __init__(self, *choices: str | type[nn.Module]) -> None:
        self.choices = choices


_at_work, _tensors_at_work = Lock(), set[int]()  # of all threads, by id

Choice: TypeAlias = str | type[nn.Module] | Exclude


class Parameters:
    """The chosen parameters of a network, end to end as one vector of `size` numbers.

        ["*.weight", zo.Exclude(nn.BatchNorm2d)]    weights only, and not those of norms
        [nn.Conv2d, "head.*"]                       all that is in convolutions, and one layer more

    Args:
        network: its parameters are read, in the order of `named_parameters`; tied ones count once.
        choices: any of these, together: names or patterns such as `"*.weight"`; module types, each for
            all that its instances hold; `Exclude(...)` for what to leave out, of all that require a
            gradient where nothing else is chosen. None for all that require a gradient. A frozen one
            (`requires_grad=False`) is chosen by its full name, or by "*" for all that there are.

    Attributes:
        names: the name of each tensor.
        tensors: the chosen parameters, in order.
        starts: the first flat index of each.
        size: how many numbers in all.

    Raises:
        ParameterError: the network is no module, nothing chosen, a choice that matches nothing, complex
            numbers, parameters of inference mode, a dtype that is not float32 or float64, numbers in the
            same memory, or a lazy module that has not run yet.
    """

    def __init__(self, network: nn.Module, choices: Choice | Iterable[Choice] | None = None) -> None:
        if not isinstance(network, nn.Module):
            raise ParameterError(
                f"network: expected an nn.Module, got {type(network).__name__}. Put several networks in a "
                "torch.nn.ModuleDict, and a function's parameters in a module."
            )
        _refuse_unmade(network)
        _refuse_replicas(network)
        one = choices is None or isinstance(choices, str | type | Exclude)
        self._choices = choices if one else tuple(choices)  # pyright: ignore[reportArgumentType]
        weights = _choose(network, self._choices)
        if not weights:
            raise ParameterError(
                f"{type(network).__name__}: expected at least one parameter to perturb, found none. "
                "Parameters with requires_grad=False are left out; give their full names to choose them."
            )
        for name, tensor in weights.items():
            if tensor.is_complex():
                raise ParameterError(
                    f"Parameter {name!r}: expected real numbers, got {str(tensor.dtype)[6:]}, whose real and "
                    "imaginary parts would have to be moved apart. Keep it as a real parameter with a last "
                    "axis of two, and use torch.view_as_complex(...) of it in the forward."
                )
            if tensor.is_inference():
                raise ParameterError(
                    f"Parameter {name!r}: expected one that an optimizer can write to, got one that was made "
                    "inside of torch.inference_mode(). Make the network outside of it, or take a copy there: "
                    "network = copy.deepcopy(network)."
                )
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ParameterError(
                    f"Parameter {name!r}: expected float32 or float64, got {str(tensor.dtype)[6:]}. "
                    "A step of mu is lost in coarser numbers: keep the weights in float32."
                )
        self.names = tuple(weights)
        self.tensors = tuple(weights.values())
        self.starts: list[int] = []
        self.size = 0
        for tensor in self.tensors:
            self.starts.append(self.size)
            self.size += tensor.numel()
        self.owners = _owners(network, self.tensors)
        self._every = frozenset(name for name, _ in network.named_parameters())
        self._kinds = [(tensor.dtype, tensor.shape) for tensor in self.tensors]
        _refuse_shared_memory(network, self.names)

    def refuse_replaced(self, network: nn.Module) -> None:
        """Refuse a network whose parameters are not those that were chosen.

        Raises:
            ParameterError: One was replaced, frozen, unfrozen or added, is in another module, or has another
                dtype or shape; two share memory now; or parametrizations are cached, so that moving a weight
                would change nothing.
        """
        if (changed := self._changed(network)) is not None:
            raise ParameterError(
                f"{type(network).__name__}: expected the parameters that it had when the gradient was made, "
                f"but {changed} since. Make a new gradient after changing the network."
            )
        _refuse_shared_memory(network, self.names)
        if parametrize._cache_enabled:
            raise ParameterError(
                f"{type(network).__name__}: expected weights that are computed at each forward, got a block "
                "of torch.nn.utils.parametrize.cached(), where a moved weight changes nothing. Leave it out."
            )

    def refuse_frozen(self) -> None:
        """Refuse frozen parameters, that autograd would leave out.

        Raises:
            ConfigurationError: There is one.
        """
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if not tensor.requires_grad:
                raise ConfigurationError(
                    f"TangentGradient, parameters: expected those that require a gradient, got {name!r}, "
                    "which does not. Leave it out, or set requires_grad=True."
                )

    @contextmanager
    def alone(self, owner: str) -> Iterator[None]:
        """A block in which no other gradient evaluates with these weights: moves are seen by all.

        Raises:
            ParameterError: Another is at it, in a thread or around this one.
        """
        mine = {id(tensor) for tensor in self.tensors}
        with _at_work:
            if not mine.isdisjoint(_tensors_at_work):
                raise ParameterError(
                    f"{owner}: expected no other gradient at work on the same weights, got one that is not "
                    "done yet, in another thread or with this call inside of its objective. It moves weights "
                    "meanwhile: call one after the other, or give each a copy.deepcopy of the network."
                )
            _tensors_at_work.update(mine)
        try:
            yield
        finally:
            with _at_work:
                _tensors_at_work.difference_update(mine)

    def _changed(self, network: nn.Module) -> str | None:
        """Name the first difference from the choice of these parameters; None if nothing differs."""
        every, now = dict(network.named_parameters()), _choose(network, self._choices, self.tensors)
        for name, tensor, (dtype, shape) in zip(self.names, self.tensors, self._kinds, strict=True):
            if every.get(name) is not tensor:
                return f"{name!r} was replaced"
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                return f"{name!r} became {str(tensor.dtype)[6:]} of shape {tuple(tensor.shape)}"
            if name not in now:
                return f"{name!r} was frozen"
        for name in now.keys() - set(self.names):
            return f"{name!r} was {'unfrozen' if name in self._every else 'added'}"
        for name, owner, owner_now in zip(
            self.names, self.owners, _owners(network, self.tensors), strict=True
        ):
            if owner != owner_now:
                return f"{name!r} came into another module"
        return None

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors."""
        wide = any(tensor.dtype == torch.float64 for tensor in self.tensors)
        return torch.float64 if wide else torch.float32

    def flat(self) -> Tensor:
        """A copy of the values, `(size,)`, on the CPU."""
        whole = [tensor.detach().reshape(-1).to(self.dtype) for tensor in self.tensors]
        if len({tensor.device for tensor in whole}) == 1:  # one copy, for which the host waits once
            return torch.cat(whole).cpu()
        return torch.cat([tensor.cpu() for tensor in whole])

    def steps(self, indices: Tensor, mu: float) -> Tensor:
        """Return the steps that weights at flat indices `(n,)` take when mu is added in their floats, `(n,)`.

        (w + mu) - w is up to 1e-3 off mu for w = 1, mu = 1e-4 in float32; zero where mu is lost.
        """
        values = self.flat()[indices]
        steps = (values + mu) - values
        single = torch.tensor([tensor.dtype == torch.float32 for tensor in self.tensors])
        if self.dtype == torch.float64 and single.any():  # widened values would take finer steps
            narrow = values.float()
            narrow_steps = ((narrow + mu) - narrow).double()
            steps = torch.where(single[self.locate(indices)[0]], narrow_steps, steps)
        return steps

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The number of each index's tensor, and the index inside it, for flat indices `(n,)`."""
        starts = torch.tensor(self.starts)
        which = torch.searchsorted(starts, indices, right=True) - 1
        return which, indices - starts[which]

    def moved(self, perturbation: Perturbation) -> list[int]:
        """The numbers of the tensors that some queries move, ascending; directions move all of them."""
        if not isinstance(perturbation, Coordinates):
            return list(range(len(self.tensors)))
        return self.locate(perturbation.indices)[0].unique().tolist()

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of `(..., size)` in the tensors' shapes: `(..., *shape)` each."""
        pieces = flat.split([tensor.numel() for tensor in self.tensors], dim=-1)
        leading = flat.shape[:-1]
        return [piece.reshape((*leading, *t.shape)) for piece, t in zip(pieces, self.tensors, strict=True)]

    def add_to_grad(self, gradient: Tensor) -> None:
        """Add a flat gradient `(size,)` to the tensors' `.grad`, as autograd would.

        Hooks on the tensors run, and the word of an embedding's `padding_idx` gets zero, but for what other
        layers make of it that are tied to the weight, `head.weight = embedding.weight`.
        """
        gradient = sent(gradient, self.tensors[0].device)
        pieces = zip(self.tensors, self.split(gradient), self.owners, strict=True)
        for tensor, piece, owners in pieces:
            piece = piece.to(tensor.device, tensor.dtype).clone()
            if (word := _padding(owners)) is not None:
                piece[word] = 0
            for hook in (tensor._backward_hooks or {}).values():
                changed = hook(piece)
                piece = piece if changed is None else changed
            accumulate(tensor, piece)


def accumulate(tensor: Tensor, gradient: Tensor) -> None:
    """Add to the `.grad` of a parameter, and run the hooks that wait for that.

    As autograd does, the first is a copy: the gradients of weights that are added to each other are one
    tensor, which clipping would scale twice. And a `.grad` that is there is written to: it may be a view of
    one buffer for all weights, in which processes add up their gradients.
    """
    with torch.inference_mode(False), torch.no_grad():  # else nobody may write to it, as clipping does
        total = tensor.grad
        if total is None:
            tensor.grad = torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)
        elif total.is_inference() or total.requires_grad or total.layout is not torch.strided:
            tensor.grad = gradient + total  # a sparse one can only be added to a dense one
        else:
            total += gradient
    for hook in (tensor._post_accumulate_grad_hooks or {}).values():
        hook(tensor)


def _padding(owners: Iterable[Owner]) -> int | None:
    """The word that gets no gradient; None if there is none, or if other layers read the weight too."""
    layers = [owner.module for owner in owners]
    words = {layer.padding_idx if isinstance(layer, nn.Embedding) else None for layer in layers}
    return words.pop() if len(words) == 1 else None


def _refuse_unmade(network: nn.Module) -> None:
    """Refuse a lazy network, whose parameters or buffers have no shapes before its first forward."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise ParameterError(
                f"{type(network).__name__}: expected parameters and buffers that have their shapes, got "
                f"{name!r}, which a lazy module makes at its first forward. Run one batch through the "
                "network before making the gradient."
            )


def _refuse_replicas(network: nn.Module) -> None:
    """Refuse wrappers that average or shard in autograd's backward pass, which does not run here."""
    for name, module in network.named_modules():
        group = module.process_group if isinstance(module, DistributedDataParallel) else None
        if group is not None and group.size() > 1:
            where = f"{name}.module" if name else "module"
            raise ParameterError(
                f"{type(network).__name__}: expected a network that is the same with one process, got "
                f"DistributedDataParallel{f' as {name}' if name else ''}, which averages gradients in "
                "autograd's backward pass: they would differ between processes, and so would the weights. "
                f"Give the network inside ({where}). Let all have the whole batch and process_group=, or "
                "average .grad yourself, by torch.distributed.all_reduce of each."
            )
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise ParameterError(
                f"{type(network).__name__}: expected a network that has its weights whole, got "
                f"FullyShardedDataParallel{f' as {name}' if name else ''}, which keeps a shard of them. "
                "Give the network before it was wrapped, one in each process."
            )
    for name, tensor in network.named_parameters():
        if hasattr(tensor, "full_tensor"):  # a DTensor
            raise ParameterError(
                f"parameter {name!r}: expected a plain tensor, got a {type(tensor.data).__name__} in shards. "
                "Give the network before fully_shard, one in each process."
            )


def _refuse_shared_memory(network: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse chosen numbers in one memory, or in that of frozen ones, where a step of one moves another."""
    chosen = frozenset(chosen)
    placed = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), name, tensor)
        for name, tensor in network.named_parameters()
        if tensor.device.type != "meta" and tensor.numel() and tensor.layout is torch.strided
    )
    neighbours: list[tuple[str, Tensor]] = []
    reach = 0
    for start, end, name, tensor in placed:
        if start >= reach:
            neighbours = []
        neighbours.append((name, tensor))
        reach = max(reach, end)
        if len(neighbours) > 1 or _extent(tensor) < tensor.numel() * tensor.element_size():
            _refuse_overlap(neighbours, chosen)


def _refuse_overlap(neighbours: list[tuple[str, Tensor]], chosen: frozenset[str]) -> None:
    """Refuse parameters whose ranges of addresses meet, if a chosen one has a number in common."""
    # frozen ones may be large, and each step comes here
    if chosen.isdisjoint(name for name, _ in neighbours):
        return
    *neighbours_before, (name, tensor) = [(name, _words(tensor)) for name, tensor in neighbours]
    if name in chosen and len(tensor.unique()) < len(tensor):
        raise ParameterError(
            f"parameter {name!r}: expected each number to have memory of its own, got some in the same "
            "memory, as in an expanded tensor, where a step of one moves several. Keep the tensor as it was "
            "before it was expanded, and expand it in the forward."
        )
    for neighbour, words in neighbours_before:
        if not chosen.isdisjoint((name, neighbour)) and torch.isin(tensor, words).any():
            raise ParameterError(
                f"parameters {neighbour!r} and {name!r}: expected each to have memory of its own, got two in "
                "the same memory, where a step of one moves both. Tie them as one parameter: "
                "b.weight = a.weight; or copy the values: b.weight.data.copy_(a.weight)."
            )


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first number to behind its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()


def _words(tensor: Tensor) -> Tensor:
    """The addresses of all the words of four bytes that a tensor's numbers are in."""
    addresses = torch.tensor([tensor.data_ptr()])
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        addresses = (addresses[:, None] + stride * tensor.element_size() * torch.arange(size)).flatten()
    return (addresses[:, None] + torch.arange(0, tensor.element_size(), 4)).flatten()


def _choose(
    network: nn.Module, choices: Choice | Iterable[Choice] | None, before: Iterable[Tensor] = ()
) -> dict[str, nn.Parameter]:
    """Return the chosen parameters by name; those of an earlier choice, `before`, may be frozen."""
    every = dict(network.named_parameters())
    listed = [choices] if isinstance(choices, str | type | Exclude) else list(choices or [])
    choices_to_take = [choice for choice in listed if not isinstance(choice, Exclude)]
    unwanted = [choice for without in listed if isinstance(without, Exclude) for choice in without.choices]
    trained = {id(tensor) for tensor in every.values() if tensor.requires_grad}
    explicit = {name for name, _ in network.named_parameters(remove_duplicate=False)} | {"*"}
    ids: set[int] = set()
    for choice in choices_to_take:
        matches = {id(tensor) for tensor in _matches(network, choice)}
        ids |= matches if choice in explicit else matches & (trained | set(map(id, before)))
    if not choices_to_take and (unwanted or choices is None):
        ids = trained
    ids = ids - {id(tensor) for choice in unwanted for tensor in _matches(network, choice)}
    # Without empty ones, such as placeholders: there is nothing to move.
    return {name: tensor for name, tensor in every.items() if id(tensor) in ids and tensor.numel()}


def _matches(network: nn.Module, choice: str | type[nn.Module]) -> list[nn.Parameter]:
    """Find the parameters that a name, a pattern or a module type stands for; never none."""
    # Duplicates too: a tied parameter answers to each of its names.
    every = dict(network.named_parameters(remove_duplicate=False))
    if isinstance(choice, str):
        matches = [tensor for name, tensor in every.items() if name == choice or fnmatchcase(name, choice)]
        near = difflib.get_close_matches(choice, every, n=3, cutoff=0.3) or list(every)
    elif isinstance(choice, type) and issubclass(choice, nn.Module):
        # Children included: under a parametrization the weights belong to a child of the layer.
        holders = [module for module in network.modules() if isinstance(module, choice)]
        matches = [tensor for module in holders for tensor in module.parameters()]
        near = sorted(
            {type(m).__name__ for m in network.modules() if next(m.parameters(False), None) is not None}
        )
    else:
        raise ParameterError(
            f"parameters: expected names, patterns, module types or Exclude(...), got {choice!r}. "
            "For one module give its name, as in 'encoder.*'."
        )
    if not matches:
        got = repr(choice) if isinstance(choice, str) else choice.__name__
        raise ParameterError(
            f"parameters: expected names or patterns of {type(network).__name__}'s parameters, or types of "
            f"modules that hold some, got {got}, which matches none. Near: {', '.join(near)}."
        )
    return matches


def _owners(network: nn.Module, tensors: Iterable[Tensor]) -> tuple[tuple[Owner, ...], ...]:
    """The modules that hold each tensor."""
    owners: dict[int, list[Owner]] = {id(tensor): [] for tensor in tensors}
    for module in network.modules():
        for local_name, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(tensor) in owners:
                owners[id(tensor)].append(Owner(module, local_name))
    return tuple(map(tuple, owners.values()))
