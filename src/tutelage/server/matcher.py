"""A matcher of the library llguidance: it follows a grammar token by token, within limits of work and memory."""

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tutelage.errors import InputError

# The lexer keeps up to 2 kB per state. The states of common schemas are some hundreds.
LIMITS = LLParserLimits(verbose_errors=False, max_lexer_states=10_000)


def compiled(tokens: LLTokenizer, text: str) -> LLMatcher:
    """A matcher at the beginning of a response. Raises InputError with the library's reason, in one line."""
    matcher = LLMatcher(tokens, text, log_level=0, limits=LIMITS)
    check(matcher)
    return matcher


def check(matcher: LLMatcher) -> None:
    """Raise InputError if the matcher has failed."""
    if matcher.is_error():
        raise InputError(" ".join(matcher.get_error().removesuffix("<non-verbose/>").split()))
