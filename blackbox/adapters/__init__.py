"""Adapters: black boxes made of functions, modules, files, programs, servers, sessions."""

from blackbox.adapters.callable import from_callable
from blackbox.adapters.command import CommandLine
from blackbox.adapters.fmu import Fmu
from blackbox.adapters.hosted import Call, Hosted
from blackbox.adapters.onnx import OnnxModel
from blackbox.adapters.session import Gymnasium, Session
from blackbox.adapters.tesseract import Tesseract
from blackbox.adapters.torch_module import TorchModule
from blackbox.adapters.um_bridge import UmBridge

__all__ = [
    "Call",
    "CommandLine",
    "Fmu",
    "Gymnasium",
    "Hosted",
    "OnnxModel",
    "Session",
    "Tesseract",
    "TorchModule",
    "UmBridge",
    "from_callable",
]
