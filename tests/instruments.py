"""Instruments of Trio that look at what happens in a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

__all__ = ["installed"]

T = TypeVar("T", bound=trio.abc.Instrument)


@contextmanager
def installed(instrument: T) -> Iterator[T]:
    """Have an instrument look at this run of Trio in the block."""
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)
