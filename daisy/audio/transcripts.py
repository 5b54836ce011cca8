"""Write transcripts for fairseq's ``audio_finetuning``: one line of tokens per recording, and their dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from daisy import _files
from daisy.errors import UsageError
from daisy.models import Tokens
from daisy.models.tokens import FAIRSEQ_SPECIALS, SPACE


def spell(text: str) -> list[str]:
    """Spell a text in fairseq's letters, with | after each word.

    Source: fairseq 0.12.2, examples/wav2vec/libri_labels.py.

    Example:
        >>> from daisy.audio.transcripts import spell
        >>> spell("GO ON")
        ['G', 'O', '|', 'O', 'N', '|']
    """
    return [symbol for word in text.split() for symbol in (*word, SPACE)]


def write_transcripts(
    manifest: Path, texts: Sequence[str], labels: str = "ltr", sentencepiece: Path | None = None
) -> Path:
    """Write a manifest's transcripts, and the dictionary of their tokens where there is none yet.

    Beside ``train.tsv`` this writes ``train.ltr``, with a line for each recording, and ``dict.ltr.txt``. An existing
    dictionary, from another split, stays as it is. A SentencePiece model is copied to ``{labels}.model``, where the
    fairseq plugin finds it.

    Args:
        manifest: the .tsv file that the transcripts belong to.
        texts: texts of the manifest's recordings, in its order.
        labels: ending of the files, and ``task.labels`` of fairseq.
        sentencepiece: SentencePiece model whose pieces are the tokens; None: characters.

    Returns:
        The dictionary's path.

    Raises:
        UsageError: on an empty text, a character that the dictionary lacks, a model that cannot be read, or one other
            than an earlier split's.
        OutputError: where a file cannot be written.
    """
    if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise UsageError(f"{manifest}: the text of recording {empty[0]} is empty")
    if sentencepiece is None:
        lines, symbols = [spell(text) for text in texts], None
    else:
        model = _read_model(sentencepiece)
        tokens = Tokens.from_sentencepiece(model)
        symbols = tokens.list_pieces()
        lines = [[tokens.symbols[number] for number in tokens.encode(text)] for text in texts]
        copy = manifest.with_name(f"{labels}.model")
        if copy.exists() and _read_model(copy) != model:
            raise UsageError(f"{copy}: is another model than {sentencepiece}, and an earlier split's")
    counts = Counter(symbol for line in lines for symbol in line)
    _check_specials(counts)
    dictionary = manifest.with_name(f"dict.{labels}.txt")
    if dictionary.exists():
        _check_symbols(dictionary, counts)
    else:
        ranked = symbols or [symbol for symbol, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        _files.write(dictionary, "".join(f"{symbol} {max(counts[symbol], 1)}\n" for symbol in ranked).encode())
    if sentencepiece is not None:
        _files.write(copy, model)
    _files.write(manifest.with_suffix(f".{labels}"), "".join(f"{' '.join(line)}\n" for line in lines).encode())
    return dictionary


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def _check_specials(used: Iterable[str]) -> None:
    if special := sorted({*used} & {*FAIRSEQ_SPECIALS}):
        raise UsageError(f"texts with {' '.join(special)}, which fairseq takes for its own special symbols")


def _check_symbols(dictionary: Path, used: Iterable[str]) -> None:
    """Check that all tokens are in a dictionary: fairseq would silently read others as <unk>."""
    try:
        content = dictionary.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{dictionary}: cannot be read ({error})") from None
    known = {line.rsplit(" ", 1)[0] for line in content.splitlines()}
    if unknown := sorted({*used} - known):
        raise UsageError(
            f"{dictionary}: lacks {' '.join(unknown[:8])}, which the texts have; texts must be of one alphabet and "
            "case; if it was made of another split, remove it and make the training split first"
        )
