"""Keep states on disk, so that a frozen upstream runs once per utterance.

``DIR/KEY/ab/abcd….safetensors``: KEY is a digest of all settings that determine the states (listed in ``settings.json``
beside them), the name is the digest of the audio's samples. A file is whole or absent, so a run may be killed, and
several may write to the same folder; a later run writes the same again (on a GPU, the same up to rounding).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daisy import _files
from daisy.errors import OutputError
from daisy.version import __version__
from s3prl_upstream.frozen import Batch, Needs, Utterance

FORMAT_VERSION = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class StateCache:
    """The files of one upstream, policy and kind of states.

    Args:
        folder: folder of the cache, which any number of upstreams may share.
        checkpoint: digest of the upstream's checkpoint.
        policy: `Policy.to_config`.
        score_stride: score stride of the encoder.
        needs: the part of the states to store.
        dtype: data type of the states on disk, one of `DTYPES`.
        device: kind of device on which they are computed.

    Raises:
        OutputError: where the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        checkpoint: str,
        policy: dict,
        score_stride: int,
        needs: Needs,
        dtype: str,
        device: str,
    ):
        settings = {
            "format_version": FORMAT_VERSION,
            "daisy": __version__,
            "checkpoint": checkpoint,
            "policy": policy,
            "score_stride": score_stride,
            **asdict(needs),
            "dtype": dtype,
            "device": device,
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / key
        self.dtype = DTYPES[dtype]
        self.may_write: Callable[[], bool] = lambda: True
        """Called before each batch, as audio that never comes again is not worth storing."""
        self._expected: tuple[str, int] | None = None
        _files.write_json(self.folder / "settings.json", settings)

    def expect(self, split: str, num_batches: int) -> None:
        """Announce a split, so that its size on disk is estimated from its first batch before that is written."""
        self._expected = (split, num_batches)

    def batch(
        self,
        digests: Sequence[str],
        device: torch.device,
        compute: Callable[[list[int]], Batch],
    ) -> Batch:
        """Return the utterances of a batch, from the cache or computed.

        Args:
            digests: digests of their audio; a digest may occur twice.
            device: device for their states.
            compute: function that runs the utterances with these indices.

        Raises:
            OutputError: where a computed utterance cannot be written.
        """
        start = time.perf_counter()
        stored = {digest: self._read(digest, device) for digest in dict.fromkeys(digests)}
        missing = [index for index, digest in enumerate(digests) if stored[digest] is None]
        missing = list({digests[index]: index for index in reversed(missing)}.values())[::-1]
        computed = compute(missing) if missing else Batch()
        rounded = [self._rounded(utterance) for utterance in computed.utterances]
        stored |= {utterance.audio: utterance for utterance in rounded}
        utterances = [utterance for digest in digests if (utterance := stored[digest])]
        self._announce(utterances, len(missing))
        if self.may_write():
            for utterance in rounded:
                self._write(utterance)
        seconds = time.perf_counter() - start
        return Batch(
            utterances=utterances, computed_sec=computed.computed_sec, cache_sec=seconds - computed.computed_sec
        )

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _rounded(self, utterance: Utterance) -> Utterance:
        """Round the states as they will be read again, so that the first epoch trains on the same as later ones."""
        states = utterance.states.to(self.dtype).float()
        if not states.isfinite().all():
            name = str(self.dtype).removeprefix("torch.")
            raise OutputError(f"states pass the range of {name}: --cache-dtype bfloat16 or float32")
        utterance.states = states
        return utterance

    def _write(self, utterance: Utterance) -> None:
        names = sorted(utterance.scores)
        tensors = {"states": utterance.states.to("cpu", self.dtype).contiguous()}
        if names:
            tensors["scores"] = torch.stack([utterance.scores[name] for name in names])
        metadata = {
            "num_samples": utterance.num_samples,
            "num_frames": utterance.num_frames,
            "exit_layer": utterance.exit_layer,
            "scores": names,
        }
        _files.save_tensors(tensors, self._path(utterance.audio), metadata)

    def _read(self, digest: str, device: torch.device) -> Utterance | None:
        """Read an utterance; None where there is none, or a damaged one, which is then written again."""
        path = self._path(digest)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads(file.metadata()["daisy"])
                states = file.get_tensor("states")
                scores: Sequence[Tensor] = file.get_tensor("scores").unbind() if content["scores"] else ()
            return Utterance(
                audio=digest,
                num_samples=content["num_samples"],
                num_frames=content["num_frames"],
                exit_layer=content["exit_layer"],
                scores=dict(zip(content["scores"], scores, strict=True)),
                states=states.to(device, torch.float32, copy=True),  # aligned like computed ones: products round alike
                cached=True,
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def _announce(self, utterances: Sequence[Utterance], num_missing: int) -> None:
        if self._expected is None:
            return
        split, num_batches = self._expected
        self._expected = None
        size = sum(utterance.states.numel() for utterance in utterances) * self.dtype.itemsize * num_batches
        more = size * num_missing / len(utterances)
        free = shutil.disk_usage(next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())).free
        short = "; NOT ENOUGH: --cache-dtype, -l, -s or --cache-mean make it smaller" if more > free else ""
        num_cached = len(utterances) - num_missing
        print(
            f"[daisy] cache {self.folder}: about {_size(size)} for {split} ({num_batches} batches like the first; "
            f"{num_cached} of its {len(utterances)} utterances are there); {_size(free)} free{short}",
            flush=True,
        )


def _size(num_bytes: float) -> str:
    exponent = min(int(math.log(max(num_bytes, 1), 1024)), 4)
    return f"{num_bytes / 1024**exponent:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]}"
