from daisy.extraction import Row
from daisy.extraction.throughput import Throughput


def make_row(seconds, *exits):
    return Row(
        path="a", output="a", duration_sec=seconds, exit_layer=max(exits), num_layers=12, seconds=1.0,
        window_exits=list(exits) if len(exits) > 1 else [],
    )  # fmt: skip


def test_audio_hours_an_hour_and_the_mean_over_recordings():
    times = iter([100.0, 110.0, 400.0])
    throughput = Throughput(clock=lambda: next(times))
    assert throughput.describe() == ""
    throughput.add(make_row(30.0, 6))
    assert throughput.describe() == "3.0 audio hours an hour, mean exit layer 6.00"
    throughput.add(make_row(599970.0, 4, 5))
    assert throughput.describe() == "2,000 audio hours an hour, mean exit layer 5.25"
