"""Memory sets: read from whatever users have, checked, and turned into the tokens an adapter must store.

The flow is path or Hub id (`sources`) -> rows of named fields (`tables`) -> facts (`facts`) -> tokens (`encoding`).
Problems with a memory set surface here, before any training, as a DataError that names the line and never quotes the
text: people store credentials.
"""

from memlaw.data.encoding import (
    border_merges,
    check_context,
    encode,
    encode_prompts,
    leading_bos,
    stored_fingerprint,
    take,
    target_end,
    target_tokens,
)
from memlaw.data.facts import read
from memlaw.data.reading import OnConflict, Reading, Turns
from memlaw.data.rows import STRESS_PROMPT
from memlaw.data.sources import read_text
from memlaw.model.tokenizer import Tokenizer, auto_tokenizer, load_tokenizer, tokenizer_fingerprint

__all__ = [
    "STRESS_PROMPT",
    "OnConflict",
    "Reading",
    "Tokenizer",
    "Turns",
    "auto_tokenizer",
    "border_merges",
    "check_context",
    "encode",
    "encode_prompts",
    "leading_bos",
    "load_tokenizer",
    "read",
    "read_text",
    "stored_fingerprint",
    "take",
    "target_end",
    "target_tokens",
    "tokenizer_fingerprint",
]
