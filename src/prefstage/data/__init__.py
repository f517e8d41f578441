"""Readers for every known preference format, validation, and tokenisation."""

from prefstage.data.loading import load_candidates, load_pairs
from prefstage.data.records import Candidates, Message, Pair, Prompt, prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.data.tokenising import ResponseEncoder, TokenTree, load_tokenizer

__all__ = [
    "CandidateSet",
    "Candidates",
    "Message",
    "Pair",
    "PairSet",
    "Prompt",
    "ResponseEncoder",
    "TokenTree",
    "load_candidates",
    "load_pairs",
    "load_tokenizer",
    "prompt_id_of",
]
