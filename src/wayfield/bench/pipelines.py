"""Suite "diffusers": whole pipelines, text to picture, under `steer` and by themselves, on one CPU thread.

A small Stable Diffusion XL with random weights stands three times on the same parts: under `steer`, as the classic
pipeline (one doubled call a step), and as the modular pipeline with its CFG guider (one call per branch). All get the
same texts, latents, scheduler and guidance scale. Cases are two schedulers, batches of 1 and 4, and networks whose call
takes some 4 ms for one row, some 16 ms ("..., middle network") or some 40 ms ("..., slow network").

Further rows compare counts instead of times, with the numbers of both in the name of the case: network calls, rows in
them, host reads (values of tensors that Python waited for), and the largest memory held at a time beyond what was there
before. Their ratio is wayfield's number divided by the peer's, or by 1 where the peer has none.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wayfield.bench.peers import peer
from wayfield.bench.timing import Contest, Row, compete, one_thread
from wayfield.core.errors import MissingExtraError
from wayfield.guide import CFG
from wayfield.sampling.steer import Steered, steer

__all__ = ["Cost", "Setting", "cost", "run"]

STEPS, SLOW_STEPS, W, BATCHES = 20, 20, 5.0, (1, 4)  # 20 divides the table of 1000 rows: all visit the same times
TEXTS = ("a red cat", "a blue dog", "the moon", "a cat on the moon")
WORDS = ("a", "red", "blue", "cat", "dog", "on", "the", "moon")
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SCHEDULERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
}
TEXT, POOLED = 32, 32  # widths of the text encoders
COUNTS = ("calls", "rows", "host reads", "peak memory")


class Size(NamedTuple):
    """side: of the latents / width: channels of the network's first level; the second has twice as many."""

    side: int
    width: int


FAST, MIDDLE, SLOW = Size(8, 16), Size(16, 64), Size(32, 64)


class Cost(NamedTuple):
    """What one run costs: network calls, rows in them, host reads, peak memory in bytes."""

    calls: int
    rows: int
    reads: int
    memory: int


