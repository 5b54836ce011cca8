"""A last checkpoint that was cut short, and what takes its place."""

import os

import torch


def test_a_last_checkpoint_that_a_stop_cut_short_is_mended(tmp_path):
    from fairseq_plugins.last_checkpoint import mend

    last = tmp_path / "checkpoint_last.pt"
    for updates in (2, 4):
        torch.save({"updates": updates}, tmp_path / f"checkpoint_1_{updates}.pt")
    os.utime(tmp_path / "checkpoint_1_2.pt", (1e9, 1e9))
    whole = (tmp_path / "checkpoint_1_4.pt").read_bytes()
    mend(tmp_path)
    assert not last.exists()
    last.write_bytes(whole[: len(whole) // 2])
    mend(tmp_path)
    assert torch.load(last, weights_only=True) == {"updates": 4}
    torch.save({"updates": 5}, last)
    mend(tmp_path)
    assert torch.load(last, weights_only=True) == {"updates": 5}
    for path in tmp_path.glob("checkpoint_1_*"):
        path.write_bytes(whole[:100])
    last.write_bytes(whole[: len(whole) // 2])
    mend(tmp_path)
    assert not last.exists()
