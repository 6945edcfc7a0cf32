"""What `dataflex-cli plan` says of each file of `examples/`: the column of the tables in examples/README.md.

    python tests/moving/plan_examples.py CHECKOUT [--only TEXT] [--write]

CHECKOUT is a clone of LLaMA-Factory, for its demo data. Models are not fetched: configurations of the same shape stand
in for them, and rows are counted by characters. The accelerator is taken to do 150 TFLOP a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import example_stand_ins as stand_ins
import yaml
from dataflex.cli.main import run
from dataflex.discovery.installed import has_package
from transformers import LlamaConfig, Qwen2Config, Qwen2MoeConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
QWEN = Qwen2Config(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip
MOE = Qwen2MoeConfig(
    vocab_size=151936, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16,
    num_key_value_heads=16, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip
SHAPES: dict[str, Any] = {"Qwen2.5-0.5B": QWEN, "Llama-3.1-8B": LLAMA, "Qwen1.5-MoE": MOE}


def planned(path: Path, models: dict[str, Path]) -> str:
    """Returns the cell of a file: the share of deciding in the run's compute, or why it is not known."""
    model = yaml.safe_load(path.read_text(encoding="utf-8"))["model_name_or_path"]
    folder = next(models[part] for part in SHAPES if part in model)
    given = [f"model_name_or_path={folder}"]
    if path.name == "near.yaml" and not has_package("sentence_transformers"):
        given.append("component.embedding=ngrams")
    if path.name in ("doremi.yaml", "rho_loss.yaml"):
        given.append(f"component.reference_model={models['Qwen2.5-0.5B']}")
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = run(["plan", "--json", "--tflops", "150", str(path), *given])
    if code:
        raise SystemExit(f"{path}: {wrong.getvalue()}")
    found = json.loads(said.getvalue())
    share = found["share"]
    text = "unknown" if share is None else "none" if share == 0 else f"{share:.0%}" if share >= 0.01 else "under 1%"
    return text.replace("%", " %") + (f" ({found['steps']:,} steps)" if found.get("steps") else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--write", action="store_true", help="into the last column of the tables of examples/README.md")
    parser.add_argument("--only", default="", help="a part of the names of the files, as in stages/")
    asked = parser.parse_args()
    data, found = asked.checkout.resolve() / "data", {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("data").symlink_to(data)
        stand_ins.write_results(Path(scratch))
        models = {name: Path(scratch, name) for name in SHAPES}
        for name, config in SHAPES.items():
            config.save_pretrained(models[name])
        for path in sorted(EXAMPLES.glob("*/*.yaml")):
            name = path.relative_to(EXAMPLES).as_posix()
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if asked.only not in name or config.get("train_type", "static") == "static":
                continue  # in a static run nothing decides
            found[name] = planned(path, models)
            print(name, found[name], flush=True)
    if asked.write:
        readme = EXAMPLES / "README.md"
        text = readme.read_text(encoding="utf-8")
        for name, cell in found.items():
            text, count = re.subn(rf"^(\| \[`{name}`\].*\| )[^|]*\|$", rf"\g<1>{cell} |", text, flags=re.MULTILINE)
            assert count == 1, name
        readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
