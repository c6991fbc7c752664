"""An FMU for co-simulation, FMI 3, by pythonfmu3: two masses on springs; a step may fail at random."""

import random

import numpy as np
from pythonfmu3 import (
    CoSimulation,
    DefaultExperiment,
    Dimension,
    Float64,
    Fmi3Causality,
    Fmi3SlaveBase,
    Fmi3Status,
    Fmi3StepResult,
    Fmi3Variability,
    Int64,
    Unit,
)

PARAMETER = {"causality": Fmi3Causality.parameter, "variability": Fmi3Variability.tunable}
CONTINUOUS = {"variability": Fmi3Variability.continuous}


class Oscillator(Fmi3SlaveBase, CoSimulation):
    """v' = force - stiffness x, x' = v, by the symplectic Euler method."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.default_experiment = DefaultExperiment(start_time=0.0, stop_time=1.0, step_size=0.1)
        self.register_units([Unit("N", kg=1, m=1, s=-2)])
        self.stiffness, self.failing, self.dying, self.seed = np.array([1.0, 4.0]), 0.0, 0.0, 0
        self.force, self.x, self.v = 0.0, np.array([1.0, -1.0]), np.zeros(2)
        two = [Dimension(start="2")]
        independent = Fmi3Causality.independent
        self.register_variable(Float64("time", causality=independent, **CONTINUOUS, getter=lambda: 0.0))
        # pythonfmu3's own setter of arrays asks for NumPy 1
        stiffness = Float64("stiffness", dimensions=two, **PARAMETER, setter=self._set_stiffness)
        self.register_variable(stiffness)
        self.register_variable(Float64("failing", **PARAMETER))
        self.register_variable(Float64("dying", **PARAMETER))
        self.register_variable(Int64("seed", **PARAMETER))
        self.register_variable(Float64("force", causality=Fmi3Causality.input, unit="N", **CONTINUOUS))
        self.register_variable(Float64("x", causality=Fmi3Causality.output, dimensions=two, **CONTINUOUS))

    def _set_stiffness(self, values):
        self.stiffness = np.array(values)

    def do_step(self, current_time, step_size):
        draw = random.Random(self.seed * 1000 + round(current_time / step_size)).random()
        if draw < self.dying:
            raise RuntimeError("the spring broke")
        if draw < self.failing:
            return Fmi3StepResult(status=Fmi3Status.error)
        self.v = self.v + step_size * (self.force - self.stiffness * self.x)
        self.x = self.x + step_size * self.v
        return Fmi3StepResult(status=Fmi3Status.ok)
