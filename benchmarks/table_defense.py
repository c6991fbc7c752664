"""Certified accuracy of a classifier defended from queries alone, at equal queries, published figures beside.

python -m benchmarks table_defense --size ci        seconds; it shows that it runs, no more
python -m benchmarks table_defense --size small     the digits, three seeds, N = 10,000
python -m benchmarks table_defense --size few       the same digits, 1,000 queries, N = 1,000
python -m benchmarks table_defense --size labels    a classifier that answers labels alone, N = 1,000
python -m benchmarks table_defense --size shapes    images of 32 x 32 pixels in colour, one seed, N = 500
python -m benchmarks table_defense --size small --box a --answers probabilities --decimals 3
python -m benchmarks table_defense --size paper --box model.py:make --images FOLDER
    an ONNX file has no derivative for fo-ds: --box model.onnx --methods none mse zo-ae-ds:cge student
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas

from benchmarks import protocol
from benchmarks.published import DEFENCE
from blackbox.words import counted
from tasks.applications.denoised_smoothing import DenoisedSmoothing, report
from tasks.applications.denoised_smoothing.certification import accuracy_table, plot_certified_accuracy
from tasks.applications.denoised_smoothing.config import PRESETS, Config, ZerothOrder
from tasks.folder import atomic
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.report import markdown

NAME = "table_defense"
CI = Config(
    methods=("none", "mse", "zo-ds", "zo-ae-ds", "deepzero", "student", "fo-ds"),
    steps=60,
    queries=2500,
    evaluator="loop",  # whose check costs no queries
    fo_queries=2500,
    train_images=100,
    validation_images=50,
    validations=2,
    mu_queries=140,
    ratio_directions=2,
    student_steps=40,
    student_first_steps=60,
    certify_images=5,
    n=100,
    n0=20,
    zeroth_order=ZerothOrder(coordinates=8),
)
SIZES = {"ci": CI, **{name: PRESETS[name] for name in ("small", "few", "labels", "shapes", "paper")}}
SEEDS = {"ci": 1, "labels": 1, "shapes": 1}  # of the others three


def name_of(size: str, config: Config) -> str:
    """File in `benchmarks/results`: the box and its answers tell several runs apart."""
    rounded = "" if config.decimals is None else f"-{config.decimals}"
    box = Path(config.box.partition(":")[0]).stem
    return f"{NAME}-{size}-{box}-{config.asked}{rounded}"


def asked(words: Sequence[str]) -> tuple[Namespace, Config]:
    """The options of a command line, and the settings that follow from them."""
    parser = protocol.options(NAME, __doc__, SIZES, trains=True)
    parser.add_argument("--box", help="the size's if not given")
    parser.add_argument(
        "--answers", choices=("logits", "probabilities", "labels"), help="the size's if not given"
    )
    parser.add_argument("--decimals", type=int, help="of probabilities")
    parser.add_argument("--images", type=Path, help="yours; the digits if not given")
    parser.add_argument("--methods", nargs="+", help="the size's if not given")
    chosen = parser.parse_args(words)
    options = {name: getattr(chosen, name) for name in ("box", "answers", "decimals", "images", "methods")}
    changes = {name: value for name, value in options.items() if value is not None}
    if "methods" in changes:
        changes["methods"] = tuple(changes["methods"])
    return chosen, replace(SIZES[chosen.size], **changes)


def main(words: Sequence[str]) -> None:
    """Run, print and write the table."""
    chosen, config = asked(words)
    problem = DenoisedSmoothing(config, folder=chosen.data)
    seeds = chosen.seeds or range(SEEDS.get(chosen.size, 3))
    run = protocol.finished(problem, chosen.size, seeds, chosen.runs)
    show(run, words, keep=chosen.size != "ci")


def show(run: Run, words: Sequence[str], keep: bool) -> None:
    """Print the table of a finished run, and keep it with its pictures."""
    result, config = report.judged(Result.read(run.path)), run.configuration(Config)
    certificates = report.certificates(run, result)
    chosen = report.best_of_families(result)
    ours = accuracy_table(certificates, report.queries_of(result))
    shown = f"{markdown(ours)}\n{_published(ours, chosen)}"
    print(shown)
    if not keep:
        return
    to = protocol.RESULTS / f"{name_of(run.preset, config)}.json"
    families = {family: certificates[method] for family, method in chosen.items()}
    plot_certified_accuracy(to.with_suffix(".png"), families, config.smoothing.radius_cap)
    report.against_queries(result, to.with_name(f"{to.stem}-queries.png"))
    atomic.write_bytes(to.with_suffix(".md"), f"{_heading(run, config)}\n\n{shown}".encode())
    about = {"preset": run.preset, "seeds": list(run.seeds), "config": run.config, "run command": run.command}
    rows = [asdict(row) for row in result.table]
    protocol.write(NAME, words, {**about, "published": DEFENCE, "table": rows}, to)


def _heading(run: Run, config: Config) -> str:
    count = Result.read(run.path).table[0].extra["images"]  # there may be fewer than were asked for
    answers = config.asked if config.decimals is None else f"{config.asked} to {config.decimals} decimals"
    return (
        f"Box {config.box!r}, {answers}; {counted(len(run.seeds), 'seed')}, {count} images, "
        f"N = {config.n:,}. Queries: all of training, mu, layer ratios, clean images and validation; "
        f"the zeroth-order methods without a number after @ have {config.queries:,} each. Mean ± standard "
        "deviation over seeds."
    )


def _published(ours: pandas.DataFrame, chosen: Mapping[str, str]) -> str:
    """The published figures, and ours of the same families, as Markdown."""
    by_method = ours.set_index("method")
    columns = [name for name in ours.columns if name.startswith("r = ")]
    rows = []
    for family, figures in DEFENCE.items():
        here = by_method.loc[chosen[family], columns].tolist() if family in chosen else ["-"]
        rows.append((family, " / ".join(f"{figure:.2f}" for figure in figures), " / ".join(map(str, here))))
    frame = pandas.DataFrame(rows, columns=["method", f"published, {', '.join(columns)}", "here"])
    return (
        f"{markdown(frame)}\nPublished: Chen et al. (2024), black-box defence on ImageNet-10 (ResNet-50, "
        "DnCNN of depth 17 and width 64), each method with its own queries; here all zeroth-order methods "
        "have as many.\n"
    )
