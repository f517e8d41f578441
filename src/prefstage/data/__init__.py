"""Readers for every known preference format, validation, and tokenisation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.data.faults import LoadReport as LoadReport
    from prefstage.data.grouping import keep_sources as keep_sources
    from prefstage.data.grouping import pairs_to_candidates as pairs_to_candidates
    from prefstage.data.loading import load_candidates as load_candidates
    from prefstage.data.loading import load_pairs as load_pairs
    from prefstage.data.prompts import load_prompts as load_prompts
    from prefstage.data.records import Candidates as Candidates
    from prefstage.data.records import Conversation as Conversation
    from prefstage.data.records import Message as Message
    from prefstage.data.records import Pair as Pair
    from prefstage.data.records import Prompt as Prompt
    from prefstage.data.records import Unpaired as Unpaired
    from prefstage.data.records import prompt_id_of as prompt_id_of
    from prefstage.data.response_loading import load_conversations as load_conversations
    from prefstage.data.response_loading import load_unpaired as load_unpaired
    from prefstage.data.response_sets import ConversationSet as ConversationSet
    from prefstage.data.response_sets import UnpairedSet as UnpairedSet
    from prefstage.data.sets import CandidateSet as CandidateSet
    from prefstage.data.sets import CandidateStream as CandidateStream
    from prefstage.data.sets import PairSet as PairSet
    from prefstage.data.sets import PairStream as PairStream
    from prefstage.data.token_trees import TokenTree as TokenTree
    from prefstage.data.tokenising import ResponseEncoder as ResponseEncoder
    from prefstage.data.tokenizer_files import load_tokenizer as load_tokenizer

_HOMES = {
    "CandidateSet": "sets",
    "CandidateStream": "sets",
    "Candidates": "records",
    "Conversation": "records",
    "ConversationSet": "response_sets",
    "LoadReport": "faults",
    "Message": "records",
    "Pair": "records",
    "PairSet": "sets",
    "PairStream": "sets",
    "Prompt": "records",
    "ResponseEncoder": "tokenising",
    "TokenTree": "token_trees",
    "Unpaired": "records",
    "UnpairedSet": "response_sets",
    "keep_sources": "grouping",
    "load_candidates": "loading",
    "load_conversations": "response_loading",
    "load_pairs": "loading",
    "load_prompts": "prompts",
    "load_tokenizer": "tokenizer_files",
    "load_unpaired": "response_loading",
    "pairs_to_candidates": "grouping",
    "prompt_id_of": "records",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the public names, each imported on first use


def __getattr__(name: str) -> Any:
    """Import a public name on first use: records alone must not load transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefstage.data' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
