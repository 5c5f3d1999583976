"""What every layer has: attributes that differ between the two Kerases, and a way back from its config."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

__all__ = ['LayerPart']

LayerT = TypeVar('LayerT', bound='LayerPart')

# Arguments that are objects, and so need more than JSON.
_OBJECTS = ('activation', 'network', 'prior', 'transform')


class LayerPart:
    """Base of what is mixed into the layer class of either Keras."""

    # What the other base classes bring.
    _keras: ClassVar[Any]
    _serialize: ClassVar[Any]
    _deserialize: ClassVar[Any]
    _new_weight: Any
    _variable_of: Any
    name: str
    variable_dtype: Any

    @classmethod
    def from_config(cls: type[LayerT], config: dict[str, Any]) -> LayerT:
        """Makes the layer from what `get_config` returned."""
        return cls(**{key: cls._deserialize(value) if key in _OBJECTS else value for key, value in config.items()})
