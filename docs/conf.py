"""Configuration of the documentation; `make docs` builds it."""

import importlib.metadata
import re

project = "genfast"
author = "The genfast authors"
copyright = author
version = release = importlib.metadata.version("genfast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = f"genfast {release}"
html_static_path = []

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Docstrings use `name` for code, as markdown does.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "returns_style"), "Source"]
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 100

# What docstrings hold as people read it in a terminal, reStructuredText would take for markup: |x| for a magnitude,
# v_ for a name, and markdown's tables.
MARKUP = re.compile(r"(:math:`[^`]*`|``[^`]*``|`[^`]*`)|(\|)|((?<=\w)_(?=[^\w]|$))")


def table(rows):
    """A markdown table as a list-table."""
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    yield from (".. list-table::", "   :header-rows: 1", "")
    for i, row in enumerate(cells):
        if i != 1:  # the rule under the header
            yield from (f"   {'*' if j == 0 else ' '} - {cell}" for j, cell in enumerate(row))
    yield ""


def escape(_app, _what, _name, _obj, _options, lines):
    """Rewrite a docstring in place."""
    out, rows, directive = [], [], None
    for line in [*lines, ""]:
        indent = len(line) - len(line.lstrip())
        if line.strip().startswith("|") and directive is None:
            rows.append(line)
            continue
        if rows:
            out += table(rows) if len(rows) > 2 else rows
            rows = []
        if line.strip() and directive is not None and indent <= directive:
            directive = None
        if directive is None and not line.lstrip().startswith(">>>"):
            line = MARKUP.sub(lambda m: m[1] or ("\\|" if m[2] else "\\_"), line)
        if line.lstrip().startswith(".. "):
            directive = indent
        out.append(line)
    lines[:] = out


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
