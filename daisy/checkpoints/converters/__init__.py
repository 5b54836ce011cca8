"""Convert other projects' checkpoints to ours. Each reader maps every key, or refuses it by name.

| source | what it is | reader |
|---|---|---|
| fairseq | pre-trained and fine-tuned HuBERT, 0.12.2 and older; also weights without a configuration | `fairseq` |
| fairseq | the same of wav2vec 2.0 and data2vec; WavLM as published by its authors and read by s3prl | `fairseq` |
| daisy's own fairseq plugin | heads trained by fairseq-train | `plugin` |
| s3prl | `python -m s3prl.upstream.hubert.convert`, also of wav2vec2 and data2vec | `s3prl` |
| the published DAISY code | s3prl's form with a list of heads | `s3prl` |
| torchaudio | state dict of `hubert_base()`, `hubert_pretrain_base()`, `wav2vec2_base()`, `wavlm_…` | `torchaudio` |
| Wright et al. | state dict of their Conformer or Splitformer with exits | `wright` |
| Hugging Face | folder, also in the hub's cache, of a HuBERT, wav2vec 2.0, WavLM, data2vec-audio | `huggingface` |
| Hugging Face | folder of a Whisper; only the encoder is read | `huggingface_whisper` |
"""

from __future__ import annotations

import re
from pathlib import Path

from daisy.checkpoints.converters import fairseq, huggingface, plugin, s3prl, torchaudio, wright
from daisy.checkpoints.converters.fairseq_configuration import tells_its_shape
from daisy.checkpoints.converters.reading import read_state
from daisy.checkpoints.converters.token_files import read_token_file
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError
from daisy.models import Tokens

__all__ = ["convert"]

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""For example ``facebook/hubert-base-ls960``; the path of a file may look like this, too."""


def convert(
    source: str | Path,
    *,
    allow_pickle: bool = False,
    overrides: dict[str, str] | None = None,
    label_set: int | None = None,
    tokens: str | Path | None = None,
) -> Model:
    """Convert a checkpoint of any of the forms above.

    The model's ``provenance`` says under "left_out" which parts of the source it lacks, and under "assumed" what
    the source does not specify and had to be assumed.

    Args:
        source: a file, or a Hugging Face folder.
        allow_pickle: read files that hold pickled Python objects (fairseq's and s3prl's do).
        overrides: backbone fields that the source does not specify (weights without a configuration), as text.
        label_set: number, from 1, of the fairseq label set whose prediction head is kept. Where there are
            several, and this is None, the model has no prediction head.
        tokens: file with the tokens of a fine-tuned model's outputs: fairseq's ``dict.ltr.txt``, Hugging
            Face's ``vocab.json``, a SentencePiece ``.model``. None: the tokens in the checkpoint, or
            in a file beside it; without tokens the output layer is left out.

    Returns:
        The model, in float32 on the CPU.

    Raises:
        CheckpointError: where the form is not known, something cannot be mapped, or the given tokens
            do not fit.
        UsageError: where ``tokens`` is not such a file.
    """
    path = Path(source)
    if HUB_NAME.fullmatch(str(source)) and not path.parent.is_dir():
        raise CheckpointError(
            f"{path}: no such file or folder; if it is a name on Hugging Face's hub, download it into a folder first "
            "(with hf download), and convert the folder"
        )
    given = None if tokens is None else read_token_file(tokens)
    try:
        if path.is_dir():
            _refuse_overrides(overrides)
            _refuse_label_set(label_set)
            model = huggingface.read(path, allow_pickle, given)
        else:
            model = _read_file(path, allow_pickle, overrides, label_set, given)
        if given is not None and model.ctc is None:
            raise CheckpointError("has no output layer of CTC that tokens could belong to")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from None
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        # The readers take a source's form for granted; other content can fail anywhere.
        first_line = (repr(error).splitlines() or [""])[0][:200]
        raise CheckpointError(f"{path}: not whole, or not of the form it seems to have ({first_line})") from None
    model.provenance.setdefault("converted_from", path.name)
    return model


def _read_file(
    path: Path, allow_pickle: bool, overrides: dict[str, str] | None, label_set: int | None, tokens: Tokens | None
) -> Model:
    state = read_state(path, allow_pickle)
    if plugin.recognises(state):
        _refuse_overrides(overrides)
        _refuse_label_set(label_set)
        if tokens is not None:
            raise CheckpointError("brings its own tokens, and others are given")
        return plugin.read(state)
    if s3prl.recognises(state):
        _refuse_overrides(overrides)
        return s3prl.read(state, label_set)
    if wright.recognises(state):
        _refuse_label_set(label_set)
        return wright.read(state, overrides or {}, tokens)
    if torchaudio.recognises(state):
        _refuse_label_set(label_set)
        return torchaudio.read(state, overrides or {}, tokens)
    if fairseq.recognises(state):
        if tells_its_shape(state):
            _refuse_overrides(overrides)
        return fairseq.read(state, overrides or {}, label_set, tokens, path.parent)
    if any(str(key).startswith("backbone.") for key in state):
        raise CheckpointError("is a daisy checkpoint already")
    if huggingface.recognises(state):
        raise CheckpointError("Hugging Face weights: give the folder that holds config.json too, not the file")
    raise CheckpointError(
        "not a checkpoint that daisy knows (fairseq, s3prl, torchaudio, Hugging Face, the published codes of DAISY and "
        "of Wright et al.); "
        f"its first keys are {', '.join(map(str, list(state)[:4])) or 'none'}"
    )


def _refuse_overrides(overrides: dict[str, str] | None) -> None:
    if overrides:
        raise CheckpointError(f"tells its own {', '.join(overrides)}", remedy="no_overrides")


def _refuse_label_set(label_set: int | None) -> None:
    if label_set is not None:
        raise CheckpointError(
            "has no label sets to choose from, as fairseq's and s3prl's HuBERTs have", remedy="label_set"
        )
