"""Populations: several networks learn from the rows of one training; boxes are asked at the best one.

`members` compares networks at several learning rates. `rivalry` compares these with a network that is trained
through a model. `own_state` and `optimizers` hold each member's own state.
"""

from zo.tangents.population.population import FACTORS, Population

__all__ = ["FACTORS", "Population"]
