"""Checkpoints: daisy's own file format, and readers for other formats."""

from daisy.checkpoints.converters import convert
from daisy.checkpoints.format import build, digest, find, load, save
from daisy.checkpoints.model import Model
from daisy.checkpoints.truncation import truncate
from daisy.checkpoints.weights import load_weights

__all__ = ["Model", "build", "convert", "digest", "find", "load", "load_weights", "save", "truncate"]
