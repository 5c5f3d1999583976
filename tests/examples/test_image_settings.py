"""The settings of VAEs of images: names, and the command line."""

import dataclasses

import _image_settings
import pytest
import vae_cifar10
import vae_mnist
from _image_settings import Evaluation
from _posteriors import Flow
from absl import flags

from tests.examples import scripts
from tests.examples.image_data import small_settings


def test_other_settings_have_other_names():
    run = small_settings()
    changes = {'flow': Flow(3), 'epochs': 7, 'seed': 7, 'data': '7', 'strategy': 'mirrored', 'warm_up_steps': 7}
    others = [run, *(dataclasses.replace(run, **{key: value}) for key, value in changes.items())]
    evaluations = [Evaluation(run), Evaluation(run, nll_samples=7), Evaluation(others[1])]
    assert len({each.name for each in (*others, *evaluations)}) == len(others) + len(evaluations)
    assert all(evaluation.name.startswith(evaluation.run.name) for evaluation in evaluations)


@pytest.fixture
def runs(monkeypatch):
    """What a command line of a script makes its settings."""

    def of(script, *command):
        with monkeypatch.context() as patch:
            scripts.parse_flags(patch, script.define_flags, *command)
            made = []
            patch.setattr(script._comparison, 'run', lambda argv, load, **fixed: made.append(fixed))
            script.main(['script.py'])
            return _image_settings.runs_from_flags(data='abc', **made[0])

    return of


def test_mnist(runs):
    made = runs(vae_mnist, '--seeds=2', '--longer_baseline=260', '--data=mnist.npz')
    assert [(run.seed, run.posterior, run.epochs) for run in made] == [
        (seed, posterior, epochs)
        for seed in (0, 1)
        for posterior, epochs in (('diagonal', 120), ('IAF', 120), ('diagonal', 260))
    ]
    assert {run.flow for run in made if run.posterior == 'IAF'} == {Flow(4, (320, 320), 'gated', 2.0, 64)}
    assert {run.flow for run in made if run.posterior == 'diagonal'} == {None}
    assert {(run.network, run.hidden_units, run.binarization) for run in made} == {('mlp', (300, 300), 'dynamic')}


def test_flows_from_the_command_line(runs):
    command = ['--posteriors=full_covariance,iaf', '--flows=16', '--gate_start=0', '--flow_hidden_units=8']
    full, flow = runs(vae_mnist, *command, '--network=conv', '--binarization=threshold')
    assert full.posterior == 'full covariance' and full.flow is None
    assert flow.flow == Flow(16, (8,), 'gated', 0.0, 64)
    assert (flow.network, flow.hidden_units, flow.binarization) == ('conv-mnist', (), 'threshold')
    (affine,) = runs(vae_mnist, '--posteriors=iaf', '--transform=affine')
    assert affine.flow.transform == 'affine' and affine.flow.gate_start is None


def test_cifar10(runs):
    diagonal, flow = runs(vae_cifar10)
    assert (diagonal.network, diagonal.likelihood) == ('conv-cifar10', 'discretized logistic')
    assert diagonal.latent_size == 128
    assert flow.flow == Flow(4, (1280, 1280), 'gated', 2.0, 128) and diagonal.binarization is None
    assert {run.likelihood for run in runs(vae_cifar10, '--likelihood=cross_entropy')} == {'cross entropy'}


@pytest.mark.parametrize('command', ['--posteriors=planar', '--posteriors=', '--flow_hidden_units=a', '--flows=0'])
def test_what_makes_no_sense_is_refused(runs, command):
    with pytest.raises(flags.IllegalFlagValueError):
        runs(vae_mnist, command)
