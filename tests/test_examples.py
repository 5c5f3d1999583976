"""The examples: each runs alone in an empty folder, needs nothing but public libraries, and is short."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import matplotlib.image
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / 'examples'
LIBRARIES = {
    'arviz',
    'keras',
    'matplotlib',
    'numpy',
    'sklearn',
    'tensorflow',
    'tensorflow_probability',
    'tf_keras',
    'tfp_iaf',
    'tqdm',
}
MAX_LINES = {'resnet_vae.py': 300}  # 150 for the others

each_example = pytest.mark.parametrize('path', sorted(EXAMPLES.glob('[!_]*.py')), ids=lambda path: path.stem)


@pytest.mark.slow
@each_example
def test_runs_alone(path, tmp_path):
    shutil.copy(path, tmp_path)
    # Keras finds no data set there, and tests in several processes do not fight over cores.
    environment = {'KERAS_HOME': str(tmp_path / 'keras'), 'TF_NUM_INTRAOP_THREADS': '1', 'MPLBACKEND': 'agg'}
    process = subprocess.run(
        [sys.executable, path.name, '--quick', '--output_dir=out'],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout and not re.search(r'\b(nan|inf)\b', process.stdout, re.IGNORECASE), process.stdout
    assert {file.name for file in tmp_path.iterdir()} <= {path.name, 'keras', 'out'}
    pictures = [matplotlib.image.imread(picture) for picture in (tmp_path / 'out').rglob('*.png')]
    assert len(pictures) >= path.read_text().count('savefig(')
    assert all(picture.std() > 0 for picture in pictures)


@each_example
def test_imports_public_libraries_alone(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add('.' * node.level + (node.module or '').split('.')[0])
    assert imported <= LIBRARIES | set(sys.stdlib_module_names)


@each_example
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES.get(path.name, 150)


@each_example
def test_is_a_page_of_the_gallery(path):
    """A title, how to run it, and cells of text and code; figures stay open, so that the gallery finds them."""
    source = path.read_text()
    title, underline, *_ = ast.get_docstring(ast.parse(source)).splitlines()
    assert underline == '=' * len(title)
    assert f'python {path.name}' in source
    assert len(re.findall(r'^# %%\n# .+\n# -+$', source, re.MULTILINE)) >= 2
    assert 'plt.close' not in source


@each_example
def test_is_in_the_index(path):
    assert f'| [`{path.name}`]({path.name}) |' in (EXAMPLES / 'README.md').read_text()
