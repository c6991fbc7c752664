"""Sphinx: the documentation, built by `make docs` into docs/_build/html, to be read without a server."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from _extensions import docstrings, generated, outputs, pictures, references  # noqa: E402
from _extensions.links import code  # noqa: E402

# What pages run: this tree's packages and commands, one thread, no colours.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a warning of the kernel's debugger


project = "blackbox-coupling"
author = "the authors of blackbox-coupling"
copyright = "the authors; MIT licence"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_extensions", "_inventories", "_static"]
nitpicky = True
suppress_warnings = [
    "ref.python"
]  # two objects of one name: pages give full names, signatures take the nearest

# Markdown and notebooks
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist", "substitution"]
myst_heading_anchors = 4
nb_execution_mode = "off" if os.environ.get("DOCS_QUICK") else "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed" / code())  # by each page's content, and the code's
nb_execution_timeout = 400
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True

# The reference
default_role = "soft"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = True
intersphinx_mapping = {}
for _name, _place in {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
}.items():
    _inventory = HERE / "_build" / "inventories" / f"{_name}.inv"
    references.write_inventory(HERE / "_inventories" / f"{_name}.txt", _inventory)
    intersphinx_mapping[_name] = (_place, str(_inventory))

# The pages
html_theme = "furo"
html_title = "blackbox-coupling"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse without a server
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5e7c", "color-brand-content": "#0b5e7c"},
    "dark_css_variables": {"color-brand-primary": "#6fc3df", "color-brand-content": "#6fc3df"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Connect what `_extensions` holds."""
    docstrings.patch()
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("builder-inited", generated.write)
    app.connect("source-read", generated.read)
    app.connect("doctree-read", outputs.process)
    app.connect("doctree-read", pictures.process)
    app.add_role("soft", references.soft_role)
    app.connect("missing-reference", references.resolve_alias, priority=400)
    app.connect("missing-reference", references.leave_as_code, priority=900)
    app.add_html_math_renderer("mathml", (references.inline_math, None), (references.block_math, None))
