"""UM-Bridge, both ways: models behind a server as black boxes, and black boxes behind a server.

    box = UmBridge("http://localhost:4242", "forward")      # any UM-Bridge server
    serve(box, port=4243)                                   # any black box

Needs the extra "umbridge". Protocol: https://um-bridge-benchmarks.readthedocs.io.
"""

from blackbox.adapters.um_bridge.client import UmBridge
from blackbox.adapters.um_bridge.connection import BusyError, NoAnswerError, ServerError, UnreachableError
from blackbox.adapters.um_bridge.server import serve, serving

__all__ = ["BusyError", "NoAnswerError", "ServerError", "UmBridge", "UnreachableError", "serve", "serving"]
