"""Replies as servers and gateways write them, and what is right to make of each.

A shape is written once, with `TEXT` where the model's words stand, and asked for an answer, a
verdict and a rating. `docs/servers.md` says whose dialects they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TEXT = "@TEXT@"
Outcome = Literal["answer", "length", "cut-thought", "refused", "fails"]


@dataclass(frozen=True)
class Shape:
    """One reply.

    Attributes:
        name: Of the test.
        server: Whose dialect it is, as in the docs.
        body: JSON, or text that is none.
        outcome: "answer" whole; "length", cut at the limit but readable; "cut-thought", without an
            answer; "refused", for this request alone; "fails", for the whole run.
        status: Of HTTP.
        kind: Content type.
        headers: Further ones.
        first: Sent instead, once, before `body`: (status, body, headers).
        thought: What was thought before.
    """

    name: str
    server: str
    body: Any
    outcome: Outcome = "answer"
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    first: tuple[int, Any, Mapping[str, str]] | None = None
    thought: str | None = None

    def content(self, text: str) -> str:
        """The body, with the model's words."""
        if isinstance(self.body, str):
            return self.body.replace(TEXT, json.dumps(text)[1:-1])
        return json.dumps(self.body).replace(TEXT, json.dumps(text)[1:-1])


def chat(content: Any = TEXT, reason: Any = "stop", *, choice: Any = None, **more: Any) -> Any:
    """A body of /v1/chat/completions; `more` goes into the message, `choice` beside it."""
    message = {"role": "assistant", "content": content, **more}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {
        "id": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, **(choice or {})}],
        "usage": usage,
    }


def without(body: Any, *names: str) -> Any:
    """The same body without some of its fields."""
    return {name: value for name, value in body.items() if name not in names}


def logprobs(given: Any) -> Any:
    """A reply with log-probs in some shape."""
    return chat(choice={"logprobs": given})


def error(message: str, *, code: Any = None, **more: Any) -> Any:
    """An error as OpenAI writes it."""
    return {"error": {"message": message, "code": code, **more}}


def _finish_reasons() -> list[Shape]:
    ends = {
        "OpenAI": ("stop",),
        "TGI": ("eos_token", "stop_sequence"),
        "Anthropic's gateways": ("end_turn",),
        "Gemini's gateways": ("STOP",),
        "llama.cpp": ("eos", None),
        "vLLM": ("stop", ""),
        "others": ("completed", 17),
    }
    cuts = {
        "OpenAI": "length",
        "Anthropic's gateways": "max_tokens",
        "Gemini's gateways": "MAX_TOKENS",
        "Mistral": "model_length",
        "Cohere's gateways": "MAX_OUTPUT_TOKENS",
    }
    withheld = {
        "Azure": "content_filter",
        "Gemini's gateways": "SAFETY",
        "Bedrock's gateways": "guardrail_intervened",
        "DeepSeek": "content_filter",
        "Zhipu": "sensitive",
    }
    return [
        *(
            Shape(f"ends with {reason!r} ({server})", server, chat(reason=reason))
            for server, reasons in ends.items()
            for reason in reasons
        ),
        *(
            Shape(f"cut with {reason!r}", server, chat(reason=reason), "length")
            for server, reason in cuts.items()
        ),
        *(
            Shape(f"withheld with {reason!r} ({server})", server, chat(None, reason), "refused")
            for server, reason in withheld.items()
        ),
        Shape("filtered half way", "Azure", chat(reason="content_filter")),
        Shape("a generation that failed", "vLLM", chat("", "error"), "refused"),
        Shape("aborted", "SGLang", chat("", "abort"), "refused"),
        Shape("no room", "DeepSeek", chat("", "insufficient_system_resource"), "refused"),
        Shape(
            "an error in the choice",
            "OpenRouter",
            chat("", "error", choice={"error": {"code": 502, "message": "provider failed"}}),
            "refused",
        ),
    ]


