"""A few kills; use ``--count 60`` after changes to how files are written."""

import subprocess

from benchmarks.shared.script import ROOT, module_command, module_environment


def test_a_few_kills_lose_nothing():
    call = module_command("benchmarks.robustness.kills", ["--count", "4", "--seed", "1"])
    done = subprocess.run(call, cwd=ROOT, env=module_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *kinds, last = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in kinds] == ["safetensors", "npy, all layers", "windows, float16"]
    assert int(last.split()[0]) >= 4
    assert last.endswith("of 24 recordings: nothing lost, repeated or damaged; every index whole")
