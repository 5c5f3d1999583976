"""Bijectors: one step of an Inverse Autoregressive Flow."""

from tfp_iaf.bijectors._inverse_autoregressive_flow import InverseAutoregressiveFlow

__all__ = ['InverseAutoregressiveFlow']
