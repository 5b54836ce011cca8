"""Extraction by a pool of Ray actors, on one machine or a cluster of them."""

from daisy.distributed.extraction.engine import RayEngine

__all__ = ["RayEngine"]
