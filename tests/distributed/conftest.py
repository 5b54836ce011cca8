"""One Ray cluster for all tests of a process: starting one takes seconds."""

import pytest

from daisy.distributed.cluster import connect


@pytest.fixture(scope="session")
def cluster():
    """A cluster with two cores, connected; its address."""
    pytest.importorskip("ray", reason="needs Ray (the extra ray)")
    with connect("local", num_cpus=2) as ray:
        yield ray.get_runtime_context().gcs_address
