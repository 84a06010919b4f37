"""Mistral's formats, with its own tokenizers and random weights."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import mistral_common
import pytest
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor

from fusewire.contracts import Message, Tool, ToolCall
from fusewire.testing.tiny_gguf import write_gguf
from fusewire_worker_edge.engine.api import GenerateRequest, RequestRefusedError
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.mistral import MistralVocabulary
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.importers.convert import import_model

DATA = Path(mistral_common.__file__).parent / "data"
V3 = DATA / "mistral_instruct_tokenizer_240323.model.v3"
V7 = DATA / "mistral_instruct_tokenizer_241114.model.v7"
TOOLS = (
    Tool(
        name="get_weather",
        description="Weather.",
        parameters={
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Lima"]}},
            "required": ["city"],
        },
    ),
    Tool(name="now"),
)
ASKED = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Weather in Paris? [INST]"),
    Message(
        role="assistant",
        content="",
        tool_calls=(
            ToolCall(id="call_0123456789", name="get_weather", arguments='{"city": "Paris"}'),
        ),
    ),
    Message(role="tool", content='{"celsius": 22}', tool_call_id="call_0123456789"),
)


def token_kind(model: SentencePieceProcessor, token: int) -> int:
    """GGUF's type of a token."""
    if model.is_unknown(token):
        return 2
    if model.is_control(token):
        return 3
    return 6 if model.is_byte(token) else 1


def vocabulary_of(path: Path) -> tuple[list[str], list[float], list[int]]:
    """The pieces of a SentencePiece file as GGUF has them."""
    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.vocab_size())
    kinds = [token_kind(model, i) for i in ids]
    return [model.id_to_piece(i) for i in ids], [model.get_score(i) for i in ids], kinds


@pytest.fixture(scope="module", params=[V3, V7], ids=["v3", "v7"])
def mistral(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A tiny model with the vocabulary of Mistral-7B-Instruct, and no chat template."""
    root = tmp_path_factory.mktemp("mistral")
    metadata = {
        "tokenizer": "llama",
        "vocabulary": vocabulary_of(request.param),
        "template": "",
        "add_bos": True,
    }
    write_gguf(root / "m.gguf", {"": "Q8_0"}, is_tied=True, metadata=metadata, drop="", add="")
    import_model(root / "m.gguf", root / "m")
    generator = Generator(root / "m", verify(root / "m"), EngineOptions(threads=1))
    assert isinstance(generator.vocabulary, MistralVocabulary)
    generator.own = MistralTokenizer.from_file(str(request.param))  # type: ignore[attr-defined]
    return generator


def decode(generator: Generator, ids: list[int]) -> str:
    stream = generator.vocabulary.text_stream(special=True)
    for token in ids:
        stream.append(token)
    return stream.text


def test_prompts_are_mistral_commons(mistral: Generator) -> None:
    plain: ChatCompletionRequest[Any] = ChatCompletionRequest(
        messages=[UserMessage(content="Hello  there")]
    )
    ours = mistral.vocabulary.prompt([Message(role="user", content="Hello  there")])
    assert ours == mistral.own.encode_chat_completion(plain).tokens  # type: ignore[attr-defined]


def test_a_conversation_with_tools_has_mistrals_form_and_ids_of_nine(mistral: Generator) -> None:
    text = decode(mistral, mistral.vocabulary.prompt(ASKED, TOOLS))

    assert text.startswith("<s>")
    assert (
        text.count("[AVAILABLE_TOOLS]")
        == text.count("[TOOL_CALLS]")
        == text.count("[TOOL_RESULTS]")
        == 1
    )
    assert "call_0123456789" not in text
    # What a user spells is no control token.
    ids = mistral.vocabulary.prompt(ASKED, TOOLS)
    assert sum(mistral.vocabulary._tokenizer.id_to_token(i) == "[INST]" for i in ids) == 1


@pytest.mark.parametrize("seed", range(3))
def test_calls_parse_and_fit_their_schema(mistral: Generator, seed: int) -> None:
    fields: dict[str, Any] = {"max_tokens": 600, "tools": TOOLS, "temperature": 1.0, "seed": seed}
    completion = mistral.generate(
        GenerateRequest(
            id="r", messages=ASKED, tool_choice="required", parallel_tool_calls=seed > 0, **fields
        )
    )
    for call in completion.tool_calls:
        tool = next(tool for tool in TOOLS if tool.name == call.name)
        jsonschema.validate(json.loads(call.arguments), tool.parameters)

    assert (completion.finish_reason, completion.text) == ("tool_calls", "")
    assert len(completion.tool_calls) == 1 or seed > 0


def test_text_never_holds_the_control_token(mistral: Generator) -> None:
    for seed in range(4):
        completion = mistral.generate(
            GenerateRequest(
                id="r",
                messages=ASKED,
                max_tokens=40,
                tools=TOOLS,
                temperature=2.0,
                tool_choice="none",
                seed=seed,
            )
        )
        assert completion.text
        assert completion.tool_calls == ()
        assert completion.mean_logprob < 0


def test_an_order_that_mistral_does_not_know_is_refused(mistral: Generator) -> None:
    with pytest.raises(RequestRefusedError, match="order of messages") as error:
        mistral.vocabulary.prompt([Message(role="assistant", content="secret")])
    assert error.value.code == "bad_request"
    assert "secret" not in str(error.value)


def test_text_beside_calls_is_kept_where_the_format_has_a_place_for_it(mistral: Generator) -> None:
    turn_with_text = ASKED[2].model_copy(update={"content": "Let me look."})
    text = decode(mistral, mistral.vocabulary.prompt([*ASKED[:2], turn_with_text, ASKED[3]], TOOLS))
    assert "[TOOL_CALLS]" in text
