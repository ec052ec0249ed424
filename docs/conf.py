"""How the documentation is built: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from cacheworkers import __version__  # noqa: E402  # found through the line above

project = "cacheworkers"
version = release = __version__
copyright = "the cacheworkers contributors"

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "mermaid",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# On GitHub a Mermaid fence is a picture; here `mermaid` draws it.
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = "cacheworkers"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "
