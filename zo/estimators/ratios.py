"""`LayerRatios`: the part of each layer that is kept, or perturbed; as a table, and saved with a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zo.errors import ConfigurationError


@dataclass(frozen=True)
class Layer:
    """One tensor: its name, how many weights it has, how many of them are kept."""

    name: str
    size: int
    kept: int


@dataclass(frozen=True)
class LayerRatios(Mapping[str, float]):
    """The fraction kept of each tensor, by name: a mapping, as `LayerwiseCoordinates` takes it.

    Attributes:
        method: the method of the scores.
        sparsity: the sparsity that was asked for, over the scored weights.
        layers: in the order of the network, scored ones first, then dense ones.
    """

    method: str
    sparsity: float
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> float:
        for layer in self.layers:
            if layer.name == name:
                return layer.kept / layer.size
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Plain text, a line a layer and one for all."""
        total = Layer("all", sum(x.size for x in self.layers), sum(x.kept for x in self.layers))
        width = max(len(layer.name) for layer in (*self.layers, total))
        lines = [f"{self.method}, sparsity {self.sparsity:g}", f"{'layer':{width}}  weights     kept  ratio"]
        lines += [
            f"{x.name:{width}} {x.size:8d} {x.kept:8d} {x.kept / x.size:6.3f}" for x in (*self.layers, total)
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The ratios in plain values, for JSON; `from_dict` takes them back."""
        layers = [{"name": x.name, "size": x.size, "kept": x.kept} for x in self.layers]
        return {"method": self.method, "sparsity": self.sparsity, "layers": layers}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LayerRatios:
        """The ratios that `to_dict` gave.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            layers = tuple(Layer(x["name"], x["size"], x["kept"]) for x in saved["layers"])
            ratios = cls(saved["method"], saved["sparsity"], layers)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                "LayerRatios.from_dict: expected method, sparsity and layers with name, size and kept, got "
                f"{str(saved)[:80]} ({error!r} missing). Save ratios with to_dict."
            ) from error
        if not all(0 <= layer.kept <= layer.size for layer in layers):
            raise ConfigurationError(
                f"LayerRatios.from_dict: expected 0 <= kept <= size in every layer, got {layers}."
            )
        return ratios
