"""An extraction with a tiny network, shared by the tests of the extractor."""

from daisy import EarlyExitEncoder, audio, policies
from daisy.extraction import Extractor
from tests.conftest import tiny_model

POLICY = policies.Entropy(threshold=1.9)


def extract(folder, out, used=None, **options):
    running = {name: options.pop(name) for name in ("overwrite", "progress", "shard") if name in options}
    extractor = Extractor(used or encoder(), out, checkpoint="0" * 64, **options)
    return extractor.run(audio.find([str(folder)]), **running)


def encoder(keep="last", policy=POLICY):
    model = tiny_model()
    return EarlyExitEncoder(model.backbone, model.heads, policy, keep=keep)
