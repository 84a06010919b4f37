"""A response as the numbered events of OpenAI's Responses API. Pure.

Fields as in OpenAI's reference ("Streaming events"): a response is created, items are added, their
parts are written piece by piece and done, and the response is completed.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fusewire_ingest.openai.chat_reply import SupersededError, pieces
from fusewire_ingest.openai.responses import message_id

Event = dict[str, Any]


class ResponseEvents:
    """The events of one response.

    Args:
        shell: the response in progress, without output.
    """

    def __init__(self, shell: Mapping[str, Any]) -> None:
        self._shell = dict(shell)
        self._item = message_id(shell["id"])
        self._count = itertools.count()
        self._streamed_text = ""
        self._is_open = False

    def begin(self) -> Iterator[Event]:
        """Events of the beginning."""
        yield self._event("response.created", response=self._shell)
        yield self._event("response.in_progress", response=self._shell)

    def text(self, piece: str) -> Iterator[Event]:
        """Events of more text."""
        if not self._is_open:
            self._is_open = True
            item = {
                "type": "message",
                "id": self._item,
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._part_event("response.content_part.added", part=_text_part(""))
        self._streamed_text += piece
        for delta in pieces(piece):
            yield self._part_event("response.output_text.delta", delta=delta, logprobs=[])

    def end(self, response: Mapping[str, Any]) -> Iterator[Event]:
        """Events of the end, with everything that was not streamed.

        Raises:
            SupersededError: the response's text does not begin with the streamed one. Raised by the
                call itself, before the first event.
        """
        messages = (item for item in response["output"] if item["type"] == "message")
        message = next(messages, None)
        text = message["content"][0]["text"] if message else ""
        if not text.startswith(self._streamed_text):
            raise SupersededError
        return self._end(response, text)

    def _end(self, response: Mapping[str, Any], text: str) -> Iterator[Event]:
        if rest := text[len(self._streamed_text) :]:
            yield from self.text(rest)
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                yield self._part_event("response.output_text.done", text=text, logprobs=[])
                yield self._part_event("response.content_part.done", part=item["content"][0])
            else:
                yield from self._call(index, item)
            yield self._event("response.output_item.done", output_index=index, item=item)
        kind = "response.incomplete" if response["status"] == "incomplete" else "response.completed"
        yield self._event(kind, response=response)

    def _call(self, index: int, item: Mapping[str, Any]) -> Iterator[Event]:
        empty_item = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=index, item=empty_item)
        place = {"item_id": item["id"], "output_index": index}
        for delta in pieces(item["arguments"]):
            yield self._event("response.function_call_arguments.delta", **place, delta=delta)
        arguments, name = item["arguments"], item["name"]
        yield self._event(
            "response.function_call_arguments.done", **place, arguments=arguments, name=name
        )

    def fail(self, code: str, message: str, about: Mapping[str, Any] | None) -> Iterator[Event]:
        """Events of a failure."""
        details = {"fusion": about} if about else {}
        yield self._event("error", code=code, message=message, param=None, **details)
        failed = {
            **self._shell,
            "status": "failed",
            "error": {"code": "server_error", "message": message},
        }
        yield self._event("response.failed", response=failed)

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "sequence_number": next(self._count), **fields}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
