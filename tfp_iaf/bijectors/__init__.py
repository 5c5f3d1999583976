"""Bijectors: one step of an Inverse Autoregressive Flow, and of the flows that it is compared with."""

from tfp_iaf.bijectors._inverse_autoregressive_flow import InverseAutoregressiveFlow
from tfp_iaf.bijectors._planar import PlanarFlow
from tfp_iaf.bijectors._radial import RadialFlow
from tfp_iaf.bijectors._sylvester import SylvesterFlow

__all__ = ['InverseAutoregressiveFlow', 'PlanarFlow', 'RadialFlow', 'SylvesterFlow']
