"""Checkpoints of the Mixtral family with random weights, as a stranger would bring them.

    python -m tests.bench.made_checkpoint DIR [--tiny] [--dtype bf16] [--shard-mib 64]

The default has 52 million parameters (d 512, 8 layers, 8 experts, 2 per token). Weights
are scaled by their fan-in, so that activations and logits neither die nor explode. The
tokenizer is a byte-level BPE trained on this machine's standard library.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BIG = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
}
TINY = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
SPECIAL = ["<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT_BYTES = 2 << 20


def config_of(shape: Mapping[str, int], dtype: str = "float32") -> dict[str, Any]:
    """Return a config.json as the reference writes it."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "mixtral",
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        **shape,
    }


def shapes_of(shape: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a Mixtral checkpoint."""
    width, hidden = shape["hidden_size"], shape["intermediate_size"]
    table = (shape["vocab_size"], width)
    head = width // shape["num_attention_heads"]
    keys = head * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", table
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, width)
        yield f"{at}.block_sparse_moe.gate.weight", (shape["num_local_experts"], width)
        for expert in range(shape["num_local_experts"]):
            part = f"{at}.block_sparse_moe.experts.{expert}"
            yield f"{part}.w1.weight", (hidden, width)
            yield f"{part}.w2.weight", (width, hidden)
            yield f"{part}.w3.weight", (hidden, width)
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", table


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return a float32 tensor; it depends on name and seed alone."""
    key = [seed, *name.encode()]
    drawn = np.random.default_rng(key).standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * drawn
    if name == "model.embed_tokens.weight":
        return drawn
    return drawn * np.float32(shape[1] ** -0.5)


def as_bf16(array: np.ndarray) -> np.ndarray:
    """Return float32 as the upper halves of its bits, uint16."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def save(tensors: Mapping[str, np.ndarray], path: Path, dtype: str) -> None:
    """Write a file of safetensors."""
    if dtype == "bf16":
        import torch
        from safetensors.torch import save_file as save_torch

        halves = {
            name: torch.from_numpy(as_bf16(array)).view(torch.bfloat16)
            for name, array in tensors.items()
        }
        save_torch(halves, path, {"format": "pt"})
    else:
        kind = {"f32": np.float32, "f16": np.float16}[dtype]
        stored = {name: array.astype(kind) for name, array in tensors.items()}
        save_file(stored, path, {"format": "pt"})


def make(
    folder: Path,
    shape: Mapping[str, int] = BIG,
    dtype: str = "f32",
    seed: int = 0,
    shard_bytes: int = 1 << 40,
) -> None:
    """Write a whole checkpoint with its tokenizer into a new folder."""
    folder.mkdir(parents=True)
    long = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    write_json(folder / "config.json", config_of(shape, long))
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    )
    make_tokenizer(folder, shape["vocab_size"])
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, size in shapes_of(shape):
        made = tensor(name, size, seed)
        held = sum(array.nbytes for array in shards[-1].values())
        if shards[-1] and held + made.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = made
    if len(shards) == 1:
        save(shards[0], folder / "model.safetensors", dtype)
        return
    files = [
        f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))
    ]
    for file, tensors in zip(files, shards):
        save(tensors, folder / file, dtype)
    weight_map = {name: file for file, part in zip(files, shards) for name in part}
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 0}, "weight_map": weight_map},
    )


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """Train a byte-level BPE of exactly so many tokens, and write its files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(library_text(), trainer)
    assert tokenizer.get_vocab_size() == vocabulary, tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "chat_template": TEMPLATE,
            "eos_token": "</s>",
            "model_max_length": 2048,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        },
    )


def library_text() -> Iterator[str]:
    """Yield texts of the standard library until there are enough."""
    taken = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(errors="ignore")
        taken += len(text)
        yield text
        if taken > TEXT_BYTES:
            return


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tiny", action="store_true", help="0.2 million parameters")
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f32")
    parser.add_argument("--shard-mib", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shape = TINY if given.tiny else BIG
    make(given.directory, shape, given.dtype, given.seed, given.shard_mib << 20)
    elements = sum(int(np.prod(size)) for _, size in shapes_of(shape))
    print(f"{elements / 1e6:.1f} million parameters in {given.directory}")


if __name__ == "__main__":
    main()
