"""transformers' model of a run, its template spelt out by hand: log-probabilities of answers in Python floats."""

import math
from pathlib import Path

import torch
import transformers


class TheirPolicy:
    """log pi(answer | question), one token at a time, by another library."""

    def __init__(self, run: Path):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(run).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(run)

    def prompt(self, question: str) -> list[int]:
        mark = self.tokenizer.convert_tokens_to_ids
        return [mark("<|user|>"), *self.tokenizer(question).input_ids, mark("<|end|>"), mark("<|assistant|>")]

    def answer(self, answer: str) -> list[int]:
        """It ends with the end of its turn, which the policy has to say, too."""
        return [*self.tokenizer(answer).input_ids, self.tokenizer.convert_tokens_to_ids("<|end|>")]

    @torch.no_grad()
    def logprobs(self, question: str, answer: str) -> list[float]:
        """One number for each token of the answer; none for the prompt's, whose labels do not count."""
        prompt, ids = self.prompt(question), self.answer(answer)
        rows = self.model(torch.tensor([prompt + ids])).logits[0].tolist()[len(prompt) - 1 : -1]
        return [row[i] - math.log(sum(math.exp(x) for x in row)) for row, i in zip(rows, ids, strict=True)]

    def total(self, question: str, answer: str) -> float:
        return sum(self.logprobs(question, answer))
