"""Open a checkpoint with transformers: a child script in the peer's environment."""

from __future__ import annotations

import json
import sys

from opened import measure
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    folder = sys.argv[1]
    load = AutoModelForCausalLM.from_pretrained
    print(json.dumps(measure(lambda: load(folder, dtype="auto"))))
