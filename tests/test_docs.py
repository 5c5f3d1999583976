"""The documentation: its code runs, its links and figures exist, and what it says of the code is there."""

import importlib
import importlib.util
import inspect
import pathlib
import re
import textwrap

import keras
import matplotlib.pyplot as plt
import pytest
import tf_keras

import tfp_iaf

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted(page for page in DOCS.rglob('*.md') if '_build' not in page.parts),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding='utf-8') for page in PAGES}
FIGURES = sorted(path for path in DOCS.rglob('*.png') if not {'_build', 'gallery'} & set(path.parts))
# Of pages that take more than about ten seconds.
SLOW = ('docs/quickstart.md',)

FENCE = re.compile(r'^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`\n]*)\n(?P<code>.*?)^ *(?P=ticks)$', re.M | re.S)
# A page has code that runs (python), commands (bash), what they print (text), and MyST's own directives.
LANGUAGES = ('python', 'bash', 'text', 'bibtex')


def python_blocks(text):
    """Yields the line before each block of Python, and the block."""
    for fence in FENCE.finditer(text):
        if fence['language'].strip() == 'python':
            yield text[: fence.start('code')].count('\n'), textwrap.dedent(fence['code'])


def prose(name):
    """The text of a page without its fenced blocks."""
    return FENCE.sub('', TEXTS[name])


