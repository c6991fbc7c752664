"""How well learned tangents point while they train an example, and when they said that they do not.

    python examples/cosines.py examples/cantera/problem.py --every 4 --seeds 0 1

At every few steps of a training by `tangents` the gradient is compared with the true one: central differences
along as many orthogonal directions at a box's inputs as these have numbers, in each row of each call, which
autograd carries to the weights. They are taken a second time over a third of the step; the cosine of these two
says how far the true one is to be believed. Both run rows that training does not need and that are not counted.
`cosines.json` beside the problem has the figures of each compared step: loss, cosine, length over the true one,
what a check of that step gave, and the warnings since the step before.
"""

import argparse
import json
import math
import warnings
from pathlib import Path

import torch

import zo
from tasks.problems import find


def flat(network, gradient, batch):
    """A gradient of all weights; `.grad` stays as it is."""
    kept = [weight.grad for weight in network.parameters()]
    for weight in network.parameters():
        weight.grad = None
    gradient(batch)
    found = torch.cat([weight.grad.double().flatten() for weight in network.parameters()])
    for weight, own in zip(network.parameters(), kept, strict=True):
        weight.grad = own
    return found


def true_gradient(problem, network, batch, mu):
    """By central differences in all inputs of the box, whose directions are orthogonal."""
    box = problem.box
    size = sum(math.prod(spec.shape) for spec in box.inputs if spec.differentiable)
    stand = zo.differentiable(box, zo.RowRGE(mu, size, central=True), seed=0)
    problem.box = stand
    try:
        return flat(network, lambda rows: problem.objective(network, rows).nanmean().backward(), batch)
    finally:
        problem.box = box


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def training(problem, seed, every, mu):
    """The figures of each compared step."""
    config = problem.config
    torch.manual_seed(seed)
    network = problem.network()
    gradient = zo.TangentGradient(
        network, problem.objective, boxes=[problem.box], probes=config.probes, seed=seed, replays=0
    )
    optimizer = torch.optim.Adam(network.parameters())
    told, found = [], []
    for step in range(config.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.schedule == "cosine" else 1.0
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        optimizer.zero_grad()
        batch = problem.data.train(seed, step)
        compared = step % every == 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            if compared:
                true, nearer = (true_gradient(problem, network, batch, size) for size in (mu, mu / 3))
            warnings.simplefilter("always", zo.TangentWarning)
            loss = gradient.backward(batch).item()
        told += [f"step {step}: {each.message}" for each in caught if issubclass(each.category, zo.TangentWarning)]
        if compared or gradient.agreement is not None:
            line = {"step": step, "loss": loss, "lost": gradient.watch.lost}
            line |= {"agreement": gradient.agreement, "agreement_of_rows": gradient.agreement_of_rows}
            line |= {"missed": gradient.missed, "error": gradient.trust_of_step, "warnings": told}
            if compared:
                own = torch.cat([weight.grad.double().flatten() for weight in network.parameters()])
                line |= {"cosine": cosine(own, true), "length": (own.norm() / true.norm()).item()}
                line |= {"true at a third of the step": cosine(true, nearer), "slope": true.norm().item()}
            found.append(line)
            told = []
            print(*(f"{name} {line[name]}" for name in line if name != "warnings"), *line["warnings"], sep=", ")
        optimizer.step()
    return found


def summary(lines):
    """In words: how often the gradient was wrong, and when that was said."""
    compared = [line for line in lines if "cosine" in line]
    wrong = [line["step"] for line in compared if line["cosine"] < 0.5]
    said = [line["step"] for line in lines if line["warnings"]]
    sorted_ = sorted(line["cosine"] for line in compared)
    return {
        "compared": len(compared),
        "median cosine": sorted_[len(sorted_) // 2],
        "least cosine": sorted_[0],
        "steps below .5": wrong,
        "steps with a warning": said,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", type=Path)
    parser.add_argument("--every", type=int, default=4, help="steps between comparisons")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of the training; the example's small preset if none")
    parser.add_argument("--mu", type=float, default=0.003, help="of the true gradient, in the inputs' scales")
    given = parser.parse_args()
    kind, _ = find(str(given.problem))
    settings = {} if given.steps is None else {"steps": given.steps}
    torch.set_num_threads(1)
    runs = {}
    for seed in given.seeds:
        lines = training(kind(kind.presets["small"], folder=Path("data"), **settings), seed, given.every, given.mu)
        runs[str(seed)] = {"summary": summary(lines), "steps": lines}
        print(seed, json.dumps(runs[str(seed)]["summary"]))
    arguments = {"every": given.every, "mu": given.mu, "steps": given.steps}
    place = given.problem.with_name("cosines.json")
    place.write_text(json.dumps({"arguments": arguments, "seeds": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
