"""Checks in environments of their own: `nox` runs all of them, `nox -s lint` one, `nox -l` lists them."""

import configparser
import pathlib
import re

import nox

CONFIG = configparser.ConfigParser()
CONFIG.read(pathlib.Path(__file__).with_name('setup.cfg'))
REQUIREMENTS = CONFIG['options']['install_requires'].strip().splitlines()
TEST_REQUIREMENTS = CONFIG['options.extras_require']['test'].strip().splitlines()

# The lower bounds of setup.cfg.
OLDEST = [
    'absl-py==1.4.*',
    'keras==3.6.*',
    'numpy==1.26.0',
    'tensorflow==2.18.*',
    'tensorflow-probability==0.25.*',
    'tf-keras==2.18.*',
]
# What pip finds within the bounds of setup.cfg.
NEWEST = ['tensorflow-probability==0.25.*']
# setup.cfg keeps NumPy at what the released TFP can use; the nightly one can use more.
NIGHTLY = ['numpy', 'tfp-nightly']

NETWORK_LINK = re.compile(r'<(script|link|img)[^>]*(src|href)="(https?:)?//')


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite, or what stands after `--`."""
    session.install('-e', '.[test]')
    session.run('python', '-m', 'pytest', *(session.posargs or ['-n', '2']))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install('ruff>=0.6')
    session.run('ruff', 'check', '.')
    session.run('ruff', 'format', '--check', '.')


@nox.session
def types(session: nox.Session) -> None:
    """Annotations."""
    session.install('-e', '.[dev]')
    session.run('mypy')


@nox.session
def doctests(session: nox.Session) -> None:
    """The examples in docstrings."""
    session.install('-e', '.[test]')
    session.run('python', '-m', 'pytest', '-q', '--doctest-modules', 'tfp_iaf')


@nox.session
def coverage(session: nox.Session) -> None:
    """The lines of the package that the fast tests reach; setup.cfg has the floor."""
    session.install('-e', '.[test]', 'pytest-cov')
    session.run('python', '-m', 'pytest', '-q', '-n', '2', '-m', 'not slow', '--cov', 'tfp_iaf', '--cov-report', 'term')


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel, installed into an empty environment, where it must work without the repository."""
    session.install('build')
    directory = session.create_tmp()
    session.run('python', '-m', 'build', '--outdir', directory)
    environment = pathlib.Path(directory, 'empty').resolve()
    session.run('python', '-m', 'venv', '--clear', str(environment))
    (made,) = pathlib.Path(directory).resolve().glob('*.whl')
    python = str(environment / 'bin' / 'python')
    session.run(python, '-m', 'pip', 'install', '-q', str(made), external=True)
    script = 'import tfp_iaf.keras, tfp_iaf.tf_keras; print(tfp_iaf.IAFPosterior(2)([0.0, 0.0], [1.0, 1.0]).sample())'
    session.chdir(environment)
    session.run(python, '-c', script, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, with warnings as errors; its pages must not need a network. What stands after `--` is for Sphinx."""
    session.install('-e', '.[docs]')
    site = pathlib.Path('docs', '_build', 'html')
    session.run('sphinx-build', '-q', '-W', '--keep-going', '-b', 'html', *session.posargs, 'docs', str(site))
    pages = sorted(str(page) for page in site.rglob('*.html') if NETWORK_LINK.search(page.read_text(encoding='utf-8')))
    if pages:
        session.error(f'These pages need a network: {", ".join(pages)}')


@nox.session
@nox.parametrize(
    ('python', 'versions'),
    [('3.10', OLDEST), ('3.13', NEWEST), ('3.13', NIGHTLY)],
    ids=['oldest', 'newest', 'nightly'],
)
def matrix(session: nox.Session, versions: list[str]) -> None:
    """The fast tests, or what stands after `--`, with the oldest and the newest libraries."""
    if versions is NIGHTLY:
        # pip does not know that tfp-nightly is a TFP, so the package comes without its requirements.
        replaced = ('numpy', 'tensorflow-probability')
        others = [requirement for requirement in REQUIREMENTS if not requirement.startswith(replaced)]
        session.install(*versions, *others, *TEST_REQUIREMENTS)
        session.install('--no-deps', '-e', '.')
    else:
        session.install('-e', '.[test]', *versions)
    installed = str(session.run('python', '-m', 'pip', 'freeze', silent=True)).splitlines()
    session.log(', '.join(line for line in installed if line.startswith(('keras', 'numpy', 'tensorflow', 'tf'))))
    session.run('python', '-m', 'pytest', *(session.posargs or ['-n', '2', '-m', 'not slow']))
