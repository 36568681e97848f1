"""Settings of the documentation site: Sphinx with MyST. `make docs` builds it and fails on every warning."""

import os
import sys
from pathlib import Path

import optwrap

sys.path.insert(0, str(Path(__file__).parent))
os.environ["KERAS_BACKEND"] = "jax"  # optwrap.keras imports Keras, whose default is another package

project = "optwrap"
author = "The optwrap authors"
copyright = author
release = version = optwrap.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
exclude_patterns = ["_build"]
nitpicky = True
# Only public names of optwrap have an entry here. Types of other projects have none: this site links to no other host.
nitpick_ignore_regex = [("py:.*", r"(?!optwrap\.[A-Za-z]\w*$).*")]

myst_heading_anchors = 4
autodoc_member_order = "bysource"
# Signatures as optax's and JAX's documentation have them: the docstrings say shapes and dtypes, which types cannot.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"optwrap {release}"
html_copy_source = False
html_show_sourcelink = False
