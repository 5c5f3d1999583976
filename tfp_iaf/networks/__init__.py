"""What is autoregressive: networks that give the parameters of an entry from the entries before it and a context."""

from tfp_iaf.networks._base import Network
from tfp_iaf.networks._convolutional import MaskedConvolutionalNetwork
from tfp_iaf.networks._masked import MaskedAutoregressiveNetwork

__all__ = ['MaskedAutoregressiveNetwork', 'MaskedConvolutionalNetwork', 'Network']
