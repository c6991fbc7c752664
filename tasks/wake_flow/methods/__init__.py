"""How each method trains: `train` does all that the configuration names, in its order."""

from tasks.wake_flow.methods.every import train
from tasks.wake_flow.methods.in_loop import chain, fo_sol, identity
from tasks.wake_flow.methods.supervised import non, pre
from tasks.wake_flow.methods.weights import tan_sol, zo_sol

__all__ = ["chain", "fo_sol", "identity", "non", "pre", "tan_sol", "train", "zo_sol"]
