"""Parse a form with one file as it arrives, without storing the file in memory or on disk."""

from collections.abc import AsyncIterator
from email.message import Message

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from starlette.requests import Request

from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.api.bodies import pieces
from fusewire_ingest.api.errors import HttpError

MOST_FIELD = 4096
"""The most bytes of a field other than the file, and of a part's header."""
MOST_PARTS = 16


class UploadForm:
    """Reads the fields before the file, and then the file.

    Args:
        request: its body is the form. Fields must come before the file, as every SDK sends them.
    """

    def __init__(self, request: Request) -> None:
        content_type = _header("content-type", request.headers.get("content-type", ""))
        boundary = content_type.get_param("boundary")
        is_form = content_type.get_content_type() == "multipart/form-data"
        if not is_form or not isinstance(boundary, str):
            raise HttpError(
                415,
                "unsupported_media_type",
                "send the file as multipart/form-data, with the fields purpose and file",
            )
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._source = pieces(request)
        self._parser = MultipartParser(
            boundary.encode("latin-1"),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
        )
        self._parts = 0
        self._headers: dict[str, str] = {}
        self._header_pair = [bytearray(), bytearray()]
        self._name = ""
        self._value = bytearray()
        self._is_file = False
        self._is_file_over = False
        self._is_whole = False
        self._content = bytearray()

    async def to_file(self) -> None:
        """Read up to the file. Raises RefusedError if there is none."""
        async for piece in self._source:
            self._feed(piece)
            if self._is_file or self._is_file_over:
                return
        raise RefusedError(
            "invalid_request", "the form has no file; send it as the field 'file'", "file"
        )

    async def file(self) -> AsyncIterator[bytes]:
        """The file's content, cut anywhere. Raises RefusedError if the form is incomplete."""
        yield self._take()
        async for piece in self._source:
            self._feed(piece)
            if self._content:
                yield self._take()
        if not self._is_whole:
            raise RefusedError(
                "invalid_request", "the form breaks off before its end; send it again", "file"
            )

    def _take(self) -> bytes:
        content = bytes(self._content)
        self._content.clear()
        return content

    def _feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except MultipartParseError:
            raise RefusedError(
                "invalid_request", "the body is not valid multipart/form-data", "file"
            ) from None

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise RefusedError(
                "invalid_request", f"the form has more than {MOST_PARTS} fields", "file"
            )
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        _append(self._header_pair[0], data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        _append(self._header_pair[1], data[start:end])

    def _header_end(self) -> None:
        name, value = (part.decode("utf-8", "replace") for part in self._header_pair)
        self._headers[name.lower()] = value
        self._header_pair = [bytearray(), bytearray()]

    def _headers_end(self) -> None:
        disposition = _header("content-disposition", self._headers.get("content-disposition", ""))
        self._name = str(disposition.get_param("name", "", header="content-disposition"))
        filename = disposition.get_filename()
        self._value = bytearray()
        if filename is None and self._name != "file":
            return
        if self._name != "file" or self._is_file_over:
            raise RefusedError(
                "invalid_request",
                "the form has one file, in the field 'file'",
                self._name[:80] or None,
            )
        self._is_file = True
        self.filename = (filename or "").replace("\x00", "")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content += data[start:end]
        else:
            _append(self._value, data[start:end])

    def _end(self) -> None:
        if self._is_file:
            self._is_file, self._is_file_over = False, True
        else:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _complete(self) -> None:
        self._is_whole = True


def _append(buffer: bytearray, piece: bytes) -> None:
    if len(buffer) + len(piece) > MOST_FIELD:
        raise RefusedError(
            "invalid_request", f"a field of the form has more than {MOST_FIELD} bytes"
        )
    buffer += piece


def _header(name: str, value: str) -> Message:
    message = Message()
    # Without line breaks, which `Message` refuses in a header.
    message[name] = " ".join(value.split())
    return message
