"""Timing in another process, which waits for its turn. `python _benchmark_remote.py NAME` is that process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from _benchmark_timing import EXACT_MALLOC, Prepared, Size, Step, peak_memory, seconds_per_call


class RemoteError(RuntimeError):
    """Something failed in the other process."""


class Remote:
    """An implementation in another process; `start` makes one.

    Args:
        process: A process that runs this file.
        errors: The file that its standard error goes to.
    """

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self._process, self._errors = process, errors
        self.about = self._receive()

    def prepare(self, size: Size, work: str, mode: str) -> tuple[Callable[[float], float], dict[str, Any]]:
        """Returns a timer of the work, and what was found out while it was compiled."""
        reply = self._request(do='prepare', size=str(size), work=work, mode=mode)

        def timer(at_least: float) -> float:
            return float(self._request(do='time', step=reply['step'], at_least=at_least)['seconds'])

        return timer, reply['figures']

    def memory(self, size: Size, work: str, mode: str) -> dict[str, Any]:
        """Returns the peak memory of the work, and how it was found. To be asked of a fresh process."""
        return self._request(do='memory', size=str(size), work=work, mode=mode)

    def forget(self) -> None:
        """Drops all that was prepared."""
        self._request(do='forget')

    def _request(self, **message: Any) -> dict[str, Any]:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(message) + '\n')
                self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ''
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = [text for text in self._errors.read().splitlines() if text.strip()][-1:]
            raise RemoteError(' '.join([f'the process ended with status {status}.', *last]))
        reply = json.loads(line)
        if 'error' in reply:
            raise RemoteError(reply['error'])
        return dict(reply)


@contextlib.contextmanager
def start(name: str, python: str, device: str, environment: Mapping[str, str] | None = None) -> Iterator[Remote]:
    """Gives an implementation in a process of its own, which ends afterwards.

    Args:
        name: Of the implementation.
        python: The interpreter that has its library.
        device: `cpu` hides a GPU from it.
        environment: More environment variables.

    Raises:
        RemoteError: If the library is not installed there, or does not start.
    """
    hidden = {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {}
    # A GPU's memory is for all; and OpenMP's threads, which on a shared machine spin until others' time slices end, a
    # hundred times as long as a small step takes, sleep instead.
    shared = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'OMP_WAIT_POLICY': 'PASSIVE'}
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as errors:
        process = subprocess.Popen(
            [python, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **shared, **hidden, **(environment or {})},
        )
        try:
            yield Remote(process, errors)
        finally:
            process.kill()
            process.communicate()


def measure_memory(name: str, size: Size, work: str, mode: str, python: str, device: str) -> dict[str, Any]:
    """Returns the peak memory of the work, measured in a process that does nothing else."""
    with start(name, python, device, EXACT_MALLOC) as remote:
        return remote.memory(size, work, mode)


# The other process ---------------------------------------------------------------------------------------------------


def serve(name: str, replies: Any) -> None:
    """Does what comes as lines of JSON on standard input, and answers with one line each."""

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + '\n')
        replies.flush()

    try:
        library = _Library(name)
    except Exception as error:
        return reply(error=f'{error}')
    reply(version=library.version, device=library.device)
    steps: list[Step] = []
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message['do'] == 'time':
                reply(seconds=seconds_per_call(steps[message['step']], message['at_least']))
            elif message['do'] == 'forget':
                steps.clear()
                reply()
            else:
                case = Size.parse(message['size']), message['work'], message['mode']
                if message['do'] == 'memory':
                    reply(**library.memory(*case))
                else:
                    step, figures = library.prepare(*case)
                    steps.append(step)
                    reply(step=len(steps) - 1, figures=figures)
        except Exception as error:
            reply(error=f'{type(error).__name__}: {error}'[:500])


class _Library:
    """One implementation, whatever it is made with."""

    def __init__(self, name: str) -> None:
        import _benchmark_peers  # imports no library before it is asked

        self._name = name
        self._is_peer = name in _benchmark_peers.PEERS
        if self._is_peer:
            reason = _benchmark_peers.missing(name)
            if reason is not None:
                raise ImportError(f'{reason} for {sys.executable}')
            self.version, self.device = _benchmark_peers.version(name), _benchmark_peers.device(name)
        else:
            import _benchmark_chains

            self.version, self.device = _benchmark_chains.VERSION, _benchmark_chains.device()

    def prepare(self, size: Size, work: str, mode: str) -> Prepared:
        if self._is_peer:
            import _benchmark_peers

            return _benchmark_peers.prepare(self._name, size, work, mode)
        import _benchmark_chains

        return _benchmark_chains.prepare(self._name, size, work, mode)

    def memory(self, size: Size, work: str, mode: str) -> dict[str, Any]:
        if self.device == 'cpu':
            peak, how = peak_memory(lambda: self.prepare(size, work, mode))
            return {'peak_mb': peak, 'memory_by': how}
        step, _ = self.prepare(size, work, mode)
        if self._is_peer:
            import _benchmark_peers

            return {'peak_mb': _benchmark_peers.gpu_memory(self._name, step), 'memory_by': "the GPU's allocator"}
        import _benchmark_chains

        return {'peak_mb': _benchmark_chains.gpu_memory(step), 'memory_by': "the GPU's allocator"}


if __name__ == '__main__':
    # What a library prints goes to standard error: standard output is for the replies.
    answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)
    serve(sys.argv[1], answers)
