"""Mine hard negatives from any dual encoder's vectors: exact, bounded, reproducible to the byte."""

__version__ = "0.1.0"
