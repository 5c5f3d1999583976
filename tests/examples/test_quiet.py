"""TensorFlow is asked for silence before it is imported, by every script."""

import os
import subprocess
import sys

import pytest

from tests.examples.conftest import EXAMPLES

# Ends at the import of TensorFlow, and says what it would find.
UNTIL_TENSORFLOW = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, *_):
        if name == 'tensorflow':
            print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
sys.path.insert(0, os.path.dirname(sys.argv[1]))
runpy.run_path(sys.argv[1])
"""


@pytest.mark.parametrize('script', sorted(EXAMPLES.glob('[a-z]*.py')), ids=lambda path: path.stem)
def test_is_first(script):
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    command = [sys.executable, '-c', UNTIL_TENSORFLOW, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == '3\n', done.stderr
