"""Extraction by a pool of Ray actors, on one machine or on a cluster."""

from daisy.distributed.extraction.engine import RayEngine

__all__ = ["RayEngine"]
