"""Files: the inputs of batches, uploaded, and what batches have written, rendered as it is read."""

import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fusewire import replies
from fusewire_ingest.admission.refusal import wrong
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError, is_openrouter
from fusewire_ingest.api.multipart import UploadForm
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.repository.files import File

MOST_LISTED = 10_000
MOST_NAME = 256
BYTES = "application/octet-stream"
FILE_ID = Annotated[str, Query(max_length=64)]


def routes(of: Dependencies) -> APIRouter:
    """`/v1/files`."""
    router = APIRouter(tags=["files"])
    files, batches, lines, clock = of.files, of.batches, of.lines, of.clock
    limit = of.settings.limits.file_bytes

    async def found(tenant: str, file_id: str) -> File:
        file = await files.get(tenant, file_id, clock()) if "\x00" not in file_id else None
        if file is None:
            raise _none(file_id)
        return file

    @router.post(
        "/files",
        summary="Upload the input of a batch (JSONL)",
        openapi_extra=schemas.upload(),
        responses=schemas.reply("File"),
    )
    async def upload(request: Request, who: Who) -> Response:
        form = UploadForm(request)
        await form.to_file()
        # OpenRouter's SDK names none.
        purpose = form.fields.get("purpose", "batch" if is_openrouter(request) else "")
        if purpose != "batch":
            raise wrong("purpose", "it must come before the file, and be 'batch'")
        file = File(
            f"file-{secrets.token_hex(12)}",
            who.tenant,
            purpose,
            form.filename[:MOST_NAME] or "upload.jsonl",
            0,
            clock(),
        )
        return JSONResponse(_shown(await files.keep(file, form.file(), limit)))

    @router.get(
        "/files", summary="Your files, the newest first", responses=schemas.reply("FileList")
    )
    async def listed(
        who: Who,
        purpose: Annotated[str | None, Query(max_length=32)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 1_000,
        after: FILE_ID | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        page = await files.page(
            who.tenant,
            clock(),
            purpose=_clean(purpose),
            after=_clean(after),
            limit=limit + 1,
            is_newest_first=order == "desc",
        )
        data = [_shown(file) for file in page]
        shown: replies.batches.FileList = {"_shape": "openai", **paged(data, limit)}
        return JSONResponse(shown)

    @router.get("/files/{file_id}", summary="One file", responses=schemas.reply("File"))
    async def get(file_id: str, who: Who) -> Response:
        return JSONResponse(_shown(await found(who.tenant, file_id)))

    @router.delete("/files/{file_id}", summary="Delete a file", responses=schemas.reply("Deleted"))
    async def delete(file_id: str, who: Who) -> Response:
        await found(who.tenant, file_id)
        if not await files.delete(who.tenant, file_id, clock()):
            raise _none(file_id)
        gone: replies.batches.FileDeletion = {
            "_shape": "openai",
            "id": file_id,
            "object": "file",
            "deleted": True,
        }
        return JSONResponse(gone)

    @router.get(
        "/files/{file_id}/content",
        summary="A file's content",
        responses={
            200: {"description": "Done", "content": {BYTES: {"schema": {"type": "string"}}}}
        },
    )
    async def content(file_id: str, who: Who) -> Response:
        file = await found(who.tenant, file_id)
        written: AsyncIterator[bytes]
        if file.batch_id is None:
            written = files.content(file)
        else:
            batch = await batches.get(who.tenant, file.batch_id)
            if batch is None:
                raise _none(file_id)
            written = batch_output.file_lines(
                lines, batch, "output" if file.purpose == "batch_output" else "error"
            )
        return StreamingResponse(written, media_type=BYTES)

    return router


def _clean(text: str | None) -> str | None:
    """What PostgreSQL lets one look for."""
    return None if text is None else text.replace("\x00", "")


T = TypeVar("T", replies.batches.File, replies.batches.Batch)


def paged(found: list[T], limit: int) -> replies.batches.Page[T]:
    """A page as OpenAI shows it, of up to one more than its limit."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def _none(file_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no file '{file_id[:64]}'")


def _shown(file: File) -> replies.batches.File:
    """OpenAI's object."""
    return {
        "id": file.file_id,
        "object": "file",
        # By this OpenRouter's SDK knows that it reads OpenAI's shape.
        "_shape": "openai",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
