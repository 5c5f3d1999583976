"""Settings of the documentation's build."""

import inspect
import pathlib
import re
import sys

from docutils import nodes
from sphinx.util.inspect import stringify_signature

from tfp_iaf import __version__

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gallery_settings

project = 'tfp_iaf'
author = 'The tfp_iaf developers'
copyright = 'The tfp_iaf developers'
release = version = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    # Puts MathJax into the pages themselves: they show formulas without a network.
    'sphinx-mathjax-offline',
    'sphinx_copybutton',
    'sphinx_gallery.gen_gallery',
]
exclude_patterns = ['_build']
default_role = 'code'

myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = f'tfp_iaf {release}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_show_sourcelink = False
pygments_style = 'friendly'
pygments_dark_style = 'monokai'

gallery_settings.collect_examples()
sphinx_gallery_conf = {
    'examples_dirs': str(gallery_settings.EXAMPLES),
    'gallery_dirs': 'gallery',
    'filename_pattern': rf'/(?!{"|".join(gallery_settings.NOT_RUN)})\w+\.py$',
    'within_subsection_order': 'FileNameSortKey',
    'reset_argv': 'gallery_settings.command_line',
    'capture_repr': (),
    'doc_module': ('tfp_iaf',),
    'show_signature': False,
    'write_computation_times': False,
}

autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_custom_sections = [('Call arguments', 'params_style'), ('Call returns', 'returns_style')]


# The first name under which each class is documented.
_names: dict[object, str] = {}
_EQUATIONS = re.compile(r'Eq\.\s+(?:`[\w-]+`(?:,| and)?\s+)+of\s+the\s+mathematics\s+page')


def _process_docstring(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Lets docstrings write formulas between dollars and cite equations by label, and gives each reference a line."""
    if what == 'class' and _names.setdefault(obj, name) != name:
        lines[:] = [f'The same as `{_names[obj]}`.']
        return
    text = '\n'.join(lines)
    text = _EQUATIONS.sub(lambda m: re.sub(r'`([\w-]+)`', r':eq:`\1`', m[0]), text)
    text = re.sub(r'\$\$(.+?)\$\$', lambda m: '.. math:: ' + ' '.join(m[1].split()), text, flags=re.DOTALL)
    text = re.sub(r'\$(.+?)\$', r':math:`\1`', text)
    head, rubric, references = text.partition('.. rubric:: References\n\n')
    references, blank, rest = references.partition('\n\n')
    # A reference ends with a period, and may take several lines.
    references = re.sub(r'(?<!\.)\n(?=\S)', ' ', references)
    references = re.sub(r'^(?=\S)', '- ', references, flags=re.MULTILINE)
    lines[:] = (head + rubric + references + blank + rest).split('\n')


def _process_signature(
    app: object, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shows the arguments of a layer, which Keras hides behind a `__new__` of its own."""
    if what == 'class' and signature == '(*args, **kwargs)':
        arguments = inspect.signature(obj.__init__)
        arguments = arguments.replace(parameters=list(arguments.parameters.values())[1:])
        signature = stringify_signature(arguments, show_annotation=False, show_return_annotation=False)
    return signature, returns


def _process_doctree(app: object, doctree: nodes.document) -> None:
    """Keeps an estimate and its error on one line."""
    for text in list(doctree.findall(nodes.Text)):
        joined = re.sub(r'(?<=\d) ± (?=\d)', '\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}', text)
        if joined != text and not isinstance(text.parent, nodes.literal_block):
            text.parent.replace(text, nodes.Text(joined))


def setup(app: object) -> None:
    """Registers the hooks."""
    app.connect('source-read', gallery_settings.add_note)
    app.connect('doctree-read', _process_doctree)
    app.connect('autodoc-process-docstring', _process_docstring)
    app.connect('autodoc-process-signature', _process_signature)
