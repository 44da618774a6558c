#!/bin/bash
# transformers 5.23.0, tokenizers 0.23.3: the model type in config.json decides whether tokenizer.json's normalizer counts.
#
# Guess:     a folder's token ids are those of its tokenizer.json; config.json describes the network and changes none.
# Behaviour: with `tokenizer_class: LlamaTokenizer`, AutoTokenizer takes vocabulary and merges from tokenizer.json and
#            replaces its normalizer and pre-tokenizer by those of the class. With `model_type: mistral` in config.json it
#            uses the same file as it is. The two differ after every special token: with or without U+2581 before a word.
# Seen:      llama    ['<s>', 'the▁', 'c', 'at', '</s>', 'the▁', 'dog']
#            mistral  ['<s>', '▁the▁', 'c', 'at', '</s>', '▁the▁', 'dog']
#            file     ['<s>', '▁the▁', 'c', 'at', '</s>', '▁the▁', 'dog']
# So a program that reads tokenizer.json directly, such as an exporter, can feed a Llama model other ids than it learned.
# Exit status 0: still so. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer

TEXT = "<s>the cat</s>the dog"

trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
trained.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
trained.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 20, trainer)

tokens = {"file": trained.encode(TEXT, add_special_tokens=False).tokens}
for model_type in ("llama", "mistral"):
    model = Path(model_type)
    model.mkdir()
    trained.save(str(model / "tokenizer.json"))
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    (model / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(model)
    tokens[model_type] = loaded.convert_ids_to_tokens(loaded(TEXT, add_special_tokens=False).input_ids)

for name, found in tokens.items():
    print(f"{name:8} {found}")
assert tokens["mistral"] == tokens["file"], "with model_type mistral the file is no longer used as it is"
assert tokens["llama"] != tokens["file"], "with model_type llama the file is now used as it is"
assert tokens["llama"] == ["<s>", "the▁", "c", "at", "</s>", "the▁", "dog"], "another rule"
PYTHON
