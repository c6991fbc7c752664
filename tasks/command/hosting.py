"""`blackbox host` with a run: a program that its network answers, and the network for others."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blackbox import ArraySpec, adapters
from blackbox.adapters import Call, Hosted
from blackbox.extras import import_extra
from blackbox.quiet_export import quiet_export
from blackbox.terminal import say
from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.problem.problem import Problem

ENDINGS = (".pt", ".onnx")
TOLERANCE = 1e-5  # of the largest number
Written = Callable[[list[Tensor]], Any]  # what was written, of a batch


def serve(folder: Path, program: Sequence[str], method: str | None, seed: int | None, trust: bool) -> int:
    """Run a program whose calls the network of a run answers; 0, or an error.

    Raises:
        ConfigurationError: The run's problem has no `Hosted`, or its network answers not all calls.
        ProblemError: The problem's code is not at hand.
    """
    host, networks, name = _trained(folder, method, seed, trust)
    answered = adapters.hosted.serve_program(program, host.calls, networks)
    say(f"{counted(answered, 'call')} answered by the network of {name}.")
    return 0


def export(folder: Path, path: Path, method: str | None, seed: int | None, trust: bool) -> int:
    """Write the network of a run for other runtimes, a file for each call; 0, or an error.

    `.pt` is TorchScript, as FTorch takes it; `.onnx` for onnxruntime. Both take rows first, and are held
    against the network before they are kept.

    Raises:
        ConfigurationError: The ending is another, the run's problem has no `Hosted`, or what was written
            gives other numbers.
        MissingExtraError: A package for ONNX is not installed.
        ProblemError: The problem's code is not at hand.
    """
    if path.suffix not in ENDINGS:
        raise ConfigurationError(
            f"--export: expected a file that ends in {' or '.join(ENDINGS)}, got {path.name}. Rename it."
        )
    host, networks, name = _trained(folder, method, seed, trust)
    for call in host.calls:
        one = path if len(host.calls) == 1 else path.with_stem(f"{path.stem}-{call.name}")
        _write(networks[call.name], call, one)
        shapes = [(1, *spec.shape) for spec in (*call.seen, *call.given)]
        say(f"Wrote {one}: the network of {name}, {' and '.join(map(str, shapes[:-1]))} to {shapes[-1]}.")
    return 0


def _write(network: Any, call: Call, path: Path) -> None:
    """Write a call's network, and hold what was written against it."""
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"--export: expected a network, got {type(network).__name__} for {call.name!r}."
        )
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    batches = [[_drawn(spec, rows, generator) for spec in call.seen] for rows in (1, 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}-part{path.suffix}")
    write = _torchscript if path.suffix == ".pt" else _onnx
    written = write(network, batches, part)
    for arrays in batches:
        expected = network(*arrays)
        expected = expected if isinstance(expected, tuple | list) else (expected,)
        for one, other in zip(expected, written(arrays), strict=True):
            off = float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
            if not off <= TOLERANCE:
                part.unlink(missing_ok=True)
                raise ConfigurationError(
                    f"{path}: expected the numbers of the network to {TOLERANCE:g}, got a difference of "
                    f"{off:.2g}. Its forward is not to branch on its input's values or number of rows."
                )
    part.replace(path)


def _torchscript(network: nn.Module, batches: list[list[Tensor]], path: Path) -> Written:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is to end; FTorch takes nothing else
        torch.jit.trace(network, tuple(batches[0]), check_trace=False).save(str(path))  # pyright: ignore
        module = torch.jit.load(str(path))

    def run(arrays: list[Tensor]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = module(*arrays)
        return outputs if isinstance(outputs, tuple | list) else (outputs,)

    return run


def _onnx(network: nn.Module, batches: list[list[Tensor]], path: Path) -> Written:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra("blackbox host --export", module, "export")
    rows = torch.export.Dim("rows", min=1)
    with quiet_export():
        program = torch.onnx.export(
            network, tuple(batches[1]), dynamo=True, verbose=False,
            dynamic_shapes=tuple({0: rows} for _ in batches[1]),
        )  # fmt: skip
        assert program is not None  # as it is with dynamo
    path.write_bytes(program.model_proto.SerializeToString())
    return lambda arrays: program(*arrays)


def _drawn(spec: ArraySpec, rows: int, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(rows, *spec.shape, generator=generator)
    if spec.scale is not None:
        numbers = numbers * torch.as_tensor(np.reshape(spec.scale, spec.shape)).float()
    return numbers if spec.floating else numbers.abs().round().to(spec.torch_dtype)


def _trained(
    folder: Path, method: str | None, seed: int | None, trust: bool
) -> tuple[Hosted, Mapping[str, Callable[..., Any]], str]:
    """The host of a run, what answers its calls, and whose network it is; that of a checkpoint if need be."""
    from tasks.folder.run import Run
    from tasks.running.finished import loaded

    run = loaded(Run.open(folder), trust)
    problem, first = run.problem, run.result.table[0].seed if seed is None else seed
    if method is None:
        of_seed = [row.method for row in run.result.table if row.seed == first]
        method = (of_seed or [run.result.table[-1].method])[-1]
    network = run.network(method, first)
    if problem is None or not isinstance(problem.box, Hosted):
        raise ConfigurationError(
            f"{folder}: expected a run of a problem whose box is a Hosted, got {problem and problem.box!r}. "
            "Only such a program calls its network."
        )
    return problem.box, networks_of(problem, network.eval()), f"{method}, seed {first}"


def networks_of(problem: Problem, network: nn.Module) -> Mapping[str, Callable[..., Any]]:
    """Return the network that answers each call of a problem's host, or its parts of the calls' names.

    Raises:
        ConfigurationError: There are several calls, and the network has no parts of their names.
    """
    names = [call.name for call in problem.box.calls]
    if len(names) == 1:
        return {names[0]: network}
    parts = {name: getattr(network, name, None) for name in names}
    if missing := [name for name, part in parts.items() if not callable(part)]:
        raise ConfigurationError(
            f"{type(network).__name__}: expected a part for each of the calls {', '.join(names)}, such as "
            f"network.{missing[0]}, got none for {', '.join(missing)}."
        )
    return parts  # pyright: ignore[reportReturnType]
