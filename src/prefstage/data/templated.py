"""Text that a chat template has written already: its marks, noticed before a second template."""

import re
from collections.abc import Iterable

from prefstage.data.records import Message

_ROLES = "system|developer|user|assistant|model|tool|human|ipython|observation|environment"
_MARKS = re.compile(
    "|".join(
        (
            r"<\|im_(?:start|end|sep|user|assistant|system|middle)\|>",  # ChatML, Phi-4, Kimi
            r"<\|(?:start|end)_header_id\|>|<\|eo[tm]_id\|>|<\|begin_of_text\|>",  # Llama 3
            r"<\|header_(?:start|end)\|>|<\|eot\|>",  # Llama 4
            r"\[/?INST\]|<</?SYS>>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]",
            r"</?(?:start|end)_of_turn>|<\|?turn\|?>(?=\w)",  # Gemma
            rf"<\|(?:{_ROLES})\|>",  # Zephyr, Phi-3, GLM-4, TuluV2
            r"<\|(?:start_of_role|end_of_role)\|>",  # Granite
            rf"<\|start\|>(?:{_ROLES})|<\|channel\|>\w+<\|message\|>",  # gpt-oss
            r"<[|｜](?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)[|｜]>",  # DeepSeek
            r"<\|(?:START|END)_OF_TURN_TOKEN\|>|<\|(?:USER|CHATBOT|SYSTEM)_TOKEN\|>",  # Cohere
            r"<extra_id_[01]>(?:User|Assistant|System)|<SPECIAL_1[0-9]>(?:User|Assistant|System)",
            r"GPT4(?: Correct)? (?:User|Assistant):",  # OpenChat
            r"\[gMASK\]|<\|startoftext\|>|<\|endofprompt\|>|<reserved_10[67]>",
            r"<role>(?:HUMAN|ASSISTANT|SYSTEM)</role>",  # Ling
        )
    )
)


def template_mark(messages: Iterable[Message]) -> str | None:
    """The first mark of a chat template in the texts of some messages.

    Args:
        messages: The messages.

    Returns:
        The mark as it stands there, or None.
    """
    for message in messages:
        match = _MARKS.search(message["content"])
        if match is not None:
            return match.group()
    return None
