"""DeepSeek's chat completions: OpenAI's, with differences of its own."""

from typing import Any

from fusewire.contracts import Message
from fusewire_worker_remote.dialect import Dialect
from fusewire_worker_remote.providers.openai import OpenAI


class DeepSeek(OpenAI):
    """`POST {base_url}/chat/completions`."""

    base_dialect = Dialect(schema_form="json")
    """It writes JSON objects, but supports no schemas."""

    def messages(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """See `OpenAI.messages`. Tool calls after the last user's message keep their thought.

        The API refuses such a turn without its thought, but accepts an empty one; it wants no
        thoughts of earlier turns. Source: https://api-docs.deepseek.com/guides/thinking_mode
        """
        wire = super().messages(messages)
        user_positions = (at for at, message in enumerate(messages) if message.role == "user")
        last_user = max(user_positions, default=-1)
        for message, wire_message in list(zip(messages, wire, strict=True))[last_user + 1 :]:
            if message.tool_calls:
                wire_message["reasoning_content"] = message.reasoning or ""
        return wire


PROVIDER = DeepSeek()
