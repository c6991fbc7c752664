"""Names in docstrings: single backticks link where the name is in the reference, and are code elsewhere.

Types in signatures are those of the source; what is not public is shown and not linked. Formulas are MathML,
which browsers show without a script from elsewhere.
"""

from __future__ import annotations

import re
import sys
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

# Short names of the source's imports, by the full ones that inventories know.
ALIASES = {
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "Module": "torch.nn.Module",
    "Parameter": "torch.nn.Parameter",
    "np.ndarray": "numpy.ndarray",
    "Path": "pathlib.Path",
    "Executor": "concurrent.futures.Executor",
    "dist.ProcessGroup": "torch.distributed.ProcessGroup",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch.distributed.distributed_c10d.ProcessGroup": "torch.distributed.ProcessGroup",
    "torch._C.Generator": "torch.Generator",
}
OURS = ("blackbox.", "zo.", "tasks.", "simulators.")


def soft_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """`text` in a docstring: a link to the object of that name where the reference has one, else code."""
    env = inliner.document.settings.env
    literal = nodes.literal(text, text, classes=["py", "xref"])
    if not re.fullmatch(r"(zo|tasks|blackbox|simulators)(\.\w+)+|[A-Z]\w*(\.\w+)?", text):
        return [nodes.literal(text, text)], []
    found = addnodes.pending_xref(
        rawtext, literal, refdomain="py", reftype="obj", reftarget=text, refexplicit=False, refspecific=False,
        refdoc=env.docname, soft=True,
    )  # fmt: skip
    for key in ("py:module", "py:class"):
        found[key] = env.ref_context.get(key)
    return [found], []


def resolve_alias(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: Any) -> Any:
    """Sphinx's event "missing-reference", before other inventories are asked."""
    target = ALIASES.get(node.get("reftarget", ""))
    if target is not None and node.get("refdomain") == "py":
        node["reftarget"] = target
    return None


def leave_as_code(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: Any) -> Any:
    """The same event, after them: what is shown without a link, and without a warning.

    Names in single backticks, types in signatures, bases that are not public, and sentences under "Raises:".
    What a page links by a role of its own must be there.
    """
    target = node.get("reftarget", "")
    if node.get("soft"):
        domain = env.domains.python_domain
        found = [
            name for name, each in domain.objects.items() if name.endswith(f".{target}") and not each.aliased
        ]
        if len(found) != 1:
            return content
        each = domain.objects[found[0]]
        return make_refnode(app.builder, node["refdoc"], each.docname, each.node_id, content, found[0])
    if _inside(node, addnodes.desc_signature):
        return content
    if node.get("reftype") == "exc" and not re.fullmatch(r"[A-Z]\w+", target):
        return content
    if target.startswith((*OURS, "abc.", "enum.", "typing.")) and _exists(target):
        return content
    if _is_annotation(node, target):
        return content
    return None


def _is_annotation(node: addnodes.pending_xref, target: str) -> bool:
    """Whether the documented class's module has this name, as an annotation in quotes says it."""
    place, name = node.get("py:module"), node.get("py:class")
    if not place or not name:
        return False
    documented = getattr(import_module(place), name, None)
    return hasattr(sys.modules.get(getattr(documented, "__module__", ""), None), target)


def _inside(node: nodes.Node, kind: type[nodes.Node]) -> bool:
    parent = node.parent
    while parent is not None and not isinstance(parent, kind):
        parent = parent.parent
    return parent is not None


def _exists(target: str) -> bool:
    place, _, name = target.rpartition(".")
    try:
        return hasattr(import_module(place), name)
    except ImportError:
        return False


def write_inventory(source: Path, target: Path) -> None:
    """Make an `objects.inv` of lines "name role uri", so that the build needs no network."""
    lines = [
        line.split() for line in source.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    body = "".join(f"{name} py:{role} 1 {uri} -\n" for name, role, uri in lines)
    head = (
        f"# Sphinx inventory version 2\n# Project: {source.stem}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(head.encode() + zlib.compress(body.encode()))


def inline_math(self: Any, node: nodes.math) -> None:
    """MathML in a line."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.math_block) -> None:
    """MathML on lines of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode
