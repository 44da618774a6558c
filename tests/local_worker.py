"""An encoder without a process of its own, for tests of what is around it."""

from typing import Any

from tutelage.server.encoder import Encoder
from tutelage.server.encoding_process import Encoding
from tutelage.text.tokenizer import Tokenizer


class LocalWorker:
    """Answers at once what the encoding process would be asked."""

    def __init__(self, tokenizer: Tokenizer):
        self.encoding = Encoding()
        self.encoding.tokenizer = tokenizer

    async def ask(self, owner: str, size: int, job: str, **arguments: Any) -> Any:
        return getattr(self.encoding, job)(**arguments)


def local_encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(LocalWorker(tokenizer))  # type: ignore[arg-type]