def each_page(names):
    return pytest.mark.parametrize(
        'name', [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]
    )


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Lets a page write files, set policies and draw, without a trace."""
    monkeypatch.chdir(tmp_path)
    policies = keras.config.dtype_policy(), tf_keras.mixed_precision.global_policy()
    plt.switch_backend('agg')
    yield
    plt.close('all')
    keras.config.set_dtype_policy(policies[0])
    tf_keras.mixed_precision.set_global_policy(policies[1])


@pytest.mark.slow
@each_page([name for name, text in TEXTS.items() if any(python_blocks(text))])
def test_code_runs(name, elsewhere):
    namespace = {'__name__': re.sub(r'\W', '_', name.removesuffix('.md'))}
    for line, block in python_blocks(TEXTS[name]):
        # With the page as the file and its own line numbers, a failure points into the page.
        exec(compile('\n' * line + block, ROOT / name, 'exec'), namespace)


@each_page(TEXTS)
def test_blocks_have_a_language(name):
    languages = [fence['language'].strip() for fence in FENCE.finditer(TEXTS[name])]
    assert [language for language in languages if language not in LANGUAGES and not language.startswith('{')] == []


@each_page(TEXTS)
def test_links_and_images_exist(name):
    text = prose(name)
    # What is within a code span is no link.
    text = re.sub(r'`[^`\n]*`', '``', text)
    targets = re.findall(r'\]\(<?([^)\s>]+)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    targets += re.findall(r'^[`:]{3,}\{(?:figure|image)\} (\S+)', TEXTS[name], re.M)
    local = [target.split('#')[0] for target in targets if not re.match(r'[a-z]+:', target)]
    assert [target for target in local if target and not (ROOT / name).parent.joinpath(target).exists()] == []


@each_page(TEXTS)
def test_files_named_exist(name):
    named = set(re.findall(r'\b((?:docs|examples|tests|tfp_iaf)/[\w/.]+\.\w+)', TEXTS[name]))
    assert sorted(file for file in named if not (ROOT / file).exists() and '_build' not in file) == []


def test_page_for_contributors_lists_every_module():
    table = re.search(r'## Where things are(.*?)##', TEXTS['CONTRIBUTING.md'], re.S)[1]
    listed = set(re.findall(r'`tfp_iaf/([\w./]+?)/?`', table))
    assert listed == {
        path.name for path in (ROOT / 'tfp_iaf').iterdir() if not path.name.startswith('__') and path.name != 'py.typed'
    }


@pytest.mark.parametrize('figure', FIGURES, ids=lambda figure: figure.name)
def test_figures_are_made_by_a_script_and_used(figure):
    makers = [TEXTS['docs/figures.md'], *(script.read_text(encoding='utf-8') for script in DOCS.rglob('*.py'))]
    assert any(figure.name in maker for maker in makers), 'no line says which script makes it'
    assert any(figure.name in text for name, text in TEXTS.items() if name != 'docs/figures.md'), 'no page shows it'


@pytest.fixture(scope='module')
def figures():
    """The script docs/figures.py."""
    specification = importlib.util.spec_from_file_location('docs_figures', DOCS / 'figures.py')
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_script_draws_what_it_names(figures):
    assert {figure.name for figure in FIGURES} >= set(figures.FIGURES)
    for name, draw in figures.FIGURES.items():
        figure = draw(num_flows=2, steps=2) if name == 'arch.png' else draw()
        figure.canvas.draw()
        assert all(axis.has_data() or axis.patches for axis in figure.axes), name
        plt.close(figure)


def test_readme_picture_is_small():
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', TEXTS['README.md'])
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).stat().st_size < 200_000


@pytest.mark.parametrize(
    'module',
    ['tfp_iaf', *(f'tfp_iaf.{name}' for name in tfp_iaf.__all__ if inspect.ismodule(getattr(tfp_iaf, name)))],
)
def test_api_page_has_every_public_name(module):
    names = getattr(importlib.import_module(module), '__all__', [])
    documented = re.findall(r'\.\. auto\w+:: ([\w.]+)', TEXTS['docs/api.md'])
    assert [name for name in names if f'{module}.{name}' not in documented and name != '__version__'] == []


def labels():
    return re.findall(r'^\$\$ \(([\w-]+)\)$', TEXTS['docs/mathematics.md'], re.M)


def equation_rows():
    """The cells of the table of equations, by label."""
    rows = re.findall(r'^\| \{eq\}`([\w-]+)` \|(.*)\|$', TEXTS['docs/mathematics.md'], re.M)
    return {label: [cell.strip() for cell in cells.split('|')] for label, cells in rows}


def test_table_of_equations_is_complete():
    assert list(equation_rows()) == labels()
    assert len(set(labels())) == len(labels())


def source_of(name):
    """The file that defines what the table calls `name`: a module, or something in one."""
    try:
        return inspect.getsourcefile(importlib.import_module(f'tfp_iaf.{name}'))
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition('.')
        return inspect.getsourcefile(getattr(importlib.import_module(f'tfp_iaf.{module}'), attribute))


def cited_equations():
    """The path and the label of every equation that the code cites."""
    for path in sorted((ROOT / 'tfp_iaf').rglob('*.py')):
        text = re.sub(r'\s+', ' ', path.read_text(encoding='utf-8'))
        for citation in re.findall(r'Eq\. ((?:`[\w-]+`(?:, | and )?)+) of the mathematics page', text):
            for label in re.findall(r'`([\w-]+)`', citation):
                yield path.relative_to(ROOT).as_posix(), label


def test_code_and_table_of_equations_name_one_another():
    named = {
        (pathlib.Path(source_of(name)).relative_to(ROOT).as_posix(), label)
        for label, (_, code, _) in equation_rows().items()
        for name in re.findall(r'`([^`]+)`', code)
    }
    cited = set(cited_equations())
    assert sorted(cited - named) == [], 'cited by the code, but not in the table'
    assert sorted(named - cited) == [], 'in the table, but not cited by the code'


def test_hooks_run_the_commands_of_nox():
    hooks = re.findall(r'^ +entry: ((?:ruff|mypy).*)$', (ROOT / '.pre-commit-config.yaml').read_text(), re.M)
    runs = re.findall(r'session\.run\(([^)]*)\)', (ROOT / 'noxfile.py').read_text())
    commands = [' '.join(re.findall(r"'([^']*)'", arguments)) for arguments in runs]
    assert len(hooks) == 3 and set(hooks) <= set(commands)