def _contents() -> list[Shape]:
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    text = [{"type": "text", "text": TEXT}]
    return [
        Shape("parts", "Mistral", chat(text)),
        Shape("parts without types", "others", chat([{"text": TEXT}])),
        Shape("strings as parts", "others", chat([TEXT])),
        Shape("one part and no list", "others", chat({"type": "text", "text": TEXT})),
        Shape("output_text parts", "OpenAI", chat([{"type": "output_text", "text": TEXT}])),
        Shape("a thought as a part", "Mistral", chat([*thinking, *text]), thought="hm"),
        Shape("reasoning_content", "vLLM", chat(reasoning_content="hm"), thought="hm"),
        Shape("reasoning", "OpenRouter", chat(reasoning="hm"), thought="hm"),
        Shape("reasoning, null", "OpenRouter", chat(reasoning=None)),
        Shape(
            "both reasonings", "LiteLLM", chat(reasoning="hm", reasoning_content="hm"), thought="hm"
        ),
        Shape(
            "reasoning_details",
            "OpenRouter",
            chat(reasoning_details=[{"type": "reasoning.text", "text": "hm"}]),
            thought="hm",
        ),
        Shape("thinking", "Ollama", chat(thinking="hm"), thought="hm"),
        Shape(
            "a thought in the text",
            "llama.cpp",
            chat(f"<think>\nhm\n</think>\n\n{TEXT}"),
            thought="hm",
        ),
        Shape(
            "a thought that the prompt opened",
            "SGLang",
            chat(f"hm\n</think>\n{TEXT}"),
            thought="hm",
        ),
        Shape(
            "a cut thought in the text", "vLLM", chat("<think>\nhm, A is", "length"), "cut-thought"
        ),
        Shape(
            "a cut thought in its field",
            "vLLM",
            chat("", "length", reasoning_content="A is better"),
            "cut-thought",
        ),
        Shape(
            "a cut thought and no content",
            "vLLM",
            chat(None, "length", reasoning_content="A is better"),
            "cut-thought",
        ),
        Shape(
            "audio and annotations beside", "OpenAI", chat(audio=None, annotations=[], refusal=None)
        ),
        Shape("white space around", "others", chat(f"\n\n {TEXT}\n")),
        Shape(
            "beyond ASCII, unescaped",
            "others",
            '{"choices":[{"message":{"content":"@TEXT@"}}],"x":"ïé"}',
        ),
        Shape("no usage", "llama.cpp", without(chat(), "usage")),
        Shape("usage null", "TGI", {**chat(), "usage": None}),
        Shape(
            "usage as texts",
            "others",
            {**chat(), "usage": {"prompt_tokens": "5", "completion_tokens": "x"}},
        ),
        Shape(
            "usage by other names", "Anthropic's gateways", {**chat(), "usage": {"input_tokens": 5}}
        ),
        Shape("error null beside", "LiteLLM", {**chat(), "error": None}),
        Shape(
            "filter results beside",
            "Azure",
            {**chat(), "prompt_filter_results": [{"prompt_index": 0}]},
        ),
        Shape(
            "several choices",
            "OpenAI",
            {**chat(), "choices": [*chat()["choices"], *chat("zzz")["choices"]]},
        ),
    ]


def _log_probs() -> list[Shape]:
    top = [{"token": "z", "logprob": -0.1}]
    shapes: Mapping[str, Any] = {
        "null": None,
        "empty": {},
        "content null": {"content": None},
        "content empty": {"content": []},
        "no alternatives": {"content": [{"token": "z", "logprob": -0.1, "top_logprobs": []}]},
        "alternatives null": {"content": [{"token": "z", "logprob": -0.1, "top_logprobs": None}]},
        "alternatives as a mapping": {"content": [{"token": "z", "top_logprobs": {"z": -0.1}}]},
        "log-prob null": {
            "content": [
                {"token": "z", "logprob": None, "top_logprobs": [{"token": "z", "logprob": None}]}
            ]
        },
        "log-prob as text": {
            "content": [
                {"token": "z", "logprob": -1, "top_logprobs": [{"token": "z", "logprob": "-inf"}]}
            ]
        },
        "with bytes": {
            "content": [{"token": "z", "logprob": -0.1, "bytes": [122], "top_logprobs": top}]
        },
        "the older shape": {
            "tokens": ["z"],
            "token_logprobs": [-0.1],
            "top_logprobs": [{"z": -0.1}],
        },
        "the older shape without alternatives": {
            "tokens": ["z"],
            "token_logprobs": [-0.1],
            "top_logprobs": None,
        },
        "a list": [1, 2],
        "a number": 3,
        "a text": "none",
        "tokens alone": {"tokens": ["z"]},
    }
    return [
        Shape(f"log-probs: {name}", "others", logprobs(given)) for name, given in shapes.items()
    ]


