"""Which examples become pages of the gallery, and how each is run. Sphinx imports this by its name."""

import ast
import pathlib
import re
import shutil

# Run with `--quick`, since by default they take more than two minutes.
QUICK = ('keras_vae', 'resnet_vae')
# Not run: they set up devices or threads before TensorFlow does anything else, and all examples share a process.
NOT_RUN = ('distributed_vae', 'plain_swap')
_NOTES = {
    **dict.fromkeys(
        QUICK, 'This page shows a run with ``--quick``. By default the example takes longer and ends better.'
    ),
    **dict.fromkeys(
        NOT_RUN, 'This page shows no output: the example sets up devices or threads, in a process of its own.'
    ),
}

DOCS = pathlib.Path(__file__).parent
EXAMPLES = DOCS / '_build' / 'examples'


def collect_examples() -> None:
    """Copies the examples, and only these, to `EXAMPLES`: the files that begin with a title.

    In their own folder, the gallery would take the packages beside them for chapters, and README.md for its own text.
    """
    shutil.rmtree(EXAMPLES, ignore_errors=True)
    EXAMPLES.mkdir(parents=True)
    shutil.copy(DOCS / 'gallery_header.txt', EXAMPLES / 'GALLERY_HEADER.txt')
    for path in DOCS.parent.joinpath('examples').glob('[!_]*.py'):
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
        if re.match(r'.+\n={3,}\n', text or ''):
            shutil.copy(path, EXAMPLES)


def command_line(gallery_conf: object, script_vars: dict[str, str]) -> list[str]:
    """Returns the arguments for an example, which runs in `EXAMPLES`."""
    return ['--quick'] if pathlib.Path(script_vars['src_file']).stem in QUICK else []


def add_note(app: object, page: str, source: list[str]) -> None:
    """Says on the page of an example how it was run, if not as a reader would run it."""
    note = _NOTES.get(page.removeprefix('gallery/'))
    if note:
        source[0] = re.sub(r'(\n={3,}\n)', rf'\1\n.. note:: {note}\n', source[0], count=1)
