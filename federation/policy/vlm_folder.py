"""A stand-in for the SmolVLM2 folder on the Hub: configuration, tokenizer and image processor, no weights.

SmolVLA reads its model structure and its tokenizer from such a folder. The sizes `tiny`, `small` and
`smolvla` are built from one made here, so that demo, tests and measurements need no download. The tokenizer
is byte-level without merges: longer token sequences than SmolVLM2's, but exactly the same on every machine.
Pretrained policies use the real folder and never come here.
"""

from pathlib import Path
from typing import Any

from federation.files import write_folder

__all__ = ["BUNDLED_VLM", "vlm_folder"]

BUNDLED_VLM = "./vlm"  # what a policy folder calls the VLM that it holds

_VERSION = 1  # part of the folder's name: raise it when anything below changes
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
)
# `smolvla` has the shape of SmolVLM2-500M-Video-Instruct, `tiny` and `small` the same architecture at toy
# width. The patches of `small` are half as wide: it learns to see, and a cube is four of its pixels.
_SHAPES: dict[str, Any] = {
    "tiny": {
        "text": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
        },
        "vision": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "patch_size": 16},
        "vision_heads": 4,
        "image_size": 64,
        "scale_factor": 2,
    },
    "small": {
        "text": {
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
        },
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "patch_size": 8},
        "vision_heads": 4,
        "image_size": 64,
        "scale_factor": 2,
    },
    "smolvla": {
        "text": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
        },
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "patch_size": 16,
        },
        "vision_heads": 12,
        "image_size": 512,
        "scale_factor": 4,
    },
}


def vlm_folder(size: str, cache: Path) -> Path:
    """Return the folder for `size` ("tiny", "small" or "smolvla") under `cache`; write it first if need be.

    The write is atomic: processes that race for the same folder all end up with a whole one.
    """
    folder = cache / f"vlm-{size}-v{_VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    write_folder(folder, lambda staging: _write(staging, size), replace=False)
    return folder


def _write(folder: Path, size: str) -> None:
    from transformers import (  # type: ignore[attr-defined]
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    shape = _SHAPES[size]
    tokenizer = _tokenizer()
    image_size, scale, patch = shape["image_size"], shape["scale_factor"], shape["vision"]["patch_size"]
    settings: dict[str, Any] = {
        "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, **shape["text"]},
        "vision_config": {
            "model_type": "smolvlm_vision",
            "image_size": image_size,
            "num_attention_heads": shape["vision_heads"],
            **shape["vision"],
        },
        "scale_factor": scale,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "tie_word_embeddings": False,
        "architectures": ["SmolVLMForConditionalGeneration"],
    }
    SmolVLMConfig(**settings).save_pretrained(folder)
    edge = {"longest_edge": image_size}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": image_size * 4}, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=edge,
            max_image_size=edge,
            fps=1,
            num_frames=8,
            video_sampling={"fps": 1, "max_frames": 8, "video_size": edge},
        ),
        image_seq_len=(image_size // patch // scale) ** 2,
    ).save_pretrained(folder)


def _tokenizer() -> Any:
    """Return the byte-level tokenizer without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL_TOKENS, *letters])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bytes_only,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        model_max_length=8192,
        padding_side="right",
    )
