"""Google's protocol, for the fake model server. For tests and benchmarks only."""

import json
import re
from typing import Any

from fusewire.testing.model_dialects import (
    MESSAGE,
    Dialect,
    ScriptedReply,
    UnknownError,
    encode,
    image,
    schema_format,
    tool,
    tool_call,
    turn,
)

_PATH = re.compile(r"/models/([^:]+):(generateContent|streamGenerateContent)")
_CONFIG = frozenset(
    [
        "maxOutputTokens",
        "temperature",
        "topP",
        "seed",
        "stopSequences",
        "responseMimeType",
        "responseJsonSchema",
    ]
)
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GeminiDialect(Dialect):
    """`generateContent`, whole and streamed: strict."""

    fields = frozenset(["systemInstruction", "contents", "generationConfig", "tools", "toolConfig"])

    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match = _PATH.search(path)
        if match is None:
            raise UnknownError("path")
        config = body.get("generationConfig", {})
        if unknown := config.keys() - _CONFIG:
            raise UnknownError(", ".join(sorted(unknown)))
        messages = _system_messages(body)
        for content in body["contents"]:
            messages += _from_parts(content, is_signed="gemini-3" in match[1])
        normal: dict[str, Any] = {
            "model": match[1],
            "messages": messages,
            "max_tokens": config.get("maxOutputTokens"),
            "temperature": config.get("temperature"),
            "top_p": config.get("topP"),
            "seed": config.get("seed"),
            "stop": config.get("stopSequences"),
            "stream": match[2] == "streamGenerateContent",
        }
        if "responseJsonSchema" in config:
            if config.get("responseMimeType") != "application/json":
                raise UnknownError("responseMimeType")
            normal["response_format"] = schema_format(config["responseJsonSchema"])
        if "tools" in body:
            normal["tools"] = [
                tool(entry["name"], entry.get("description"), entry.get("parametersJsonSchema"))
                for entry in body["tools"][0]["functionDeclarations"]
            ]
            normal["tool_choice"] = _tool_choice(body["toolConfig"]["functionCallingConfig"])
        return normal

    def whole(self, reply: ScriptedReply) -> bytes:
        return encode(
            self._response(
                reply,
                [*self._thought_parts(), *self._text(reply.text), *self._call_parts(reply)],
                is_last=True,
            )
        )

    def start_events(self, reply: ScriptedReply) -> list[bytes]:
        return [self.event(self._response(reply, self._thought_parts(), is_last=False))]

    def token(self, reply: ScriptedReply, text: str) -> bytes:
        return self.event(self._response(reply, self._text(text), is_last=False))

    def end_events(self, reply: ScriptedReply) -> list[bytes]:
        return [
            self.event(
                self._response(reply, self._call_parts(reply) or [{"text": ""}], is_last=True)
            )
        ]

    def refusal(self, message: str, parameter: str | None) -> tuple[int, bytes]:
        text = (
            f"Invalid JSON payload received. Unknown name '{parameter}' at 'generation_config'."
            f" {message}"
        )
        return 400, encode({"error": {"code": 400, "message": text, "status": "INVALID_ARGUMENT"}})

    def error(
        self,
        status: int,
        code: str,
        kind: str,  # noqa: ARG002 - the signature is the protocol's
        headers: dict[str, str],
    ) -> tuple[int, bytes]:
        message = MESSAGE
        details: list[dict[str, Any]] = []
        if status == 529:
            status = 503
        if code == "context_length_exceeded":
            message = (
                "The input token count (2000000) exceeds the maximum number of tokens allowed "
                "(1048576)."
            )
        elif code == "content_policy_violation":
            return 200, encode({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})
        elif code == "invalid_api_key":
            status = 400
            details = [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            ]
        elif code == "insufficient_quota":
            violation = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
            details = [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}
            ]
        if wait := headers.pop("retry-after", None):  # it is in the body, and in no header
            details.append(
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"}
            )
        word = _STATUS.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION")
        return status, encode(
            {"error": {"code": status, "message": message, "status": word, "details": details}}
        )

    def _response(
        self, reply: ScriptedReply, parts: list[dict[str, Any]], *, is_last: bool
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if is_last and reply.finish:
            words = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
            candidate["finishReason"] = words.get(reply.finish, "STOP")
        thoughts = 1 if reply.said_tokens > 1 else 0
        usage = {
            "promptTokenCount": reply.asked_tokens,
            "candidatesTokenCount": reply.said_tokens - thoughts if is_last else 0,
            "thoughtsTokenCount": thoughts,
            "cachedContentTokenCount": reply.cached_tokens,
        }
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": reply.model}

    def _thought_parts(self) -> list[dict[str, Any]]:
        return [{"text": "…", "thought": True}]

    def _text(self, text: str) -> list[dict[str, Any]]:
        return [{"text": text}] if text else []

    def _call_parts(self, reply: ScriptedReply) -> list[dict[str, Any]]:
        # Google's calls have objects for arguments, and often no id.
        return [
            {
                "functionCall": {"name": call.name, "args": call.arguments},
                "thoughtSignature": "eA==",
            }
            for call in reply.calls
        ]


def _system_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The system prompt in OpenAI's form, if there is one."""
    if "systemInstruction" not in body:
        return []
    text = "".join(part["text"] for part in body["systemInstruction"]["parts"])
    return [{"role": "system", "content": text}]


def _tool_choice(config: dict[str, Any]) -> str | dict[str, Any]:
    """A `tool_choice`, in OpenAI's form."""
    names = config.get("allowedFunctionNames")
    if names:
        return {"type": "function", "function": {"name": names[0]}}
    return {"AUTO": "auto", "NONE": "none", "ANY": "required"}[config["mode"]]


def _image_url(part: dict[str, Any]) -> str:
    """The URL of a part with an image; its own data become a data URL."""
    if "fileData" in part:
        return str(part["fileData"]["fileUri"])
    blob = part["inlineData"]
    return f"data:{blob['mimeType']};base64,{blob['data']}"


def _demand_signature(part: dict[str, Any], *, is_first: bool, is_signed: bool) -> None:
    """Refuse a first call without a signature, for models that sign theirs."""
    if is_signed and is_first and "thoughtSignature" not in part:
        raise UnknownError("thought_signature")


def _from_parts(content: dict[str, Any], *, is_signed: bool) -> list[dict[str, Any]]:
    """A turn's messages in OpenAI's form.

    Each tool's result is a message of its own, named by its function.
    """
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in content["parts"]:
        if "functionResponse" in part:
            result = part["functionResponse"]
            messages.append(
                {"role": "tool", "name": result["name"], "content": json.dumps(result["response"])}
            )
        elif "functionCall" in part:
            _demand_signature(part, is_first=not calls, is_signed=is_signed)
            call = part["functionCall"]
            calls.append(tool_call(call["name"], call["name"], call["args"]))
        elif "inlineData" in part or "fileData" in part:
            parts.append(image(_image_url(part)))
        else:
            parts.append({"type": "text", "text": part["text"]})
    if parts or calls:
        messages.append(turn({"user": "user", "model": "assistant"}[content["role"]], parts, calls))
    return messages
