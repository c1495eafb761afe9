"""The documentation as a site: Markdown by MyST, `make docs`."""

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx

project = "medimage-triton"
release = metadata.version(project)
project_copyright = "the authors of medimage-triton, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 3  # links to headings work as they do on GitHub
suppress_warnings: list[str] = []  # none: any warning fails

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

smartquotes = False  # they would turn --option into one dash

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False


def literal_code(app: Sphinx, kind: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings mark code as Markdown does, with one backtick; reStructuredText wants two."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def plain_default(app: Sphinx, context: object, lines: list[str]) -> None:
    """A default that is a path is shown as it is typed."""
    lines[:] = [re.sub(r"PosixPath\(('[^']*')\)", r"\1", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-options", plain_default)
    app.connect("autodoc-process-docstring", literal_code)
