import shutil
import subprocess

from benchmarks.shared.script import ROOT


def test_a_clone_without_the_old_network_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "real_run.sh", tmp_path / "benchmarks")
    for command in (["git", "init", "-q", str(tmp_path)], ["mkdir", str(tmp_path / "shared")]):
        subprocess.run(command, check=True)
    done = subprocess.run(
        ["bash", "benchmarks/real_run.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "DAISY_SHARED": str(tmp_path / "shared")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "daisy-mini.safetensors is not in this clone, which is shallow: git fetch --unshallow\n"
    )
    assert not (tmp_path / "runs").exists()
