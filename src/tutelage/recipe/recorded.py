"""Which kinds of values the report reads from a recipe's files, which people may have edited or copied in part."""

from tutelage.kinds import OBJECT, PATH, STRING, listed, mapped, number, optional, record_of

NUMBER = optional(number())
RESULTS = record_of(
    {
        **dict.fromkeys(("accuracy", "ceiling", "heldout_loss", "parameters"), NUMBER),
        "languages": mapped(OBJECT),
        "findings": listed(OBJECT),
    }
)
RUN = {
    **dict.fromkeys(("stage", "fingerprint", "finished", "package_version"), STRING),
    **dict.fromkeys(("wall_seconds", "peak_memory_bytes"), NUMBER),
    "config": record_of({"kl_budget": NUMBER}),
    "inputs": mapped(record_of({"path": PATH, "sha256": STRING}, required=("path", "sha256"))),
    "device": optional(record_of({"machine": optional(STRING), "kind": STRING, "threads": number(), "dtype": STRING})),
    "results": RESULTS,
}
EVALUATION = {
    "models": mapped(record_of({"kl": NUMBER, "reward": NUMBER})),
    "samples": listed(record_of({"prompt": listed(OBJECT), "answers": OBJECT}, required=("prompt", "answers"))),
}
DATA = {
    "duplicates": mapped(number()),
    "redactions": OBJECT,
    "panel": record_of({"rating_correlation": OBJECT}),
}
DEMO = {
    "stages": mapped(record_of({"seconds": NUMBER, "peak_memory_bytes": NUMBER})),
}
