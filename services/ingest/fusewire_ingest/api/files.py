"""OpenAI's routes for files: inputs of batches, and outputs, which are rendered while read."""

import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fusewire import replies
from fusewire_ingest.admission.refusal import invalid_error
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import BatchCaller, Dependencies
from fusewire_ingest.api.errors import HttpError, is_openrouter
from fusewire_ingest.api.multipart import UploadForm
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.repository.files import File

MOST_LISTED = 10_000
MOST_NAME_CHARS = 256
BYTES = "application/octet-stream"
FILE_ID = Annotated[str, Query(max_length=64)]


def routes(dependencies: Dependencies) -> APIRouter:
    """`/v1/files`."""
    router = APIRouter(tags=["files"])
    files, clock = dependencies.files, dependencies.clock
    limit = dependencies.settings.limits.file_bytes

    @router.post(
        "/files",
        summary="Upload the input of a batch (JSONL)",
        openapi_extra=schemas.upload(),
        responses=schemas.reply("File"),
    )
    async def upload(request: Request, caller: BatchCaller) -> Response:
        form = UploadForm(request)
        await form.to_file()
        purpose = _purpose(form, request)
        file = File(
            f"file-{secrets.token_hex(12)}",
            caller.tenant,
            purpose,
            form.filename[:MOST_NAME_CHARS] or "upload.jsonl",
            0,
            clock(),
        )
        return JSONResponse(_object(await files.keep(file, form.file(), limit)))

    @router.get(
        "/files", summary="Your files, the newest first", responses=schemas.reply("FileList")
    )
    async def list_files(
        caller: BatchCaller,
        purpose: Annotated[str | None, Query(max_length=32)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 1_000,
        after: FILE_ID | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        page = await files.page(
            caller.tenant,
            clock(),
            purpose=_clean(purpose),
            after=_clean(after),
            limit=limit + 1,
            is_newest_first=order == "desc",
        )
        data = [_object(file) for file in page]
        reply: replies.batches.FileList = {"_shape": "openai", **paginate(data, limit)}
        return JSONResponse(reply)

    @router.get("/files/{file_id}", summary="One file", responses=schemas.reply("File"))
    async def get(file_id: str, caller: BatchCaller) -> Response:
        return JSONResponse(_object(await _find_file(dependencies, caller.tenant, file_id)))

    @router.delete(
        "/files/{file_id}", summary="Delete a file", responses=schemas.reply("FileDeletion")
    )
    async def delete(file_id: str, caller: BatchCaller) -> Response:
        await _find_file(dependencies, caller.tenant, file_id)
        if not await files.delete(caller.tenant, file_id, clock()):
            raise _not_found_error(file_id)
        reply: replies.batches.FileDeletion = {
            "_shape": "openai",
            "id": file_id,
            "object": "file",
            "deleted": True,
        }
        return JSONResponse(reply)

    @router.get(
        "/files/{file_id}/content",
        summary="A file's content",
        responses={
            200: {"description": "Done", "content": {BYTES: {"schema": {"type": "string"}}}}
        },
    )
    async def content(file_id: str, caller: BatchCaller) -> Response:
        file = await _find_file(dependencies, caller.tenant, file_id)
        pieces = await _content(dependencies, file)
        return StreamingResponse(pieces, media_type=BYTES)

    return router


async def _find_file(dependencies: Dependencies, tenant: str, file_id: str) -> File:
    # PostgreSQL cannot look up a NUL.
    if "\x00" in file_id:
        raise _not_found_error(file_id)
    file = await dependencies.files.get(tenant, file_id, dependencies.clock())
    if file is None:
        raise _not_found_error(file_id)
    return file


def _purpose(form: UploadForm, request: Request) -> str:
    # OpenRouter's SDK sends no purpose.
    default = "batch" if is_openrouter(request) else ""
    purpose = form.fields.get("purpose", default)
    if purpose != "batch":
        raise invalid_error("purpose", "it must come before the file, and be 'batch'")
    return purpose


async def _content(dependencies: Dependencies, file: File) -> AsyncIterator[bytes]:
    """The bytes of an uploaded file, or those of a batch's output, which are rendered now."""
    if file.batch_id is None:
        return dependencies.files.content(file)
    batch = await dependencies.batches.get(file.tenant, file.batch_id)
    if batch is None:
        raise _not_found_error(file.file_id)
    kind: Literal["output", "error"] = "output" if file.purpose == "batch_output" else "error"
    return batch_output.file_lines(dependencies.lines, batch, kind)


def _clean(text: str | None) -> str | None:
    """A text without NUL, which PostgreSQL cannot look up."""
    return None if text is None else text.replace("\x00", "")


T = TypeVar("T", replies.batches.File, replies.batches.Batch)


def paginate(objects: list[T], limit: int) -> replies.batches.Page[T]:
    """A page in OpenAI's form.

    Args:
        objects: up to `limit + 1` of them, so that the last shows that there are more.
        limit: the most objects of the page.
    """
    data = objects[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(objects) > limit,
    }


def _not_found_error(file_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no file '{file_id[:64]}'")


def _object(file: File) -> replies.batches.File:
    """OpenAI's object."""
    return {
        "id": file.file_id,
        "object": "file",
        # Tells OpenRouter's SDK that this is OpenAI's form.
        "_shape": "openai",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
