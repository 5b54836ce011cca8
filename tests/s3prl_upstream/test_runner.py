"""The end of the runner: the original error is the one reported."""

import pytest

from daisy.errors import OutputError

pytestmark = pytest.mark.filterwarnings("ignore")


class FullDisk:
    def write_summary(self):
        raise OutputError("exits.json: cannot be written (No space left on device)")


def test_a_summary_that_cannot_be_written_hides_nothing():
    from s3prl_upstream.runner import ExitRunner

    runner = ExitRunner.__new__(ExitRunner)  # s3prl's own __init__ loads a task
    runner.log = FullDisk()
    with pytest.raises(KeyboardInterrupt), runner._summarised():
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="No space left"), runner._summarised():
        pass
