"""The parameters of a chat completion: what is read, what changes nothing, what is not done. Pure."""

import difflib
from collections.abc import Mapping
from typing import Any

from fusewire_ingest.admission.refusal import RefusedError

READ = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "plugins",
    "fusewire",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "response_format",
    "logit_bias",
}
"""They are read."""
PASSED_ON = ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
"""They are read, and do something where a member's provider takes them."""
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "usage",
    "provider",
    "transforms",
    "route",
    "session_id",
    "trace",
    "debug",
}
"""They change no answer."""
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "modalities": ["text"],
    "min_p": 0,
    "top_a": 0,
    "top_k": 0,
    "functions": [],
    "models": [],
    "stop_server_tools_when": [],
}
"""Values that ask for nothing."""
WARNED = {
    "models": "there is no fallback to other models; name those that shall take part in the fusion plugin",
    "reasoning": "models reason as their providers have it by default",
    "reasoning_effort": "models reason as their providers have it by default",
    "verbosity": "members are asked as the prompt stands",
    "cache_control": "providers cache as they do by default",
    "max_tool_calls": "members use no tools of the server",
    "stop_server_tools_when": "members use no tools of the server",
}
"""Asked for, not done, and no harm: what happens in its place."""
_INSTEAD = {
    "n": "send the request n times",
    "logprobs": "the voices behind an answer are in `fusion`",
    "top_logprobs": "the voices behind an answer are in `fusion`",
    "functions": "send them as `tools`",
    "function_call": "send it as `tool_choice`",
    "audio": "only text is answered",
    "modalities": "only text is answered",
    "web_search_options": "nothing is looked up; put what is known into the messages",
}


def is_neutral(name: str, value: object) -> bool:
    """Whether a parameter asks for nothing."""
    return name in _NEUTRAL and value == _NEUTRAL[name]


def undone(body: Mapping[str, Any]) -> list[str]:
    """Parameters that ask for what is not done here, though the answer is as good without.

    Raises:
        RefusedError: one asks for another answer than would be given, or is not known.
    """
    found = []
    for name, value in body.items():
        if name in READ or name in PASSED_ON or name in _HARMLESS or is_neutral(name, value):
            continue
        if name not in WARNED:
            instead = _INSTEAD.get(name) or _hint(name)
            raise RefusedError(
                "unsupported_parameter", f"'{name[:80]}' is not supported; {instead}", name[:80]
            )
        found.append(name)
    return found


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name[:80], (*READ, *PASSED_ON), n=1)
    return f"did you mean '{near[0]}'?" if near else "remove it"
