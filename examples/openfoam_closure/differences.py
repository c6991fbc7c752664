"""How well tangents' gradients point inside OpenFOAM, beside central differences of the whole loss.

    python examples/openfoam_closure/differences.py --steps 20 --every 10

Trains as `linear` does, and at some steps moves all weights along random directions, to both sides: what the
loss changes by is the true slope there, and the gradient says one of its own. The cosine of the two lists of
slopes estimates that of the gradients, with an error of the order of 1 / sqrt(directions). Slopes over a
quarter of the step say how far the differences are to be believed. The figures go to `differences.json`.
"""

import argparse
import json
import math
import warnings
from pathlib import Path

import problem as example
import torch

import zo


def slopes(objective, network, batch, ways, size):
    """How the mean loss changes along directions, by central differences."""
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    found = []
    with torch.no_grad():
        for way in ways:
            ends = []
            for sign in (1, -1):
                moved = start + sign * size * way
                torch.nn.utils.vector_to_parameters(moved, network.parameters())
                ends.append(objective(network, batch).double().mean())
            found.append((ends[0] - ends[1]) / (2 * size))
        torch.nn.utils.vector_to_parameters(start, network.parameters())
    return torch.stack(found)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=10, help="steps between comparisons")
    parser.add_argument("--directions", type=int, default=16)
    parser.add_argument("--size", type=float, default=2e-3, help="of a move, of each weight")
    parser.add_argument("--to", default="differences.json", help="the file beside the problem")
    arguments = parser.parse_args()
    street = example.Street(example.Street.presets[arguments.preset])
    torch.manual_seed(0)
    network, draws = street.network(), torch.Generator().manual_seed(0)
    gradient = zo.TangentGradient(
        network, street.objective, boxes=[street.box], tangent=zo.tangents.StencilTangent(degree=1), seed=0
    )
    optimizer, lines = torch.optim.Adam(network.parameters()), []
    for step in range(1, arguments.steps + 1):
        rate = 0.5 * (1 + math.cos(math.pi * step / street.config.steps))
        optimizer.param_groups[0]["lr"] = street.config.learning_rate * rate
        batch = street.data.train(0, step)
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.TangentWarning)
            loss = gradient.backward(batch).item()
        # none as long as the response to a first dither is waited for
        if step % arguments.every == 0 and all(weight.grad is not None for weight in network.parameters()):
            learned = torch.cat([weight.grad.double().flatten() for weight in network.parameters()])
            ways = torch.randn(arguments.directions, len(learned), generator=draws)
            true, nearer = (
                slopes(street.objective, network, batch, ways, size)
                for size in (arguments.size, arguments.size / 4)
            )
            said = ways.double() @ learned
            line = {"step": step, "loss": loss, "cosine": cosine(said, true)}
            line |= {"slope": float((said @ true) / (true @ true)), "at a quarter": cosine(nearer, true)}
            lines.append({name: round(value, 4) for name, value in line.items()})
            print(*(f"{name} {value}" for name, value in lines[-1].items()), sep=", ", flush=True)
        optimizer.step()
    settings = {name: value for name, value in vars(arguments).items() if name != "to"}
    made = {"command": "differences.py", "settings": settings, "steps": lines}
    Path(__file__).with_name(arguments.to).write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
