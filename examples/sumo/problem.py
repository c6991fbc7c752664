"""A network sets a crossing's traffic lights for demand that it has not met, trained through SUMO.

Arrivals are drawn, so the same lights give other delays with another seed. The seed is an input of the box:
all copies of the network that a step compares see the same cars, and a run can be repeated to the bit.
"""

import multiprocessing
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Parallel
from blackbox.extras import import_extra
from tasks.configuration import Count, Positive, ZerothOrder
from zo.estimators import Key

GRID = "--grid --grid.number=1 --grid.attach-length=150 -j traffic_light --tls.default-type=static"
MAIN, SIDE = ("left0A0 A0right0", "right0A0 A0left0"), ("top0A0 A0bottom0", "bottom0A0 A0top0")
YELLOW, SECONDS = 3.0, 300  # s; s of demand, after which the crossing is left to empty


class Crossing(BlackBoxFunction):
    """SUMO in this process, which has one simulation: many rows take many processes."""

    inputs = (
        ArraySpec("greens", (2,)),  # logarithms of seconds, of the main road and the side road
        ArraySpec("demand", (2,), differentiable=False),  # cars a second from each side
        ArraySpec("seed", (), dtype="int64", differentiable=False),
    )
    outputs = (ArraySpec("delay", ()),)  # seconds that a car stands, on average
    thread_safe = False

    def __init__(self, folder, **keywords):
        super().__init__(**keywords)
        self.net = folder / "crossing.net.xml"
        if not self.net.exists():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["netgenerate", *GRID.split(), "-o", self.net], check=True, capture_output=True)

    def evaluate(self, greens, demand, seed):
        sumo = import_extra("Crossing", "libsumo", "sumo")
        routes = self.net.with_name(f"{multiprocessing.current_process().pid}.rou.xml")
        cars = zip(MAIN + SIDE, [demand[0], 0.6 * demand[0], demand[1], 0.6 * demand[1]], strict=True)
        flow = '<flow id="{0}" from="{0}" to="{1}" end="{2}" probability="{3:.6f}" departSpeed="max"/>'
        flows = [flow.format(*road.split(), SECONDS, probability) for road, probability in cars]
        routes.write_text(f"<routes>{''.join(flows)}</routes>")
        words = ["-n", self.net, "-r", routes, "--seed", int(seed), "--no-step-log", "--no-warnings"]
        sumo.start(["sumo", *map(str, words)])
        try:
            (program,) = sumo.trafficlight.getAllProgramLogics("A0")
            main, side = torch.as_tensor(greens).double().exp().tolist()
            for phase, lasts in zip(program.phases, (side, YELLOW, main, YELLOW), strict=True):
                phase.duration = phase.minDur = phase.maxDur = lasts
            sumo.trafficlight.setProgramLogic("A0", program)
            sumo.trafficlight.setPhase("A0", 0)
            stood = cars = 0
            for second in range(3 * SECONDS):
                sumo.simulationStep()
                cars += sumo.simulation.getDepartedNumber()
                stood += sum(sumo.edge.getLastStepHaltingNumber(road.split()[0]) for road in MAIN + SIDE)
                stood += len(sumo.simulation.getPendingVehicles())  # who could not even enter
                if second > SECONDS and sumo.simulation.getMinExpectedNumber() == 0:
                    break
            return stood / max(cars, 1)
        finally:
            sumo.close()


def webster(demand):
    """The textbook's green times for these flows (Webster 1958): 0.5 cars a second leave a lane at best.

    What a cycle loses is its two yellow phases.
    """
    load = demand / 0.5
    cycle = (1.5 * 2 * YELLOW + 5) / (1 - load.sum(dim=1, keepdim=True)).clamp(min=0.1)
    return ((cycle - 2 * YELLOW).clamp(min=10) * load / load.sum(dim=1, keepdim=True)).clamp(min=4).log()


class TrafficLights(tasks.Problem):
    """A network sets a crossing's green times from the demand on its two roads."""

    units = {"delay": "s a car", "Webster's": "s a car"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "student", "row-rge", "rge")
        steps: Count = 20
        batch: Count = 8
        learning_rate: Positive = 0.03
        validate_every: Count = 10
        zeroth_order: ZerothOrder = ZerothOrder(
            mu=0.1,
            input_mu=0.2,  # of the logarithms of green times
            central=True,  # with both signs, `rge` is an evolution strategy without ranks
            coordinates=2,
            directions=2,
            input_directions=1,
        )
        test: Count = 24
        """Demands in the test."""

    presets = {"small": Config(), "large": Config(steps=150, batch=16, test=100)}
    presets["ci"] = Config(steps=2, batch=2, test=2)

    def box(self):
        spawn = multiprocessing.get_context("spawn")
        box = Crossing(self.folder.resolve(), failures="keep")
        return Parallel(box, lambda: ProcessPoolExecutor(2, mp_context=spawn))

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def data(self):
        def draw(seed, step, rows):  # demand on the main road and on the side road, and who comes when
            random = Key(seed, step).generator()
            demand = torch.rand(rows, 2, generator=random) * torch.tensor([0.18, 0.13]) + 0.04
            return demand, torch.randint(2**31 - 1, (rows,), generator=random)

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=16, test=self.config.test)

    def greens(self, network, demand):
        return 3.0 + network(10 * demand - 1)  # near 20 s at the start

    def objective(self, network, batch):
        demand, seed = batch
        return self.box(self.greens(network, demand), demand, seed).log1p()

    def evaluate(self, network):
        demand, seed = self.data.test
        with torch.no_grad():
            greens, textbook = self.greens(network, demand), webster(demand)
            delay, plain = (self.box(times, demand, seed).mean().item() for times in (greens, textbook))
        times = torch.cat((greens, textbook[:, :1]), dim=1).exp()
        return {"delay": delay, "Webster's": plain, "times": times, "demand": demand}

    def pictures(self, fields):
        def greens(axes, arrays):
            (main, side), (green, _, textbook) = arrays["demand"].T, arrays["times"].T
            axes.plot(main, textbook, "x", color="0.6", markersize=4)
            return axes.scatter(main, green, c=side, s=12)

        names = {"xlabel": "demand on main road, cars/s", "ylabel": "green of main road, s"}
        shown = tasks.panels(fields, greens, colours="demand on side road, cars/s", ylim=(0, 60), **names)
        return {"Green time of the main road for each test demand; crosses: Webster's.": shown}