def _bodies() -> list[Shape]:
    whole = json.dumps(chat())
    retry = {"retry-after": "0.01"}
    return [
        Shape("text/plain", "others", chat(), kind="text/plain"),
        Shape("no content type", "others", chat(), kind=""),
        Shape("a charset", "others", chat(), kind="application/json; charset=utf-8"),
        Shape("problem+json", "others", chat(), kind="application/problem+json"),
        Shape("spaces before and after", "OpenRouter", f"\n   \n{whole}\n"),
        Shape(
            "a page of a proxy",
            "nginx",
            "<html><h1>It works</h1></html>",
            "refused",
            kind="text/html",
        ),
        Shape("a sign-in page", "proxies", "<html>sign in</html>", "fails", kind="text/html"),
        Shape("nothing", "others", "", "refused"),
        Shape("half of a body", "others", whole[: len(whole) // 2], "refused"),
        Shape("a byte order mark", "others", f"\ufeff{whole}"),
        Shape(
            "an error object",
            "vLLM",
            {"object": "error", "message": "too long", "code": 400},
            "refused",
        ),
        Shape(
            "an error object about the key",
            "vLLM",
            {"object": "error", "message": "no", "type": "authentication_error"},
            "fails",
        ),
        Shape(
            "an error by type in a 200",
            "LiteLLM",
            error("no", type="invalid_request_error"),
            "refused",
        ),
        Shape(
            "a limit by type in a 200",
            "LiteLLM",
            chat(),
            first=(200, error("slow down", type="rate_limit_exceeded"), {}),
        ),
        Shape(
            "a wrong key, 400",
            "Gemini's gateways",
            error("API key not valid. Please pass a valid API key."),
            "fails",
            400,
        ),
        Shape(
            "no credit, 400",
            "Anthropic's gateways",
            error("Your credit balance is too low"),
            "fails",
            400,
        ),
        Shape(
            "an unknown model, 400",
            "LiteLLM",
            error("Invalid model name passed in model=m"),
            "fails",
            400,
        ),
        Shape(
            "forbidden by a policy of access",
            "Bedrock's gateways",
            error("User is not authorized: no identity-based policy allows it"),
            "fails",
            403,
        ),
        Shape("a redirect", "proxies", "", "fails", 307, headers={"location": "/login"}),
        Shape("not implemented", "llama.cpp", error("not supported"), "refused", 501),
        Shape(
            "half of the limit's headers",
            "OpenAI",
            chat(),
            first=(
                429,
                error("busy"),
                {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "8ms"},
            ),
        ),
        Shape(
            "retry-after in the past",
            "others",
            chat(),
            first=(503, error("busy"), {"retry-after": "2020-01-01T00:00:00Z"}),
        ),
        Shape("no choices", "Azure", {**chat(), "choices": []}, "refused"),
        Shape("choices null", "others", {**chat(), "choices": None}, "refused"),
        Shape(
            "a choice without a message",
            "others",
            {"choices": [{"finish_reason": "stop"}]},
            "refused",
        ),
        Shape("message null", "others", {"choices": [{"message": None}]}, "refused"),
        Shape("content a number", "others", chat(7), "refused"),
        Shape("an error in a 200", "OpenRouter", error("bad prompt", code=400), "refused"),
        Shape(
            "an error in a 200, passing",
            "OpenRouter",
            chat(),
            first=(200, error("busy", code=429), {}),
        ),
        Shape(
            "an error in a 200, without a code", "LiteLLM", chat(), first=(200, error("boom"), {})
        ),
        Shape(
            "a key that is no key, in a 200", "OpenRouter", error("no such user", code=401), "fails"
        ),
        *(
            Shape(f"HTTP {status}, once", "any", chat(), first=(status, error("busy"), retry))
            for status in (408, 409 + 15, 425, 429, 498, 500, 502, 503, 504, 529)
        ),
        Shape(
            "retry-after-ms",
            "Azure",
            chat(),
            first=(429, error("busy"), {"retry-after-ms": "10", "retry-after": "9"}),
        ),
        Shape(
            "retry-after as a duration",
            "others",
            chat(),
            first=(429, error("busy"), {"retry-after": "10ms"}),
        ),
        Shape(
            "retry-after: nonsense",
            "others",
            chat(),
            first=(429, error("busy"), {"retry-after": "soon"}),
        ),
        Shape(
            "retry-after below zero",
            "others",
            chat(),
            first=(503, error("busy"), {"retry-after": "-5"}),
        ),
        Shape("a page for an error", "nginx", chat(), first=(502, "<html>Bad Gateway</html>", {})),
        Shape(
            "context overflow",
            "vLLM",
            error(
                "This model's maximum context length is 64 tokens. However, you "
                "requested 99 tokens (max_tokens=16)"
            ),
            "refused",
            400,
        ),
        Shape(
            "context overflow, no JSON",
            "TGI",
            "input tokens exceed 64",
            "refused",
            422,
            kind="text/plain",
        ),
        Shape(
            "too large",
            "nginx",
            "<html>413 Request Entity Too Large</html>",
            "refused",
            413,
            kind="text/html",
        ),
        Shape(
            "moderated, 400",
            "Azure",
            error("The response was filtered", code="content_filter"),
            "refused",
            400,
        ),
        Shape(
            "moderated, 403",
            "OpenRouter",
            error("Your input was flagged", code=403),
            "refused",
            403,
        ),
        Shape("half a character in an error", "others", error("\ud800 no"), "refused", 400),
        Shape("moderated, 451", "others", error("unavailable"), "refused", 451),
        Shape(
            "details as a list",
            "FastAPI",
            {"detail": [{"loc": ["body"], "msg": "bad"}]},
            "refused",
            422,
        ),
        Shape(
            "an error as a text",
            "TGI",
            {"error": "Input validation error", "error_type": "validation"},
            "refused",
            422,
        ),
        Shape("a wrong key", "OpenAI", error("Incorrect API key"), "fails", 401),
        Shape("a forbidden model", "OpenAI", error("no access to this model"), "fails", 403),
        Shape(
            "no such model", "vLLM", error("The model `m` does not exist.", code=404), "fails", 404
        ),
        Shape("no credit", "OpenRouter", error("Insufficient credits"), "fails", 402),
        Shape(
            "quota", "OpenAI", error("exceeded your quota", code="insufficient_quota"), "fails", 429
        ),
    ]


SHAPES: Sequence[Shape] = (*_finish_reasons(), *_contents(), *_log_probs(), *_bodies())
