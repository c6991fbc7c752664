"""A network swings a pendulum up and keeps it up, trained through MuJoCo, whose state is set for every row.

A row is a stretch of .06 s: angle, speed and torque go in, angle and speed come out. So a row depends
on what goes in and on nothing else, rows may be asked in any order, and nothing is played again.
"""

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.configuration import Count, NotNegative, Positive
from zo.estimators import Key

MODEL = Path(__file__).with_name("pendulum.xml")
INSIDE = 6  # steps of MuJoCo in a row
STRONGEST = 4.5  # N m; 5.2 hold the pendulum level, so it has to swing


class Pendulum(BlackBoxFunction):
    """MuJoCo from any state; the angle is 0 where the pendulum stands."""

    inputs = (ArraySpec("state", (2,)), ArraySpec("torque", (1,)))  # rad, rad/s; N m
    outputs = (ArraySpec("state", (2,)),)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.model = mujoco.MjModel.from_xml_path(str(MODEL))
        self.data = mujoco.MjData(self.model)

    def put(self, state, torque):
        """Set all that the next step depends on; what its solver starts from, too."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:], self.data.ctrl[:] = state[:1], state[1:], torque

    def evaluate(self, state, torque):
        self.put(state, torque)
        mujoco.mj_step(self.model, self.data, INSIDE)
        return np.concatenate((self.data.qpos, self.data.qvel))

    def derivative(self, state, torque):
        """MuJoCo's own, of each of its steps: next state by state, (2, 2), and by torque, (2, 1)."""
        self.put(state, torque)
        by_state, by_torque = np.eye(2), np.zeros((2, 1))
        a, b = np.zeros((2, 2)), np.zeros((2, 1))
        for _ in range(INSIDE):
            mujoco.mjd_transitionFD(self.model, self.data, 1e-6, True, a, b, None, None)
            mujoco.mj_step(self.model, self.data)
            by_state, by_torque = a @ by_state, a @ by_torque + b
        return np.concatenate((self.data.qpos, self.data.qvel)), by_state, by_torque


class Known(torch.autograd.Function):
    """The box with MuJoCo's own derivative, for the problem's reference."""

    @staticmethod
    def forward(context, box, state, torque):
        pairs = zip(state.double().numpy(), torque.double().numpy(), strict=True)
        rows = [box.derivative(*pair) for pair in pairs]
        after, *derivatives = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        context.save_for_backward(*derivatives)
        return after.to(state)

    @staticmethod
    def backward(context, cotangent):
        rows = cotangent.double()[:, None]
        by_state, by_torque = (
            (rows @ derivative)[:, 0].to(cotangent) for derivative in context.saved_tensors
        )
        return None, by_state, by_torque


class SwingUp(tasks.Problem):
    """A network turns a joint so that the pendulum swings up and stays; MuJoCo says where it goes."""

    units = {"cost": "0 upright, 1 hanging", "swung up": "%"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "no-gradient", "tangents", "first-order")
        steps: Count = 60
        batch: Count = 8
        learning_rate: Positive = 0.03
        calls: Count = 50
        """Rows of a trajectory, each of .06 s."""
        noise: NotNegative = 0.3
        """Standard deviation of what is added to torques in training, so that answers show what they do."""
        test: Count = 64
        """Trajectories in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=400, batch=16),
        "ci": Config(steps=3, batch=2, calls=5, test=4),
    }

    def box(self):
        return Pendulum()

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def data(self):  # starts, where the pendulum hangs, or nearly; and what is added to torques
        config = self.config

        def starts(rows, noise, *path):
            random = Key(*path).generator()
            drawn = torch.randn(rows, 2, generator=random)
            start = torch.tensor([torch.pi, 0.0]) + torch.tensor([0.4, 1.0]) * drawn
            return start, noise * torch.randn(rows, config.calls, 1, generator=random)

        validation, test = starts(16, 0.0, 1_000_001, 0), starts(config.test, 0.0, 1_000_002, 0)
        return tasks.Data(lambda seed, step: starts(config.batch, config.noise, seed, step), validation, test)

    def driven(self, network, start):
        """The states and torques of a trajectory, (calls, rows, 2) and (calls, rows, 1)."""
        (state, added), states, torques = start, [], []
        for call in range(self.config.calls):
            angle, turning = state.unbind(dim=1)
            wanted = network(torch.stack((angle.cos(), angle.sin(), turning / 5), dim=1))
            torque = STRONGEST * (wanted + added[:, call]).tanh()
            state = self.box(state, torque)
            states.append(state)
            torques.append(torque)
        return torch.stack(states), torch.stack(torques)

    def costs(self, states, torques):
        """Of each row of a trajectory."""
        angle, turning = states.unbind(dim=-1)
        effort = 0.001 * (torques[..., 0] / STRONGEST).square()
        return (1 - angle.cos()) / 2 + 0.002 * turning.square() + effort

    def objective(self, network, start):
        costs = self.costs(*self.driven(network, start))
        return costs[self.config.calls // 2 :].mean(dim=0)

    def evaluate(self, network):
        with torch.no_grad():
            states, torques = self.driven(network, self.data.test)
        last = states[-max(1, self.config.calls // 5) :]
        up = (last[..., 0].cos() > 0.9).all(dim=0)
        cost = self.costs(states, torques)[self.config.calls // 2 :].mean()
        return {"cost": cost.item(), "swung up": 100 * up.double().mean().item(), "angle": states[:, :16, 0]}

    def reference(self, state, torque):
        """The same with MuJoCo's own derivative, mjd_transitionFD."""
        return Known.apply(self.__dict__.setdefault("twin", Pendulum()), state, torque)

    def pictures(self, fields):
        def turned(axes, arrays):
            seconds = 0.06 * (1 + np.arange(len(arrays["angle"])))
            axes.plot(seconds, np.cos(arrays["angle"]), color="tab:blue", linewidth=0.6)

        shown = tasks.panels(fields, turned, xlabel="s", ylabel="cosine of the angle", ylim=(-1.05, 1.05))
        return {"Sixteen test trajectories: -1 is a pendulum that hangs, 1 one that stands.": shown}
