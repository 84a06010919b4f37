"""A prompt as it was submitted."""

from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import references, replies
from fusewire.contracts import Image, Message, Prompt, TextReference
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller
from fusewire_ingest.api.fusions import not_found_error


def routes(dependencies: Dependencies) -> APIRouter:
    """`/fusions/{id}/prompt`."""
    router = APIRouter(tags=["fusions"])

    @router.get(
        "/fusions/{fusion_id}/prompt",
        summary="A fusion's prompt as it was submitted",
        responses=schemas.reply("SubmittedPrompt"),
    )
    async def get(fusion_id: str, caller: ReadCaller) -> Response:
        """Large images and texts are described; they are not in the reply."""
        prompt = await dependencies.intake.prompt(caller.tenant, fusion_id)
        if prompt is None:
            raise not_found_error(fusion_id)
        sizes = await dependencies.large_parts.image_sizes(prompt)
        return JSONResponse(_reply(prompt, sizes))

    return router


def _reply(prompt: Prompt, sizes: Mapping[str, int]) -> replies.console.SubmittedPrompt:
    return {
        "object": "prompt",
        "id": prompt.fusion_id,
        "custom_id": prompt.custom_id,
        "batch_id": prompt.batch_id,
        "messages": [_message(message, sizes) for message in prompt.messages],
        "mode": prompt.mode,
        "pool": prompt.pool,
        "residency": prompt.residency,
        "priority": prompt.priority,
        "preset": prompt.preset,
        "tools": [tool.name for tool in prompt.tools],
        "submitted_at": prompt.submitted_at.isoformat(),
        "deadline_at": prompt.deadline_at.isoformat(),
    }


def _message(message: Message, sizes: Mapping[str, int]) -> replies.console.PromptMessage:
    parts = [_image(image, sizes) for image in message.images] + [*map(_text, message.texts)]
    return {
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in message.tool_calls
        ],
        "tool_call_id": message.tool_call_id,
        "reasoning": message.reasoning,
        "parts": sorted(parts, key=lambda part: part["at"]),
    }


def _image(image: Image, sizes: Mapping[str, int]) -> replies.console.PromptPart:
    name = references.images.name_in(image.url)
    media_type = None
    if image.url.startswith("data:"):
        media_type = image.url.removeprefix("data:").partition(";")[0]
    return {
        "kind": "image",
        "at": image.at,
        "url": None if name else image.url,
        "media_type": media_type,
        "detail": image.detail,
        "chars": None,
        "bytes": sizes.get(name) if name else None,
        "sha256": name,
    }


def _text(text: TextReference) -> replies.console.PromptPart:
    return {
        "kind": "text",
        "at": text.at,
        "url": None,
        "media_type": None,
        "detail": None,
        "chars": text.chars,
        "bytes": text.size,
        "sha256": text.name,
    }
