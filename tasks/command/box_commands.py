"""The commands for black boxes and hosts: check, serve, host, tesseract; tyro reads their arguments as well.

Nothing heavy is imported before a command is at work.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from blackbox.terminal import say
from tasks.command.output_files import refuse_unwritable
from tasks.command.run_command import Trust
from tasks.configuration import names
from tasks.errors import ConfigurationError

TOKEN = "BLACKBOX_TOKEN"  # the environment variable with what requests to a served box must bear
Target = Annotated[
    Positional[str],
    arg(
        help="A name of `blackbox list`, module:Class, or file.py:Class; a function that makes a black box "
        "may stand in the class's place.",
        metavar="TARGET",
    ),
]
Arguments = Annotated[
    Positional[tuple[str, ...]],
    arg(
        help="What it is made with: numbers, true, false, null or text.",
        metavar="NAME=VALUE ...",
        help_behavior_hint="(default: nothing)",
    ),
]


def check(
    target: Target,
    arguments: Arguments = (),
    *,
    samples: Annotated[
        Path | None, arg(help="Rows such as training will meet: .npy, or .npz with an array for each input.")
    ] = None,
    out: Annotated[Path | None, arg(help="File for the report as JSON; - for standard output.")] = None,
    rows: Annotated[
        int | None,
        arg(
            help="The most rows to run; some 6,000 measure every line of one input.",
            help_behavior_hint="(default: 1000, and 400 for each differentiable input beyond one)",
        ),
    ] = None,
    seconds: Annotated[
        float, arg(help="The most seconds to take; what does not fit is said to be left out.")
    ] = 60.0,
    processes: Annotated[
        bool, arg(help="Do not try it in other processes.", help_behavior_hint="(default: it is tried)")
    ] = True,
    seed: Annotated[int, arg(help="Of all draws.")] = 0,
) -> int:
    """Examine a black box: is it fit to be trained through, and with which mu?

    The exit status is 0 where there is no fault, 1 otherwise; 130 after Ctrl-C, with the findings so far.
    """
    from blackbox import conformance
    from blackbox.box_group import BoxGroup

    if samples is not None and not samples.is_file():
        raise ConfigurationError(
            f"--samples: no such file {samples}. Save rows with numpy.save, or by the inputs' names with "
            "numpy.savez."
        )
    if out is not None and str(out) != "-":
        refuse_unwritable("--out", out, ".json")  # now, and not after all rows
    where = None if out is None else str(out)
    box = _box(target, arguments, groups=True)
    if isinstance(box, BoxGroup):
        return box.check(where, seed=seed)
    if rows is None:  # two lines in each input
        rows = 1000 + 400 * max(0, sum(spec.differentiable for spec in box.inputs) - 1)
    return conformance.command(
        box, samples, where, rows=rows, seconds=seconds, processes=processes, seed=seed
    )


def serve(
    target: Target,
    arguments: Arguments = (),
    *,
    host: Annotated[
        str, arg(help="Address to listen at; the default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, arg(help="Port to listen at; 0 takes a free one, and prints it.")] = 4242,
    token: Annotated[
        str | None,
        arg(help="What requests must bear. Others can read it here: better set BLACKBOX_TOKEN."),
    ] = None,
    name: Annotated[str | None, arg(help="Of the model, for clients; None for its class's.")] = None,
    threads: Annotated[int, arg(help="Evaluations at a time, for a box that may run in threads.")] = 1,
    derivative: Annotated[
        Literal["own", "differences"],
        arg(
            help="What gradients come from: the box's own derivative, where it has one; or central "
            "differences, two rows for each number of the inputs. --learn and --from make a frozen one."
        ),
    ] = "own",
    mu: Annotated[
        float | None,
        arg(
            help="With --derivative differences: how far one moves a number, in the scale of its input.",
            help_behavior_hint="(default: 0.001)",
        ),
    ] = None,
    learn: Annotated[
        int | None, arg(help="Rows to buy around --around; a derivative is learned from them, and frozen.")
    ] = None,
    recorded: Annotated[
        Path | None, arg(name="from", help="HDF5 file of recorded rows that a frozen derivative learns from.")
    ] = None,
    around: Annotated[
        Path | None, arg(help="Inputs near which rows are bought, such as prior draws: .npy or .npz.")
    ] = None,
    frozen: Annotated[
        Path | None,
        arg(
            help="File of the frozen derivative: read where it is there, so nothing is learned again; else "
            "written. Rows that are bought are beside it, FILE.rows.h5; a start after a kill goes on there."
        ),
    ] = None,
    same_box: Annotated[
        bool,
        arg(
            help="Take the derivative from --frozen, and rows beside it, though the box that they are of had "
            "other code, values or another address, because it gives the same answers."
        ),
    ] = False,
) -> int:
    """Serve a black box by the UM-Bridge protocol, until Ctrl-C."""
    from blackbox import adapters

    freezes = learn is not None or recorded is not None or frozen is not None
    if freezes and derivative != "own":
        raise ConfigurationError(
            "serve: expected --derivative differences without --learn, --from and --frozen, which make a "
            "derivative, got both. Leave one out."
        )
    for option, beside, alone in (
        ("--mu", "--derivative differences", mu is not None and derivative == "own"),
        ("--around", "--learn", around is not None and learn is None),
        ("--same-box", "--frozen", same_box and frozen is None),
    ):
        if alone:
            raise ConfigurationError(
                f"serve: expected {option} beside {beside}, got it alone, where it does nothing. Add "
                f"{beside}, or leave it out."
            )
    if token == "":
        raise ConfigurationError(
            "serve, --token: expected a text, got an empty one, with which everyone is answered. Is a "
            "variable of the shell not set? To answer everyone leave --token out."
        )
    if frozen is not None:
        refuse_unwritable("--frozen", frozen)
    box, resources = _box(target, arguments), nullcontext()
    if freezes:
        name = name or type(box).__name__
        box, resources = _frozen(box, learn, recorded, around, frozen, same_box)
    if derivative == "own":
        solver = None
    else:
        from tasks.command.write_tesseract import solver_of

        solver = solver_of(box, derivative, 1e-3 if mu is None else mu)
    with resources:
        adapters.um_bridge.serve(
            box if name is None else {name: box},
            derivative=solver,
            host=host,
            port=port,
            token=token or os.environ.get(TOKEN) or None,
            threads=threads,
        )
    return 0


def _frozen(
    box: Any,
    learn: int | None,
    recorded: Path | None,
    around: Path | None,
    kept: Path | None,
    same_box: bool,
) -> tuple[Any, AbstractContextManager[None]]:
    """The box with a frozen derivative, and a block beside which it is learned if it is not there yet."""
    import zo
    from blackbox.conformance.samples import read_samples
    from zo.recorded_rows import inputs_around, read_rows

    solver = zo.frozen(box)
    if kept is not None and kept.is_file():
        solver.load(kept, same_box=same_box)
        say(f"frozen: {solver.info}")
        if learn is not None or recorded is not None:
            say(f"{kept} was there, so nothing is learned. To learn anew give another --frozen.")
        return solver, nullcontext()
    if (learn is None) == (recorded is None):
        raise ConfigurationError(
            "serve, --learn: expected either --learn ROWS --around FILE, or --from FILE, got "
            f"{'neither' if learn is None else 'both'}. Give one of the two."
        )
    if around is not None and (learn is None or not around.is_file()):
        raise ConfigurationError(
            f"serve, --around: expected a file of inputs, beside --learn, got {around}. Save prior draws "
            "with numpy.save, or by the inputs' names with numpy.savez."
        )
    # what is wrong with a file is said before anything is served
    inputs = None if around is None else list(read_samples(box, around))
    if learn is None:
        rows, inputs = read_rows(box, recorded or ""), None
    else:
        rows, inputs = learn, inputs_around(box, inputs, learn)
    box.failures = "keep"  # rows that fail are left out of what is learned

    def work() -> None:
        path = None if learn is None or kept is None else f"{kept}.rows.h5"
        solver.learn(rows, around=inputs, path=path, same_box=same_box)
        if kept is not None:
            solver.save(kept)
        say(f"frozen: {solver.info}")

    return solver, _beside(work)


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """A block of the main thread, beside which another one works; what that raises ends the block.

    A shell starts a job in the background with SIGINT ignored. Here it is not, since it ends the block.
    """
    failed: list[BaseException] = []
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGINT)  # which ends the server

    try:
        if ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        Thread(target=run, daemon=True).start()  # here too it may have raised by now
        yield
    except KeyboardInterrupt:
        if not failed:
            raise
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    if failed:
        raise failed[0]


def host(
    folder: Annotated[
        Positional[Path],
        arg(help="Where the files are written; with --serve, the folder of the run.", metavar="FOLDER"),
    ],
    program: Annotated[
        Positional[tuple[str, ...]],
        arg(
            help="With --serve: the program and its arguments.",
            metavar="PROGRAM ...",
            help_behavior_hint="(default: none)",
        ),
    ] = (),
    *,
    serve: Annotated[
        bool, arg(help="Run a program with the network that a run has trained, which answers its calls.")
    ] = False,
    export: Annotated[
        Path | None,
        arg(
            help="Write the network that a run has trained: .pt, TorchScript for FTorch, or .onnx.",
            help_behavior_hint="(default: nothing)",
        ),
    ] = None,
    method: Annotated[str | None, arg(help="Whose network; None for the last of the run's methods.")] = None,
    seed: Annotated[int | None, arg(help="Of which seed; None for the first.")] = None,
    trust: Trust = False,
) -> int:
    """Write bb_host, by which a C, C++, Fortran or Python program calls a network; or serve such a program.

    `blackbox host DIR` writes the files that are added to the program. `blackbox host --serve RUN --
    ./ocean case.nml` runs it with a trained network, and `blackbox host RUN --export net.pt` writes that for
    others.
    """
    from blackbox import adapters
    from tasks.command import hosting
    from tasks.folder.terms import BEGUN

    if serve and export is not None:
        raise ConfigurationError("host: expected --serve or --export, got both. Do one after the other.")
    if export is not None and program:
        raise ConfigurationError(
            f"host: expected --export and no program, got {' '.join(program)}. Leave it out, or take --serve."
        )
    if serve:
        return hosting.serve(folder, program, method, seed, trust)
    if export is not None:
        return hosting.export(folder, export, method, seed, trust)
    if program:
        raise ConfigurationError(
            f"host: expected one folder, got {' '.join(program)} behind it. Add --serve to run a program."
        )
    options = {"--method": method is not None, "--seed": seed is not None, "--trust": trust}
    of_a_run = [option for option, given in options.items() if given]
    if of_a_run or (folder / BEGUN).is_file():
        got = ", ".join(of_a_run) or f"the run {folder}"
        raise ConfigurationError(
            f"host: expected --serve or --export with a run, got {got} alone. Add one of them; to "
            "write bb_host name another folder."
        )
    say(adapters.hosted.write_client(folder))
    return 0


def tesseract(
    target: Target,
    folder: Annotated[Positional[Path], arg(help="Where the files are written.", metavar="FOLDER")],
    arguments: Arguments = (),
    *,
    derivative: Annotated[
        Literal["differences", "values"],
        arg(
            help="Central differences: two rows for each number of the inputs. Or a tangent that is learned "
            "over the calls from the values of the solves alone."
        ),
    ] = "differences",
    mu: Annotated[float, arg(help="How far a difference moves a number, in the scale of its input.")] = 1e-3,
    vectorized: Annotated[
        bool, arg(help="Whether arrays have an open first axis, for many rows a call.")
    ] = False,
) -> int:
    """Write a black box as a Tesseract: schemas, `apply`, and a derivative from function values."""
    from blackbox.registry_arguments import parse
    from tasks.command import write_tesseract

    box, options = _box(target, arguments), {"derivative": derivative, "vectorized": vectorized, "mu": mu}
    say(write_tesseract.write(box, target, parse(arguments), folder, **options))
    return 0


def _box(target: str, arguments: Sequence[str], groups: bool = False) -> Any:
    """The black box that a command names, or with `groups` what has several, such as a `Hosted`."""
    from blackbox.registry import make, make_any
    from blackbox.registry_arguments import parse

    names.check_single(target)
    return (make_any if groups else make)(target, parse(arguments), names.functions())
