"""Image classifiers: CIFAR's ResNets, a simple CNN, a VGG-like one, and any function of a user's.

All of them take `(rows, channels, height, width)` to logits `(rows, classes)`. They are made of plain
modules, without control flow that depends on the data, so that `torch.fx` reads them.
"""

from tasks.applications.image_classification.networks.convolutional import ImageShape, resnet, simple_cnn, vgg
from tasks.applications.image_classification.networks.named_networks import NAMES, make

__all__ = ["NAMES", "ImageShape", "make", "resnet", "simple_cnn", "vgg"]
