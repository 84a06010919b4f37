"""Find Mistral's own tokenizer for a GGUF file, which has its pieces and not the file itself."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

_PUBLISHED = Path(mistral_common.__file__).parent / "data"


def own_tokenizer(pieces: Sequence[str]) -> Path | None:
    """The SentencePiece file that mistral-common brings along with exactly these pieces, or None."""
    for path in sorted(_PUBLISHED.glob("*.model.v*")):
        known = SentencePieceTokenizer(str(path))
        if known.n_words == len(pieces) and all(
            known.id_to_piece(i) == piece for i, piece in enumerate(pieces)
        ):
            return path
    return None


def copy_tokenizer(pieces: Sequence[str], folder: Path) -> bool:
    """Put that file into a model folder under the name that Mistral gives it; say whether there is one."""
    path = own_tokenizer(pieces)
    if path is not None:
        version = path.name.rsplit(".", 1)[1].split("m")[0]
        shutil.copyfile(path, folder / f"tokenizer.model.{version}")
    return path is not None
