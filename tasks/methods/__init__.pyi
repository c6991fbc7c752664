from tasks.methods.autograd import AutogradGradient as AutogradGradient
from tasks.problem.method import Cost as Cost
from tasks.problem.method import Method as Method
from tasks.training.setup import Setup as Setup
from tasks.training.training_loop import train as train
