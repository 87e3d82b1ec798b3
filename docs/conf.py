"""Sphinx configuration."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402

import fastsoftmax  # noqa: E402

reference.write(HERE)

project = "fastsoftmax"
author = "fastsoftmax developers"
copyright = author  # noqa: A001
version = release = fastsoftmax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build"]
nitpicky = False

autodoc_typehints = "none"
numpydoc_show_class_members = False

doctest_global_setup = "import numpy as np\nimport fastsoftmax as fs"

html_theme = "alabaster"
html_theme_options = {
    "description": "Fast, exact softmax on NumPy arrays",
    "fixed_sidebar": True,
    "page_width": "1080px",
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_copy_source = False
