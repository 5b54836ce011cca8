"""Beam search with flashlight's decoder in torchaudio, optionally with a lexicon and an n-gram language model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from daisy.errors import UsageError
from daisy.models import Tokens
from daisy.models.tokens import SPACE, WORD_START
from daisy.policies.nbest import load_decoder
from daisy.recognition.decoding import Hypothesis, align, split_at_spaces

TOKENS_PER_FRAME = 20
"""Only this many of a frame's likeliest tokens extend a hypothesis; of 257 pieces, the others cost most of the time."""


class BeamSearch:
    """Finds the likeliest text, while greedy decoding takes the likeliest path.

    Args:
        tokens: tokens of the recogniser.
        beam_size: number of hypotheses kept at each frame.
        lexicon: a file with a word and its spelling per line ("CAT C A T |"; in pieces, the first has ▁): only
            these words are recognised. None: any.
        language_model: a KenLM file, over words with a lexicon, else over tokens.
        language_weight: factor of its log-probabilities (in base 10).
        word_score: score added for each word of a lexicon.

    Raises:
        UsageError: where torchaudio or flashlight-text is missing, a file cannot be read or does not fit the tokens, or
            a weight is not a number.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        beam_size: int = 50,
        lexicon: str | Path | None = None,
        language_model: str | Path | None = None,
        language_weight: float = 2.0,
        word_score: float = 0.0,
    ):
        make = load_decoder()
        if not (math.isfinite(language_weight) and math.isfinite(word_score)):
            raise UsageError(
                f"beam search: weights must be numbers, found language_weight {language_weight}, "
                f"word_score {word_score}"
            )
        self.tokens, self.has_lexicon = tokens, lexicon is not None
        if lexicon is not None:
            check_lexicon(Path(lexicon), tokens)
        if language_model is not None and not Path(language_model).is_file():
            raise UsageError(f"{language_model}: no such language model")
        blank = tokens.symbols[tokens.blank]
        try:
            self._decoder = make(
                lexicon=None if lexicon is None else str(lexicon),
                tokens=list(tokens.symbols),
                lm=None if language_model is None else str(language_model),
                beam_size=beam_size,
                beam_size_token=min(TOKENS_PER_FRAME, len(tokens)),
                lm_weight=language_weight,
                word_score=word_score,
                log_add=lexicon is None,
                blank_token=blank,
                sil_token=SPACE if SPACE in tokens.symbols and not tokens.are_pieces else blank,
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [""])[-1][:200]  # KenLM's first line is about its own source
            if language_model is None:
                raise UsageError(f"beam search: {reason}") from None
            raise UsageError(f"{language_model}: not a language model that KenLM reads ({reason})") from None

    def __call__(self, log_probs: Tensor) -> Hypothesis:
        """Decode an utterance, (T, V) log-probabilities."""
        log_probs = log_probs.float().cpu().contiguous()
        best = self._decoder(log_probs[None])[0]
        if not best:  # no word of the lexicon fits
            return Hypothesis(tokens=(), frames=(), words=() if self.has_lexicon else None, score=float("-inf"))
        spoken = [
            (int(token), int(frame) - 1)  # flashlight's path starts with silence before the first frame
            for token, frame in zip(best[0].tokens, best[0].timesteps, strict=True)
        ]
        said = [token for token, frame in spoken if 0 <= frame < len(log_probs)]
        frames = align(log_probs, said, self.tokens.blank)  # flashlight gives where tokens begin, not where they end
        words = tuple(best[0].words) if self.has_lexicon else None
        if words is not None:  # if no text of the beam ends in a whole word, the last word is unfinished
            places = split_at_spaces(said, self.tokens)
            said = said[: places[len(words)][0]] if len(places) > len(words) else said
        return Hypothesis(
            tokens=tuple(said),
            frames=frames[: len(said)],
            words=words,
            score=float(best[0].score),
        )


def check_lexicon(path: Path, tokens: Tokens) -> None:
    """Check that each line has a word and a spelling in the recogniser's tokens that marks its beginning or end.

    Raises:
        UsageError: naming the first line that does not.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    number = 0
    for number, line in enumerate(lines, 1):
        word, *spelling = line.split() or [""]
        if not word:
            raise UsageError(f"{path}: line {number} is empty: take it out")
        if fault := _find_fault(spelling, tokens):
            raise UsageError(f"{path}: line {number}, {word!r}: {fault}")
    if not number:
        raise UsageError(f"{path}: an empty lexicon")


def _find_fault(spelling: Iterable[str], tokens: Tokens) -> str | None:
    parts = list(spelling)
    if unknown := [part for part in parts if part not in tokens.numbers]:
        return f"{unknown[0]!r} is no token of this recogniser"
    if not tokens.are_pieces:
        if len(parts) < 2 or parts[-1] != SPACE or SPACE in parts[:-1]:
            return f"a spelling is letters and ends with {SPACE}"
    elif [place for place, part in enumerate(parts) if part.startswith(WORD_START)] != [0]:
        return f"a spelling is pieces of which the first begins with {WORD_START}"
    has_letters = any(tokens.spell(tokens.numbers[part]) for part in parts)
    return None if has_letters else "none of these tokens has a letter"