def run(quick: bool) -> list[Row]:
    """All cases. Raises MissingExtraError where diffusers or transformers is not installed."""
    out: list[Row] = []
    for setting in _settings(FAST, STEPS, tuple(SCHEDULERS)):
        out += compete(setting.contest(), 3 if quick else 25, warmups=1)
        out += setting.counted()
    for size, network in ((MIDDLE, ", middle network"), (SLOW, ", slow network")):
        for setting in _settings(size, SLOW_STEPS // 2 if quick else SLOW_STEPS, ("ddim",), network):
            out += compete(setting.contest(), 2 if quick else 7, warmups=1)
    return out


def _settings(size: Size, steps: int, schedulers: tuple[str, ...], network: str = "") -> Iterator[Setting]:
    parts = _parts(size)
    for name in schedulers:
        kind, config = SCHEDULERS[name]
        pipe = _classic(parts | {"scheduler": getattr(peer("diffusers"), kind)(**TABLE, **config)})
        try:
            modular = _modular(pipe)
        except MissingExtraError as error:
            print(f"warning: {name}: no row for modular: {error}", file=sys.stderr)
            modular = None
        for batch in BATCHES:
            case = f"{name}, batch {batch}{network}"
            yield Setting(case, pipe, modular, batch, steps)


@final
@dataclass(frozen=True)
class Setting:
    """What the contestants of one case share. pipe: the classic pipeline / modular: the other one, on the same parts,
    or None for a diffusers without it.
    """

    case: str
    pipe: Any
    modular: Any
    batch: int
    steps: int

    def ours(self, w: float = W) -> Steered:
        """Our run."""
        texts, latents = self.given()
        return steer(self.pipe, texts, guidance=CFG(w), steps=self.steps, latents=latents, output_type="pt")

    def given(self) -> tuple[list[str], Tensor]:
        """Texts, and latents (B, 4, side, side)."""
        side, gen = self.pipe.unet.config.sample_size, torch.Generator().manual_seed(1)
        return list(TEXTS[: self.batch]), torch.randn(self.batch, 4, side, side, generator=gen)

    def peers(self) -> dict[str, Callable[[], Tensor]]:
        """The pipelines' own calls."""
        texts, latents = self.given()
        asked = {"prompt": texts, "latents": latents, "num_inference_steps": self.steps, "output_type": "pt"}
        found = {"classic": lambda: self.pipe(**asked, guidance_scale=W).images}
        if self.modular is None:
            return found
        side = latents.shape[-1] * self.modular.vae_scale_factor
        return found | {"modular": lambda: self.modular(**asked, height=side, width=side, output="images")}

    def contest(self) -> Contest:
        """Ours against theirs."""
        counts = self.ours().counts
        return Contest(self.case, lambda: self.ours().images, self.peers(), counts.calls, counts.rows)

    def counted(self) -> list[Row]:
        """One row for each count and peer."""
        net, out = self.pipe.unet, []
        with one_thread():
            ours = cost(self.ours, net)
            for name, other in self.peers().items():
                for what, a, b in zip(COUNTS, ours, cost(other, net), strict=True):
                    mib = what == "peak memory"
                    shown = f"{a / 2**20:.2f} to {b / 2**20:.2f} MiB" if mib else f"{a} to {b}"
                    ratio = a / max(b, 1)
                    case = f"{what} ({shown}), {self.case}"
                    out.append(Row(case, "wayfield", name, ratio, ratio, ratio, ours.calls, ours.rows))
        return out


@final
class _Reads(TorchDispatchMode):
    """Counts values of tensors that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def cost(run: Callable[[], object], net: nn.Module) -> Cost:
    """Of a run that asks `net`, counted apart from its time; a first run, which may fill caches, does not count."""
    asked: list[int] = []
    hook = net.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    run()
    asked.clear()
    try:
        with _Reads() as mode:
            run()
    finally:
        hook.remove()
    return Cost(len(asked), sum(asked), mode.n, _peak(run))


def _peak(run: Callable[[], object]) -> int:
    """Bytes, by the profiler's record of every allocation."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would announce every start and stop on stderr
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    held = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def _classic(parts: dict[str, Any]) -> Any:
    pipe = peer("diffusers").StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _modular(pipe: Any) -> Any:
    """The modular pipeline on a classic one's parts."""
    library = peer("diffusers")
    missing = [n for n in ("StableDiffusionXLAutoBlocks", "ClassifierFreeGuidance") if not hasattr(library, n)]
    if missing:
        remedy = "Install a newer diffusers, or leave this comparison out."
        raise MissingExtraError("peer 'diffusers'", got=f"no {missing[0]}", expected="modular pipelines", remedy=remedy)
    made = library.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    made.update_components(**parts, guider=library.ClassifierFreeGuidance(guidance_scale=W))
    _silence(made._blocks)
    return made


def _silence(block: Any) -> None:
    """No progress bars, also of blocks within blocks."""
    block._progress_bar_config = {"disable": True}
    for inner in getattr(block, "sub_blocks", {}).values():
        _silence(inner)


def _parts(size: Size) -> dict[str, Any]:
    """Everything but the scheduler, with random weights."""
    hf, side, width = peer("diffusers"), *size
    shown, levels = {"norm_num_groups": 2, "layers_per_block": 1}, (width, 2 * width)
    with torch.random.fork_rng():
        vae = hf.AutoencoderKL(
            block_out_channels=(4, 8), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, **shown,
        )  # fmt: skip
        unet = hf.UNet2DConditionModel(
            sample_size=side, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=levels,
            norm_num_groups=8, attention_head_dim=4, cross_attention_dim=2 * TEXT,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8,
        )  # fmt: skip
        texts = _text_encoder("CLIPTextModel"), _text_encoder("CLIPTextModelWithProjection")
    one, two = (_filled(net, k) for k, net in enumerate(texts))
    token, found = _tokenizer(), {"vae": _filled(vae, 2), "unet": _filled(unet, 3)}
    # keeps pictures inside their range, so that clipping cannot hide a difference
    found["vae"].get_parameter("decoder.conv_out.weight").mul_(0.2)
    return found | {"text_encoder": one, "text_encoder_2": two, "tokenizer": token, "tokenizer_2": token}


def _text_encoder(name: str) -> nn.Module:
    library = peer("transformers")
    config = library.CLIPTextConfig(
        vocab_size=4 + len(WORDS), hidden_size=TEXT, intermediate_size=2 * TEXT, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=POOLED, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return getattr(library, name)(config)


def _tokenizer() -> Any:
    """Words to numbers, with the length that CLIP has."""
    kit, special = peer("tokenizers"), {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    names = [*special.values(), "<unk>", *WORDS]
    made = kit.Tokenizer(kit.models.WordLevel({w: k for k, w in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = kit.pre_tokenizers.Whitespace()
    made.post_processor = kit.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    fast = peer("transformers").PreTrainedTokenizerFast
    return fast(tokenizer_object=made, model_max_length=77, unk_token="<unk>", **special)


def _filled(net: nn.Module, seed: int) -> nn.Module:
    """Every weight random, of a size that keeps the size of what passes; some would start at zero."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in net.requires_grad_(False).named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        gain = p.ndim == 1 and name.endswith("weight")
        p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * noise + float(gain))
    return net.eval()
