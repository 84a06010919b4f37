"""Google's protocol, for the fake model server. For tests and benchmarks only."""

import json
import re
from typing import Any

from fusewire.testing.model_dialects import (
    MESSAGE,
    Dialect,
    ScriptedReply,
    UnknownError,
    called,
    encoded,
    image,
    schema_format,
    tool,
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

    def turned(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = _PATH.search(path)
        if found is None:
            raise UnknownError("path")
        config = body.get("generationConfig", {})
        if unknown := config.keys() - _CONFIG:
            raise UnknownError(", ".join(sorted(unknown)))
        messages = []
        if "systemInstruction" in body:
            text = "".join(part["text"] for part in body["systemInstruction"]["parts"])
            messages.append({"role": "system", "content": text})
        for one in body["contents"]:
            messages += _from_parts(one, is_signed="gemini-3" in found[1])
        normal: dict[str, Any] = {
            "model": found[1],
            "messages": messages,
            "max_tokens": config.get("maxOutputTokens"),
            "temperature": config.get("temperature"),
            "top_p": config.get("topP"),
            "seed": config.get("seed"),
            "stop": config.get("stopSequences"),
            "stream": found[2] == "streamGenerateContent",
        }
        if "responseJsonSchema" in config:
            if config.get("responseMimeType") != "application/json":
                raise UnknownError("responseMimeType")
            normal["response_format"] = schema_format(config["responseJsonSchema"])
        if "tools" in body:
            normal["tools"] = [
                tool(one["name"], one.get("description"), one.get("parametersJsonSchema"))
                for one in body["tools"][0]["functionDeclarations"]
            ]
            chosen = body["toolConfig"]["functionCallingConfig"]
            named = chosen.get("allowedFunctionNames")
            normal["tool_choice"] = (
                {"type": "function", "function": {"name": named[0]}}
                if named
                else {"AUTO": "auto", "NONE": "none", "ANY": "required"}[chosen["mode"]]
            )
        return normal

    def whole(self, said: ScriptedReply) -> bytes:
        return encoded(
            self._response(
                said, [*self._thought(), *self._text(said.text), *self._called(said)], is_last=True
            )
        )

    def begun(self, said: ScriptedReply) -> list[bytes]:
        return [self.event(self._response(said, self._thought(), is_last=False))]

    def token(self, said: ScriptedReply, text: str) -> bytes:
        return self.event(self._response(said, self._text(text), is_last=False))

    def ended(self, said: ScriptedReply) -> list[bytes]:
        return [
            self.event(self._response(said, self._called(said) or [{"text": ""}], is_last=True))
        ]

    def refused(self, message: str, parameter: str | None) -> tuple[int, bytes]:
        told = f"Invalid JSON payload received. Unknown name '{parameter}' at 'generation_config'. {message}"
        return 400, encoded({"error": {"code": 400, "message": told, "status": "INVALID_ARGUMENT"}})

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
            message = "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576)."
        elif code == "content_policy_violation":
            return 200, encoded({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})
        elif code == "invalid_api_key":
            status = 400
            details = [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            ]
        elif code == "insufficient_quota":
            broken = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
            details = [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [broken]}
            ]
        if wait := headers.pop("retry-after", None):  # it is in the body, and in no header
            details.append(
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"}
            )
        named = _STATUS.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION")
        return status, encoded(
            {"error": {"code": status, "message": message, "status": named, "details": details}}
        )

    def _response(
        self, said: ScriptedReply, parts: list[dict[str, Any]], *, is_last: bool
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if is_last and said.finish:
            words = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
            candidate["finishReason"] = words.get(said.finish, "STOP")
        thoughts = 1 if said.said_tokens > 1 else 0
        usage = {
            "promptTokenCount": said.asked_tokens,
            "candidatesTokenCount": said.said_tokens - thoughts if is_last else 0,
            "thoughtsTokenCount": thoughts,
            "cachedContentTokenCount": said.cached_tokens,
        }
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": said.model}

    def _thought(self) -> list[dict[str, Any]]:
        return [{"text": "…", "thought": True}]

    def _text(self, text: str) -> list[dict[str, Any]]:
        return [{"text": text}] if text else []

    def _called(self, said: ScriptedReply) -> list[dict[str, Any]]:
        # Google's calls have objects for arguments, and often no id.
        return [
            {
                "functionCall": {"name": call.name, "args": call.arguments},
                "thoughtSignature": "eA==",
            }
            for call in said.calls
        ]


def _from_parts(given: dict[str, Any], *, is_signed: bool) -> list[dict[str, Any]]:
    """A turn's messages in OpenAI's form: each tool's result is one of its own, and named by its function."""
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in given["parts"]:
        if "functionResponse" in part:
            result = part["functionResponse"]
            messages.append(
                {"role": "tool", "name": result["name"], "content": json.dumps(result["response"])}
            )
        elif "functionCall" in part:
            if is_signed and not calls and "thoughtSignature" not in part:
                raise UnknownError("thought_signature")
            asked = part["functionCall"]
            calls.append(called(asked["name"], asked["name"], asked["args"]))
        elif "inlineData" in part:
            held = part["inlineData"]
            parts.append(image(f"data:{held['mimeType']};base64,{held['data']}"))
        elif "fileData" in part:
            parts.append(image(part["fileData"]["fileUri"]))
        else:
            parts.append({"type": "text", "text": part["text"]})
    if parts or calls:
        messages.append(turn({"user": "user", "model": "assistant"}[given["role"]], parts, calls))
    return messages
