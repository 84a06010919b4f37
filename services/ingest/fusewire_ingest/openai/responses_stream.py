"""A response as OpenAI's Responses API streams it: events, each with a number. Pure.

Fields as in OpenAI's reference ("Streaming events"): a response is created, items are added to it, their parts are
written piece by piece and done, and it is completed.
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
        shell: the response while it is in progress, without output.
    """

    def __init__(self, shell: Mapping[str, Any]) -> None:
        self._shell = dict(shell)
        self._item = message_id(shell["id"])
        self._count = itertools.count()
        self._sent = ""
        self._is_open = False

    def begin(self) -> Iterator[Event]:
        """It is created."""
        yield self._event("response.created", response=self._shell)
        yield self._event("response.in_progress", response=self._shell)

    def text(self, piece: str) -> Iterator[Event]:
        """More of its text."""
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
        self._sent += piece
        for one in pieces(piece):
            yield self._part_event("response.output_text.delta", delta=one, logprobs=[])

    def end(self, response: Mapping[str, Any]) -> Iterator[Event]:
        """What is still to be told of a response that is over.

        Raises:
            SupersededError: at once, where its text does not begin with what was told.
        """
        output = response["output"]
        text = next(
            (item["content"][0]["text"] for item in output if item["type"] == "message"), ""
        )
        if not text.startswith(self._sent):
            raise SupersededError
        return self._end(response, text)

    def _end(self, response: Mapping[str, Any], text: str) -> Iterator[Event]:
        if rest := text[len(self._sent) :]:
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
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        told = {"item_id": item["id"], "output_index": index}
        for one in pieces(item["arguments"]):
            yield self._event("response.function_call_arguments.delta", **told, delta=one)
        arguments, name = item["arguments"], item["name"]
        yield self._event(
            "response.function_call_arguments.done", **told, arguments=arguments, name=name
        )

    def fail(self, code: str, message: str, about: Mapping[str, Any] | None) -> Iterator[Event]:
        """It has failed."""
        yield self._event(
            "error", code=code, message=message, param=None, **({"fusion": about} if about else {})
        )
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
