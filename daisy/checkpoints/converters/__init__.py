"""Other people's checkpoints to ours. Each reader maps every key or refuses it by name.

| source | what it is | reader |
|---|---|---|
| fairseq | pre-trained and fine-tuned HuBERT, 0.12.2 and older | `fairseq` |
| daisy's own fairseq plugin | heads trained by fairseq-train | `plugin` |
| s3prl | `python -m s3prl.upstream.hubert.convert` | `s3prl` |
| the published DAISY code | s3prl's form with a list of heads | `s3prl` |
| torchaudio | state dict of `hubert_base()` and kin, or of `hubert_pretrain_base()` | `torchaudio` |
| Hugging Face | folder with `config.json` and weights | `huggingface` |
"""

from __future__ import annotations

from pathlib import Path

from daisy.checkpoints.converters import fairseq, huggingface, plugin, s3prl, torchaudio
from daisy.checkpoints.converters.reading import read_state
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError

__all__ = ["convert"]


def convert(source: str | Path, *, allow_pickle: bool = False, overrides: dict[str, str] | None = None) -> Model:
    """Convert a checkpoint of any of the forms above.

    Args:
        source: a file, or a Hugging Face folder.
        allow_pickle: read files that hold pickled Python objects (fairseq's and s3prl's do).
        overrides: backbone fields that the source does not tell (torchaudio's state dicts), as text.

    Returns:
        The model, in float32 on the CPU.

    Raises:
        CheckpointError: where the form is not known, or holds something that cannot be mapped.
    """
    path = Path(source)
    try:
        if path.is_dir():
            _refuse_overrides(overrides)
            model = huggingface.read(path, allow_pickle)
        else:
            model = _read_file(path, allow_pickle, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        # The readers take a source's form for granted; one that has not got it can fail anywhere.
        raise CheckpointError(f"{path}: not whole, or not of the form it seems to have ({error!r})") from None
    model.provenance.setdefault("converted_from", path.name)
    return model


def _read_file(path: Path, allow_pickle: bool, overrides: dict[str, str] | None) -> Model:
    state = read_state(path, allow_pickle)
    if torchaudio.recognises(state):
        return torchaudio.read(state, overrides or {})
    _refuse_overrides(overrides)
    for reader in (plugin, s3prl, fairseq):
        if reader.recognises(state):
            model: Model = reader.read(state)
            return model
    if any(str(key).startswith("backbone.") for key in state):
        raise CheckpointError("is a daisy checkpoint already")
    if huggingface.recognises(state):
        raise CheckpointError("Hugging Face weights: give the folder that holds config.json too, not the file")
    raise CheckpointError(
        "not a checkpoint that daisy knows (fairseq, s3prl, torchaudio, Hugging Face, the published DAISY code); "
        f"its first keys are {', '.join(map(str, list(state)[:4])) or 'none'}"
    )


def _refuse_overrides(overrides: dict[str, str] | None) -> None:
    if overrides:
        raise CheckpointError(f"tells its own {', '.join(overrides)}", remedy="no_overrides")
