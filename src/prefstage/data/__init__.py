"""Readers for every known preference format, validation, and tokenisation."""

from prefstage.data.faults import LoadReport
from prefstage.data.grouping import pairs_to_candidates
from prefstage.data.loading import load_candidates, load_pairs
from prefstage.data.records import Candidates, Message, Pair, Prompt, prompt_id_of
from prefstage.data.sets import CandidateSet, CandidateStream, PairSet, PairStream
from prefstage.data.tokenising import ResponseEncoder, TokenTree, load_tokenizer

__all__ = [
    "CandidateSet",
    "CandidateStream",
    "Candidates",
    "LoadReport",
    "Message",
    "Pair",
    "PairSet",
    "PairStream",
    "Prompt",
    "ResponseEncoder",
    "TokenTree",
    "load_candidates",
    "load_pairs",
    "load_tokenizer",
    "pairs_to_candidates",
    "prompt_id_of",
]
