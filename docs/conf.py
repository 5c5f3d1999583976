"""Settings of the documentation's build."""

import re

from tfp_iaf import __version__

project = 'tfp_iaf'
author = 'The tfp_iaf developers'
copyright = 'The tfp_iaf developers'
release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax', 'sphinx.ext.napoleon']
myst_enable_extensions = ['dollarmath']
exclude_patterns = ['_build']
html_theme = 'furo'
default_role = 'code'
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_custom_sections = [('Call arguments', 'params_style'), 'Returns (of a call)']


def _math(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Lets docstrings write formulas between dollars, as the pages do."""
    text = '\n'.join(lines)
    text = re.sub(r'\$\$(.+?)\$\$', lambda m: '.. math:: ' + ' '.join(m[1].split()), text, flags=re.DOTALL)
    text = re.sub(r'\$(.+?)\$', r':math:`\1`', text)
    lines[:] = text.split('\n')


def setup(app: object) -> None:
    """Registers the hook."""
    app.connect('autodoc-process-docstring', _math)
