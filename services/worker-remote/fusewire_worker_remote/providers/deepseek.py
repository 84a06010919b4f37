"""DeepSeek's chat completions: OpenAI's, with differences of its own."""

from typing import Any

from fusewire.contracts import Message
from fusewire_worker_remote.dialect import Dialect
from fusewire_worker_remote.providers.openai import OpenAI


class DeepSeek(OpenAI):
    """`POST {base_url}/chat/completions`."""

    known = Dialect(schema_form="json")
    """It writes JSON objects, and knows no schemas."""

    def messages(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """See `OpenAI.messages`. Since the user last spoke, what was thought before a call of tools comes back with it.

        The API refuses such a turn without its thought, and takes an empty one; thoughts of earlier turns it does not
        want. Source: https://api-docs.deepseek.com/guides/thinking_mode
        """
        wire = super().messages(messages)
        last_user = max(
            (at for at, message in enumerate(messages) if message.role == "user"), default=-1
        )
        for message, sent in list(zip(messages, wire, strict=True))[last_user + 1 :]:
            if message.tool_calls:
                sent["reasoning_content"] = message.reasoning or ""
        return wire
