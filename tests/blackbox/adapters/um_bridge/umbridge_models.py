"""Models behind the `umbridge` package's own server; run as a program with a port's socket to inherit."""

from __future__ import annotations

import math
import socket
import sys
from typing import Any

import umbridge
from aiohttp import web

RAISES, NANS, INTEGERS, WRONG_SIZE = 1e6, 2e6, 3e6, 4e6  # a first number that makes the model misbehave


class Forward(umbridge.Model):
    """`(a: 3, b: 2) -> (sin(a0) b0, a1 a2 b1), (scale sum a^2)`, with its derivatives by hand."""

    def get_input_sizes(self, config):
        return [3, 2]

    def get_output_sizes(self, config):
        return [2, 1]

    def __call__(self, parameters, config):
        (a, b), scale = parameters, config.get("scale", 1.0)
        if a[0] == RAISES:
            raise ValueError("the mesh is tangled")
        if a[0] == NANS:
            return [[float("nan"), float("inf")], [-float("inf")]]
        if a[0] == INTEGERS:
            return [[1, -2], [3]]
        if a[0] == WRONG_SIZE:
            return [[1.0], [2.0]]
        return [[math.sin(a[0]) * b[0], a[1] * a[2] * b[1]], [scale * sum(x * x for x in a)]]

    def jacobian(self, out, wrt, parameters) -> list[list[float]]:
        a, b = parameters
        if (out, wrt) == (0, 0):
            return [[math.cos(a[0]) * b[0], 0.0, 0.0], [0.0, a[2] * b[1], a[1] * b[1]]]
        if (out, wrt) == (0, 1):
            return [[math.sin(a[0]), 0.0], [0.0, a[1] * a[2]]]
        return [[2 * x for x in a]] if wrt == 0 else [[0.0, 0.0]]

    def gradient(self, out_wrt, in_wrt, parameters, sens, config):
        rows = self.jacobian(out_wrt, in_wrt, parameters)
        return [sum(s * row[i] for s, row in zip(sens, rows, strict=True)) for i in range(len(rows[0]))]

    def apply_jacobian(self, out_wrt, in_wrt, parameters, vec, config):
        rows = self.jacobian(out_wrt, in_wrt, parameters)
        return [sum(r * v for r, v in zip(row, vec, strict=True)) for row in rows]

    def apply_hessian(self, out_wrt, in_wrt1, in_wrt2, parameters, sens, vec, config):
        assert (out_wrt, in_wrt1, in_wrt2) == (1, 0, 0)
        return [2 * sens[0] * v for v in vec]

    def supports_evaluate(self):
        return True

    supports_gradient = supports_apply_jacobian = supports_apply_hessian = supports_evaluate


class Cubes(umbridge.Model):
    """`x -> x^3`, ten numbers."""

    def get_input_sizes(self, config):
        return [10]

    def get_output_sizes(self, config):
        return [10]

    def __call__(self, parameters, config):
        return [[x**3 for x in parameters[0]]]

    def supports_evaluate(self):
        return True


def main() -> None:
    """Serve on the socket whose file descriptor is the argument; `serve_models` has no host to choose."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    run_app = web.run_app

    def run(app: Any, port: int) -> None:
        run_app(app, sock=listener, print=None)

    web.run_app = run
    umbridge.serve_models([Forward("forward"), Cubes("cubes")], 0)


if __name__ == "__main__":
    main()
