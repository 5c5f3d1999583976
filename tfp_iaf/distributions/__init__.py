"""Distributions: the posterior that owns its networks, and a posterior for the whole of a probabilistic model."""

from tfp_iaf.distributions._posterior import IAFPosterior
from tfp_iaf.distributions._surrogate import build_iaf_surrogate_posterior

__all__ = ['IAFPosterior', 'build_iaf_surrogate_posterior']
