"""Readers for every known preference format, validation, and tokenisation."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.data.loading import (
        keep_sources,
        load_candidates,
        load_conversations,
        load_pairs,
        load_prompts,
        load_unpaired,
        pairs_to_candidates,
    )
    from prefstage.data.reading import CandidateStream, PairStream
    from prefstage.data.records import (
        Candidates,
        Conversation,
        Message,
        Pair,
        Prompt,
        Unpaired,
        prompt_id_of,
    )
    from prefstage.data.rows import LoadReport
    from prefstage.data.sets import CandidateSet, ConversationSet, PairSet, RecordSet, UnpairedSet
    from prefstage.data.settings import ReadOptions
    from prefstage.data.tokenising import ResponseEncoder, TokenTree
    from prefstage.data.tokenizer_files import load_tokenizer

__all__ = [
    "CandidateSet",
    "CandidateStream",
    "Candidates",
    "Conversation",
    "ConversationSet",
    "LoadReport",
    "Message",
    "Pair",
    "PairSet",
    "PairStream",
    "Prompt",
    "ReadOptions",
    "RecordSet",
    "ResponseEncoder",
    "TokenTree",
    "Unpaired",
    "UnpairedSet",
    "keep_sources",
    "load_candidates",
    "load_conversations",
    "load_pairs",
    "load_prompts",
    "load_tokenizer",
    "load_unpaired",
    "pairs_to_candidates",
    "prompt_id_of",
]

# Public names are imported on first use: records alone must not load transformers.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "loading": "keep_sources load_candidates load_conversations load_pairs load_prompts "
        "load_unpaired pairs_to_candidates",
        "reading": "CandidateStream PairStream",
        "records": "Candidates Conversation Message Pair Prompt Unpaired prompt_id_of",
        "rows": "LoadReport",
        "sets": "CandidateSet ConversationSet PairSet RecordSet UnpairedSet",
        "settings": "ReadOptions",
        "tokenising": "ResponseEncoder TokenTree",
        "tokenizer_files": "load_tokenizer",
    },
)
