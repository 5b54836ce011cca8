"""Calibrate policies on unlabelled audio: full runs, thresholds for a depth or a guaranteed risk, costs of layers."""

from daisy.calibration.cost import make_macs_deadline, make_measured_deadline, measure_layer_seconds
from daisy.calibration.depth import calibrate_depth
from daisy.calibration.families import PolicyFamily, fit_family
from daisy.calibration.guarantee import Certificate, calibrate_risk
from daisy.calibration.intervals import Estimate, bootstrap
from daisy.calibration.traces import Traces, join_traces, read_traces, write_traces
from daisy.calibration.tracing import trace

__all__ = [
    "Certificate",
    "Estimate",
    "PolicyFamily",
    "Traces",
    "bootstrap",
    "calibrate_depth",
    "calibrate_risk",
    "fit_family",
    "join_traces",
    "make_macs_deadline",
    "make_measured_deadline",
    "measure_layer_seconds",
    "read_traces",
    "trace",
    "write_traces",
]
