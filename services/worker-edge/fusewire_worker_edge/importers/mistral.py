"""Find Mistral's own tokenizer file for a GGUF file, which contains its pieces only."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

_PUBLISHED = Path(mistral_common.__file__).parent / "data"


def own_tokenizer(pieces: Sequence[str]) -> Path | None:
    """Return the SentencePiece file of mistral-common with exactly these pieces, or None."""
    for path in sorted(_PUBLISHED.glob("*.model.v*")):
        tokenizer = SentencePieceTokenizer(str(path))
        if tokenizer.n_words != len(pieces):
            continue
        # Mistral publishes few files, so equal pieces tell which one it is (docs/decisions/0031).
        if all(tokenizer.id_to_piece(i) == piece for i, piece in enumerate(pieces)):
            return path
    return None


def copy_tokenizer(pieces: Sequence[str], folder: Path) -> bool:
    """Copy that file into a model folder, under Mistral's name. Return whether there is one."""
    path = own_tokenizer(pieces)
    if path is None:
        return False
    version = path.name.rsplit(".", 1)[1].split("m")[0]
    shutil.copyfile(path, folder / f"tokenizer.model.{version}")
    return True
