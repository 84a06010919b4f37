"""Parameters of a chat completion: supported, without effect, or not supported. Pure."""

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
"""Supported parameters."""
PASSED_ON = ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
"""Passed on to members; without effect where a member's provider does not take them."""
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
"""Ignored without a warning: they do not change the answer."""
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
"""Values that have no effect."""
WARNED = {
    "models": "there is no fallback to other models; "
    "name those that shall take part in the fusion plugin",
    "reasoning": "models reason as their providers have it by default",
    "reasoning_effort": "models reason as their providers have it by default",
    "verbosity": "members are asked as the prompt stands",
    "cache_control": "providers cache as they do by default",
    "max_tool_calls": "members use no tools of the server",
    "stop_server_tools_when": "members use no tools of the server",
}
"""Ignored with a warning: what happens instead."""
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
    """Whether a parameter has the value that has no effect."""
    return name in _NEUTRAL and value == _NEUTRAL[name]


def ignored_names(body: Mapping[str, Any]) -> list[str]:
    """Names of parameters that are ignored with a warning.

    Raises:
        RefusedError: a parameter is unknown, or would change the answer and is not supported.
    """
    names = []
    for name, value in body.items():
        is_supported = name in READ or name in PASSED_ON
        if is_supported or name in _HARMLESS or is_neutral(name, value):
            continue
        if name not in WARNED:
            instead = _INSTEAD.get(name) or _hint(name)
            raise RefusedError(
                "unsupported_parameter", f"'{name[:80]}' is not supported; {instead}", name[:80]
            )
        names.append(name)
    return names


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name[:80], (*READ, *PASSED_ON), n=1)
    return f"did you mean '{near[0]}'?" if near else "remove it"
