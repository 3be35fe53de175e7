"""Settings for Sphinx; what depends on the repository's name is set in __main__.py."""

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

extensions = ["myst_nb"]
project = html_title = "Handwritten digits"
html_theme = "sphinx_book_theme"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_favicon = "icon.svg"
html_theme_options = {
    "footer_content_items": [],
    "navbar_persistent": [],
    "search_bar_text": "Search",
    "show_toc_level": 2,
}
html_context = {"default_mode": "auto"}  # light or dark, as the system is
html_use_index = False
html_math_renderer = "mathml"

nb_execution_mode = "off"  # the outputs are those that are stored
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]


def show_formula(translator, node):
    """MathML, which browsers can show by themselves; MathJax would come from another host."""
    as_block = node.tagname == "math_block"
    formula = tex2mathml(node.astext(), as_block)
    translator.body.append(f'<div class="formula">{formula}</div>' if as_block else formula)
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
