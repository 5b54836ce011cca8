"""One Ray cluster for all tests of a process: starting one takes seconds."""

import pytest

from daisy.distributed.cluster import connect


@pytest.fixture(scope="session")
def cluster():
    """Start a cluster with two cores, connect to it, and yield its address."""
    pytest.importorskip("ray", reason="needs Ray (the extra ray)")
    with connect("local", num_cpus=2) as ray:
        yield ray.get_runtime_context().gcs_address
