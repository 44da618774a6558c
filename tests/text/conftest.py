"""Makes the programs of benchmarks/ importable: chat_ids.py holds the tokenizers and chat templates of the tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
