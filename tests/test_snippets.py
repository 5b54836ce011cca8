"""The Python that README and docs show runs as it stands."""

import gc
import re
import shutil
from pathlib import Path

import pytest

import daisy
from daisy.checkpoints.format import ASSETS
from tests.recognition.conftest import tiny_recogniser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = {
    page.name: re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S) for page in PAGES
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the snippets name: two recordings, a folder of them, a policy file, a recogniser."""
    clips = sorted(path for path in (ASSETS / "demo").glob("*.flac") if path.stem != "noise")
    (tmp_path / "dev").mkdir()
    for clip in clips[:4]:
        shutil.copy(clip, tmp_path / "dev")
    shutil.copy(clips[0], tmp_path / "a.flac")
    (tmp_path / "b.wav").write_bytes(daisy.audio.encode_wav(daisy.audio.read(clips[1])))
    daisy.policies.write_policy(
        tmp_path / "policy.json",
        daisy.policies.Fixed(layer=5),
        checkpoint="daisy-mini",
        digest=daisy.checkpoints.digest("daisy-mini"),
        target={},
        attained={},
        data={},
    )
    daisy.save(tiny_recogniser("hubert", units=True), tmp_path / "recogniser.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*set_audio_backend:UserWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # of lhotse and webdataset
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", [name for name, blocks in SNIPPETS.items() if blocks])
def test_snippets_run_one_after_the_other(page, folder):
    for library in ("s3prl", "lhotse", "webdataset", "pyarrow"):
        if library in "".join(SNIPPETS[page]):
            pytest.importorskip(library, reason=f"{page} shows {library}")
    names = {}
    for block in SNIPPETS[page]:
        exec(compile(block, page, "exec"), names)
    gc.collect()
    encoder = names.get("encoder")
    if page in ("README.md", "policies.md", "speed.md"):
        out = encoder(daisy.audio.read("a.flac"))
        assert out.last_hidden_state.shape[2] == 256
        assert 1 <= int(out.exit_layer) <= 12
    if page == "policies.md":  # the last one is that of the file
        assert out.exit_layer.tolist() == [5]


def test_there_are_snippets():
    assert {"README.md", "policies.md", "speed.md", "s3prl.md"} <= {name for name, blocks in SNIPPETS.items() if blocks}
