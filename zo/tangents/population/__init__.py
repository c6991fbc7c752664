"""Populations: several networks that learn from the rows of one training, of which the best is asked.

`members` compares networks at several learning rates, `rivalry` those with one that is trained through a
model, `own_state` and `optimizers` say what each has for itself.
"""

from zo.tangents.population.population import FACTORS, Population

__all__ = ["FACTORS", "Population"]
