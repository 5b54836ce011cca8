"""Made-up workloads for tests: times and exits without a model."""

from random import Random

from daisy.distributed.pipeline.workload import Workload


def make_workload(n=100, num_layers=6, layer_sec=0.01, front_sec=0.02, num_levels=3, seed=0):
    """Make utterances of one second whose exits are one layer earlier with each level."""
    random = Random(seed)
    deep = [random.randint(2, num_layers) for _ in range(n)]
    return Workload(
        names=tuple(map(str, range(n))),
        exit_layers=tuple(tuple(max(1, layer - level) for layer in deep) for level in range(num_levels)),
        fidelity=tuple(tuple(min(1.0, layer / d) for layer in range(1, num_layers + 1)) for d in deep),
        num_frames=(50,) * n,
        num_samples=(16000,) * n,
        seconds=((front_sec, *[layer_sec] * num_layers),) * n,
        width=32,
    )
