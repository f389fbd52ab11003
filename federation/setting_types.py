"""The types that settings are made of. Pydantic checks them strictly: a string or a bool is no number, 1.5 is
no int; numbers are finite, within limits, and small enough for Flower.
"""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = ["STRICT", "Real", "Whole", "setting"]

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def _to_float(value: object) -> object:
    """Return a whole number as a float, one beyond 64 bits as infinity (refused); anything else unchanged."""
    if type(value) is int:
        return float(value) if value.bit_length() < 64 else math.inf
    return value


def _check_size(value: object) -> object:
    if type(value) is int and value.bit_length() >= 64:  # Flower could not send it
        raise PydanticCustomError("int_size", "too large")
    return value


def setting(default: Any, meaning: str, **limits: float) -> Any:
    """Return a field of a section: `ge`, `gt` and `le` are its limits."""
    return Field(default=default, description=meaning, **limits)  # type: ignore[call-overload]


Real = Annotated[float, BeforeValidator(_to_float)]
Whole = Annotated[int, BeforeValidator(_check_size)]
