"""How well learned tangents point while they train an example, and when they said that they do not.

    python examples/cosines.py examples/cantera/problem.py --every 5 --seeds 0 1

At every few steps of a training by `tangents` the gradient is compared with the true one: that of the
problem's `reference` where it has one, and else of central differences along as many orthogonal directions at
a box's inputs as these have numbers, in each row of each call. Every fifth time these are taken over a third
of the step too; the cosine of the two says how far they are to be believed. What is compared runs rows beside
those of training, and changes nothing of it.

`cosines.json` beside the problem has of each compared step: loss, cosine, length over the true one, what the
check gave if there was one, and what was said since the step compared before. With `--checked` a copy of the
gradient takes each compared step with a check, which shows what one would have found there.
"""

import argparse
import copy
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import tasks
import zo
from tasks.methods.problem_reference import with_derivative
from tasks.problem.problems import find

WRONG = 0.5  # a cosine below


def flat(network):
    return torch.cat([grad_of(weight).double().flatten() for weight in network.parameters()])


def grad_of(weight):
    """Zero where there is none, as in the first steps of a closed loop."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def true_gradient(problem, network, batch, mu):
    """Of all weights, flat; `.grad` stays as it is."""
    (box,) = problem.boxes.values()
    if problem.has_reference():
        stand = with_derivative(box, problem.reference)
    else:
        size = sum(math.prod(spec.shape) for spec in box.inputs if spec.differentiable)
        stand = zo.differentiable(box, zo.box_gradient.RowRGE(mu, size, central=True), seed=0)
    kept = [weight.grad for weight in network.parameters()]
    network.zero_grad()
    tasks.methods.AutogradGradient(network, problem.objective, {box: stand}).backward(batch)
    gradient = flat(network)
    for weight, before in zip(network.parameters(), kept, strict=True):
        weight.grad = before
    return gradient


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def check_beside(gradient, batch):
    """What a check of this step finds, made by a copy of the gradient, which stays as it is."""
    twin = copy.deepcopy(gradient)
    terms = twin.watch.terms
    twin.watch.terms = replace(terms, limits=replace(terms.limits, check_every=1))
    twin.backward(batch)
    return {"would agree": twin.agreement, "rows would": twin.agreement_of_rows, "would miss": twin.missed}


def training(problem, seed, every, mu, checked=False):
    """The figures of each step that was compared or checked."""
    config = problem.config
    torch.manual_seed(seed)
    network = problem.network()
    boxes = list(problem.boxes.values())
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: problem.objective(network, batch),  # which a copy of the gradient shares
        boxes=boxes,
        seed=seed,
        limits=zo.tangents.Limits(replays=0),
    )
    optimizer = torch.optim.Adam(network.parameters())
    lines, said = [], []
    for step in range(config.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.schedule == "cosine" else 1.0
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        optimizer.zero_grad()
        batch = problem.data.train(seed, step)
        compared = step % every == 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            if compared:
                true = true_gradient(problem, network, batch, mu)
                again = step % (5 * every) == 0 and not problem.has_reference()
                nearer = true_gradient(problem, network, batch, mu / 3) if again else None
                beside = check_beside(gradient, batch) if checked else {}
            warnings.simplefilter("always", zo.TangentWarning)
            loss = gradient.backward(batch).item()
        said += [
            str(warning.message) for warning in caught if issubclass(warning.category, zo.TangentWarning)
        ]
        if compared or gradient.agreement is not None or said:
            line = {"step": step, "loss": loss, "agreement": gradient.agreement}
            line |= {"agreement_of_rows": gradient.agreement_of_rows, "missed": gradient.missed}
            line |= {"error": gradient.trust_of_step, "lost": gradient.watch.lost, "said": said}
            if compared:
                learned = flat(network)
                line |= {"cosine": cosine(learned, true), "length": (learned.norm() / true.norm()).item()}
                line |= {"slope": true.norm().item()} | beside
                line |= {} if nearer is None else {"at a third of mu": cosine(true, nearer)}
            lines.append({name: round(x, 6) if isinstance(x, float) else x for name, x in line.items()})
            print(*(f"{name} {x}" for name, x in lines[-1].items()), sep=", ")
            said = []
        optimizer.step()
    return lines


def summary(lines):
    """How often the gradient was wrong, and when that was said."""
    compared = [line for line in lines if "cosine" in line]
    cosines = sorted(line["cosine"] for line in compared)
    return {
        "compared": len(compared),
        "median cosine": cosines[len(cosines) // 2],
        "least cosine": cosines[0],
        "steps with a cosine below .5": [line["step"] for line in compared if line["cosine"] < WRONG],
        "steps of warnings": [line["step"] for line in lines if line["said"]],
        "steps of checks": [line["step"] for line in lines if line["agreement"] is not None],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("problem", type=Path)
    parser.add_argument("--every", type=int, default=5, help="steps between comparisons")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, help="of the training; those of the preset if none")
    parser.add_argument("--mu", type=float, default=0.003, help="of differences, in the inputs' scales")
    parser.add_argument("--checked", action="store_true", help="what a check of each compared step finds")
    parser.add_argument("--to", default="cosines.json", help="the file beside the problem")
    options = parser.parse_args()
    kind, _ = find(str(options.problem))
    settings = {} if options.steps is None else {"steps": options.steps}
    torch.set_num_threads(1)
    seeds = {}
    for seed in options.seeds:
        problem = kind(kind.presets[options.preset], folder=Path("data"), **settings)
        lines = training(problem, seed, options.every, options.mu, options.checked)
        seeds[str(seed)] = {"summary": summary(lines), "steps": lines}
        print(seed, json.dumps(seeds[str(seed)]["summary"]))
    names = ("preset", "every", "mu", "steps", "checked")
    arguments = {name: getattr(options, name) for name in names}
    text = json.dumps({"arguments": arguments, "seeds": seeds}, indent=1)
    options.problem.with_name(options.to).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
