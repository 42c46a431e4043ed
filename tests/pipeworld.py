"""Tiny diffusers pipelines with random weights, and a real tokenizer read from a file that is made here."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "field"))
transformers = pytest.importorskip("transformers", reason="pip install transformers")

from hfworld import built, diffusers, scheduler, unet  # noqa: E402

WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "moon", "blurry"]


def tokenizer(folder, length):
    """Words to numbers, read back from the tokenizer.json written before."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {w: k for k, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    file = Path(folder) / "tokenizer.json"
    made.save(str(file))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), model_max_length=length, **special)


def filled(net, seed):
    gen = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.requires_grad_(False).copy_(torch.randn(p.shape, generator=gen) * (0.3 if p.ndim > 1 else 0.1))
    return net.eval()


def clip(width, projected=None, seed=0):
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=projected or width, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        kind = transformers.CLIPTextModel if projected is None else transformers.CLIPTextModelWithProjection
        return filled(kind(config), seed)


def t5(width, seed=5):
    config = transformers.T5Config(
        vocab_size=20, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    with torch.random.fork_rng():
        return filled(transformers.T5EncoderModel(config), seed)


def vae(**options):
    with torch.random.fork_rng():
        return filled(
            diffusers.AutoencoderKL(
                block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4, layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
            ),
            9,
        )  # fmt: skip


def sd(folder, made):
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(12), tokenizer=tokenizer(folder, 8), unet=built("unet"), scheduler=made,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder, made):
    token = tokenizer(folder, 8)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 1.1, 1.2, 1.3]),
        text_encoder=clip(4), text_encoder_2=clip(8, 6, 1), tokenizer=token, tokenizer_2=token,
        unet=built("sdxl"), scheduler=made, add_watermarker=False,
    )  # fmt: skip


def sd3(folder, made):
    token, long = tokenizer(folder, 8), tokenizer(folder, 300)
    return diffusers.StableDiffusion3Pipeline(
        transformer=built("sd3"), scheduler=made, vae=vae(shift_factor=0.2), text_encoder=clip(2, 2),
        tokenizer=token, text_encoder_2=clip(4, 4, 1), tokenizer_2=token, text_encoder_3=t5(12), tokenizer_3=long,
    )  # fmt: skip


def flux(folder, made, name="flux"):
    return diffusers.FluxPipeline(
        transformer=built(name), scheduler=made, vae=vae(shift_factor=0.2), text_encoder=clip(6),
        tokenizer=tokenizer(folder, 8), text_encoder_2=t5(12), tokenizer_2=tokenizer(folder, 512),
    )  # fmt: skip


def pixart(folder, made):
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer(folder, 120), text_encoder=t5(12), vae=vae(), transformer=built("pixart"), scheduler=made
    )


def dit(made):
    return diffusers.DiTPipeline(
        transformer=built("dit"), vae=vae(), scheduler=made, id2label={k: f"thing {k}" for k in range(10)}
    )


__all__ = ["clip", "diffusers", "dit", "flux", "pixart", "scheduler", "sd", "sd3", "sdxl", "tokenizer", "unet", "vae"]
