import pytest
import torch

from daisy.runtime.memory import run_if_it_fits


def test_what_memory_does_not_hold_is_none():
    waveforms = [torch.ones(3)]
    assert run_if_it_fits(len, waveforms) == 1
    assert run_if_it_fits(lambda _: torch.empty(1 << 50), waveforms) is None

    def ask_a_gpu(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert run_if_it_fits(ask_a_gpu, waveforms) is None
    with pytest.raises(RuntimeError, match="size mismatch|shapes cannot be multiplied|must match"):
        run_if_it_fits(lambda waves: waves[0] @ torch.ones(2, 2), waveforms)
