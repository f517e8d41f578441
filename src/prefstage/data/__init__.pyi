# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .loading import (
    keep_sources as keep_sources,
    load_candidates as load_candidates,
    load_conversations as load_conversations,
    load_pairs as load_pairs,
    load_prompts as load_prompts,
    load_unpaired as load_unpaired,
    pairs_to_candidates as pairs_to_candidates,
)
from .reading import CandidateStream as CandidateStream, PairStream as PairStream
from .records import (
    Candidates as Candidates,
    Conversation as Conversation,
    Message as Message,
    Pair as Pair,
    Prompt as Prompt,
    Unpaired as Unpaired,
    prompt_id_of as prompt_id_of,
)
from .rendering import load_tokenizer as load_tokenizer
from .rows import LoadReport as LoadReport
from .sets import (
    CandidateSet as CandidateSet,
    ConversationSet as ConversationSet,
    PairSet as PairSet,
    RecordSet as RecordSet,
    UnpairedSet as UnpairedSet,
)
from .settings import ReadOptions as ReadOptions
from .tokenising import ResponseEncoder as ResponseEncoder, TokenTree as TokenTree
