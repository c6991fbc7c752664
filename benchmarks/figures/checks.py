"""How many wrong gradients checks find, and cosines of learned derivatives on meshes."""

from __future__ import annotations

from benchmarks.figures.measured import RESULTS, checked_gradients, detections, read

WRONG, DOUBTED = 0.8, 0.5  # cosine below which a gradient is wrong; agreement below which it is doubted


def figures() -> dict[str, float]:
    """Figures by name."""
    return _trust() | _points() | _meshes()


def _trust() -> dict[str, float]:
    """The tables of decision 59: found of the wrong gradients, and right ones called wrong, in percent."""
    usual = "Tangents of usual strength alone"
    values = {}
    for name, line, behind in (
        ("rows", "rows' cosine below .896", "## Figures"),
        ("rule", "**the rule now**", "## Figures"),
        ("usual.rows", "rows' cosine below .9 ", usual),
        ("usual.rule", "**the rule now**", usual),
    ):
        rule = detections(line, behind)
        values |= {
            f"trust.{name}.found": rule.found + rule.fresh_found,
            f"trust.{name}.wrong": rule.wrong + rule.fresh_wrong,
            f"trust.{name}.false": rule.false + rule.fresh_false,
            f"trust.{name}.right": rule.right + rule.fresh_right,
            f"trust.{name}.share": rule.found_share,
            f"trust.{name}.false.share": rule.false_share,
        }
    return values


def _points() -> dict[str, float]:
    """Checked gradients of trainings whose true one is known."""
    points = checked_gradients()
    wrong = [point.agreement for point in points if point.cosine < WRONG]
    right = [point.agreement for point in points if point.cosine >= WRONG]
    return {
        "points": len(points),
        "points.wrong": len(wrong),
        "points.right": len(right),
        "points.found": sum(agreement < DOUBTED for agreement in wrong),
        "points.false": sum(agreement < DOUBTED for agreement in right),
    }


def _meshes() -> dict[str, float]:
    """Cosines with exact adjoints at unseen states, and errors of trainings over those with the adjoint."""
    values: dict[str, float] = {}
    for path in sorted((RESULTS / "meshes").glob("*.json")):
        result = read(f"meshes/{path.name}")
        for nodes, ways in result["vectors"].items():
            for way, cosines in ways.items():
                for kind in ("white", "smooth"):
                    values[f"mesh, {path.stem}, {nodes}, {way}, {kind}"] = cosines[kind]
        trained = result.get("training", {}).get("318", {})
        for way, measured in trained.items():
            values[f"mesh, {path.stem}, training, {way}"] = measured["error"] / trained["exact"]["error"]
    layouts = [value for name, value in values.items() if name.endswith(", layout, white")]
    return values | {"mesh.cases": len(layouts), "mesh.missed": sum(value < 0.9 for value in layouts)}
