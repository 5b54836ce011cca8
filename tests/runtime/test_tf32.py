"""The TF32 setting of products is read in either of torch's two forms, and left unchanged."""

import subprocess
import sys
import threading

import pytest
import torch

from daisy.runtime.tf32 import (
    allow_tf32_as_convolutions,
    convolutions_may_use_tf32,
    hold_tf32,
    products_may_use_tf32,
)


def test_products_follow_convolutions_for_a_while(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    assert not products_may_use_tf32()
    assert convolutions_may_use_tf32()
    with allow_tf32_as_convolutions(torch.float32):
        assert products_may_use_tf32()
    with allow_tf32_as_convolutions(torch.bfloat16):
        assert not products_may_use_tf32()
    assert torch.get_float32_matmul_precision() == before


def test_a_thread_waits_for_the_setting_of_another(monkeypatch):
    """Else its products would lose the setting when the other leaves."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    entered, leave, second, left = (threading.Event() for _ in range(4))
    seen = {}

    def hold():
        with allow_tf32_as_convolutions(torch.float32):
            entered.set()
            leave.wait()

    def follow():
        with allow_tf32_as_convolutions(torch.float32):
            second.set()
            left.wait()
            with allow_tf32_as_convolutions(torch.float32), hold_tf32():  # one thread may do so within
                seen["follows"] = products_may_use_tf32()

    def read():
        with hold_tf32():
            seen["reads"] = products_may_use_tf32()

    threads = [threading.Thread(target=work, daemon=True) for work in (hold, follow, read)]
    threads[0].start()
    entered.wait()
    for thread in threads[1:]:
        thread.start()
    assert not second.wait(0.2)
    leave.set()
    threads[0].join()
    left.set()
    for thread in threads:
        thread.join()
    assert seen == {"follows": True, "reads": False}
    assert not products_may_use_tf32()


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has one way of setting it")
@pytest.mark.parametrize(("products", "convolutions"), [("tf32", "ieee"), ("ieee", "tf32")])
def test_the_newer_settings_are_read_and_restored(products, convolutions):
    code = f"""
import torch
from daisy.runtime.tf32 import allow_tf32_as_convolutions, convolutions_may_use_tf32, products_may_use_tf32
torch.backends.cuda.matmul.fp32_precision = {products!r}
torch.backends.cudnn.conv.fp32_precision = {convolutions!r}
assert products_may_use_tf32() == ({products!r} == "tf32")
assert convolutions_may_use_tf32() == ({convolutions!r} == "tf32")
with allow_tf32_as_convolutions(torch.float32):
    assert products_may_use_tf32() == ({convolutions!r} == "tf32")
assert torch.backends.cuda.matmul.fp32_precision == {products!r}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
