#!/usr/bin/env python3
"""Compares `unflip trace` with Hugging Face on random tiny Gemma 3 models of many dimensions.

Each case draws a model, prompt groups and a PEFT adapter from a seed, computes with transformers and peft what `trace` writes in
float64 (the float32 casts inside Hugging Face's RMSNorm, softmax and rotary embedding removed), runs `trace` on every device, instruction set, thread count and layout, and prints the
worst error of each kind.

    tools/parity.py                                fixed cases (dimensions, storage and configuration eras that broke something or could)
    tools/parity.py --seeds 1-20                   random cases as well
    tools/parity.py --only odd --keep DIR          some cases, with their files kept
    tools/parity.py --binary PATH --output FILE.md

Needs torch 2.8, transformers 4.57, peft 0.18 and safetensors (tools/peer/requirements.txt), and target/release/unflip. Exit code 1 if
anything differs by more than: logits, margins and hidden states 2e-5 of the tensor's maximum; losses 1e-5 of the loss; gradients
5e-5 of the tensor's maximum; 0 between CPU instruction sets and thread counts. The last column is the worst error of float32 Hugging
Face's gradients on the same case. A loss or gradient on which float32 Hugging Face itself exceeds the tolerance says nothing of an
engine in float32: it is left out and counted as beyond float32.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import peft  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.models.gemma3 import modeling_gemma3 as gemma  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGITS, LOSS, GRADIENT = 2e-5, 1e-5, 5e-5
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LOSSES = ["paper", "combined", "margin", "symkl-binary", "symkl-full", "ce-binary", "ce-full"]


@dataclasses.dataclass
class Case:
    """One model, its groups and its adapter."""

    name: str
    seed: int
    config: dict  # of Gemma3TextConfig
    modules: list = dataclasses.field(default_factory=lambda: list(MODULES))
    layers: list = None  # None: all
    rank: int = 4
    alpha: float = 8
    rslora: bool = False
    adapter_dtype: torch.dtype = torch.float32
    weights: torch.dtype = torch.bfloat16
    shards: bool = False
    style: str = "4.57"  # of config.json: 4.50, 4.57, 5, minimal
    names: str = "hub"  # of a vision-language checkpoint's and its adapter's tensors: hub, module, old
    vlm: bool = False
    lambda_: float = 0.5
    depth: int = None  # of the --layers run
    phrasings: tuple = (3, 2, 5)
    ids_on_top: bool = False
    long: bool = False


def dimensions(**changed):
    base = dict(vocab_size=97, hidden_size=24, intermediate_size=36, num_hidden_layers=7, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, sliding_window=6, query_pre_attn_scalar=8)
    return base | changed


def fixed_cases():
    yield Case("13-layers-dim12-6/3-window5-vocab777", 1,
               dimensions(vocab_size=777, hidden_size=60, intermediate_size=90, num_hidden_layers=13, num_attention_heads=6,
                          num_key_value_heads=3, head_dim=12, sliding_window=5, query_pre_attn_scalar=14))
    yield Case("13-layers-hidden-72-some-modules", 2,
               dimensions(vocab_size=777, hidden_size=72, intermediate_size=100, num_hidden_layers=13, num_attention_heads=6,
                          num_key_value_heads=3, head_dim=12, sliding_window=5, query_pre_attn_scalar=12),
               modules=["q_proj", "down_proj"], layers=[4, 5, 9], weights=torch.float32, rslora=True, rank=3, alpha=5)
    yield Case("hidden40-one-kv-head", 3, dimensions(hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=32), shards=True)
    yield Case("heads=kv-dim20", 4, dimensions(num_attention_heads=3, num_key_value_heads=3, head_dim=20, sliding_window=3))
    yield Case("one-layer", 5, dimensions(num_hidden_layers=1))
    yield Case("one-layer-full", 6, dimensions(num_hidden_layers=1, layer_types=["full_attention"]), modules=["k_proj"])
    yield Case("rope-parameters", 7,
               dimensions(rope_theta=5e5, rope_local_base_freq=1.3e4, rope_scaling={"rope_type": "linear", "factor": 8.0}), style="5")
    yield Case("sliding-pattern-4.50", 8, dimensions(num_hidden_layers=6, sliding_window_pattern=2,
               rope_scaling={"rope_type": "linear", "factor": 4.0}), style="4.50", rank=1, alpha=3)
    yield Case("minimal-config", 9, dict(hidden_size=16, intermediate_size=20, num_hidden_layers=6, sliding_window=4), style="minimal",
               modules=["v_proj", "o_proj", "up_proj"], phrasings=(2, 3))
    yield Case("untied-head", 10, dimensions(tie_word_embeddings=False), adapter_dtype=torch.bfloat16)
    # Fails by rounding alone: the norm after an MLP of one unit cancels all but an ε's share of its gradient. The f64 reference
    # agrees with float64; both float32 engines are off, Hugging Face's the more (3.6e-4 against 1.8e-4 at worst).
    yield Case("eps-and-rank-one-mlp", 11, dimensions(rms_norm_eps=1e-3, query_pre_attn_scalar=37, hidden_size=33, intermediate_size=1))
    yield Case("eps-and-scalar", 11, dimensions(rms_norm_eps=1e-3, query_pre_attn_scalar=37, hidden_size=33, intermediate_size=5))
    yield Case("head-dim2-window1", 12, dimensions(head_dim=2, sliding_window=1, hidden_size=17, num_attention_heads=7, num_key_value_heads=7))
    yield Case("single-phrasings", 13, dimensions(), phrasings=(1, 1), modules=["gate_proj", "o_proj"], adapter_dtype=torch.float16)
    yield Case("sharp-attention", 1007, random_case(7).config, vlm=True, weights=torch.float32, alpha=32, rslora=True, phrasings=(4, 2),
               long=True, lambda_=2.0)
    yield Case("long-prompts-wide-heads", 14, dimensions(head_dim=64, sliding_window=40, num_hidden_layers=6, hidden_size=96,
               intermediate_size=257, vocab_size=1031), long=True, layers=[0, 5], rank=16, alpha=32)
    yield Case("full-layers-only", 15, dimensions(num_hidden_layers=3, layer_types=["full_attention"] * 3), ids_on_top=True)
    yield Case("sliding-layers-only", 16, dimensions(num_hidden_layers=3, layer_types=["sliding_attention"] * 3), layers=[2])
    for names in ("hub", "module", "old"):
        yield Case(f"vlm-{names}", 17, dimensions(vocab_size=211, rope_scaling={"rope_type": "linear", "factor": 8.0}), vlm=True,
                   names=names, layers=[3, 4, 6] if names == "old" else None, style="5" if names == "module" else "4.57", shards=names == "old")


def random_case(seed):
    r = random.Random(seed)
    kv = r.choice([1, 1, 2, 3, 4])
    layers = r.randint(1, 14)
    config = dimensions(
        vocab_size=r.randint(40, 900), hidden_size=r.randint(8, 130), intermediate_size=r.randint(4, 200), num_hidden_layers=layers,
        num_attention_heads=kv * r.randint(1, 4), num_key_value_heads=kv, head_dim=2 * r.randint(2, 36), sliding_window=r.randint(1, 24),
        query_pre_attn_scalar=r.choice([6, 10, 24, 144]), rms_norm_eps=r.choice([1e-6, 1e-6, 1e-5]),
        rope_theta=r.choice([1e6, 2e5]), rope_local_base_freq=r.choice([1e4, 777.0]),
        rope_scaling=r.choice([None, {"rope_type": "linear", "factor": r.choice([8.0, 2.5])}]))
    if r.random() < 0.4:
        config["layer_types"] = [r.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    elif r.random() < 0.5:
        config["sliding_window_pattern"] = r.randint(1, 5)
    if r.random() < 0.15:
        config["tie_word_embeddings"] = False
    vlm = r.random() < 0.2
    return Case(
        f"random-{seed}", 1000 + seed, config, modules=sorted(r.sample(MODULES, r.choice([1, 2, 3, 7, 7]))),
        layers=r.choice([None, sorted(r.sample(range(layers), r.randint(1, layers)))]), rank=r.choice([1, 2, 4, 5, 16]),
        alpha=r.choice([1, 8, 2.5, 32]), rslora=r.random() < 0.3,
        adapter_dtype=r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
        weights=r.choice([torch.bfloat16, torch.bfloat16, torch.float32]), shards=r.random() < 0.3,
        style=r.choice(["4.50", "4.57", "5", "minimal"]), names=r.choice(["hub", "module", "old"]), vlm=vlm and config.get("tie_word_embeddings", True),
        lambda_=r.choice([0.1, 0.5, 2.0]), phrasings=tuple(r.randint(2, 5) for _ in range(r.randint(1, 4))),
        ids_on_top=r.random() < 0.5, long=r.random() < 0.2)


# ------------------------------------------------------------------------------------------------------------------- making a case


def generator(case, what):
    return torch.Generator().manual_seed(case.seed * 7919 + sum(ord(c) * (i + 1) for i, c in enumerate(what)))


def randomise(model, g):
    """Weights with which every part of the model matters: norms are away from 1, products keep their scale."""
    for name, p in model.named_parameters():
        draw = torch.randn(p.shape, generator=g)
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, gemma.Gemma3RMSNorm):
            draw = 0.3 * draw
        elif p.dim() > 1:
            draw = draw / math.sqrt(p[0].numel())
        else:
            draw = 0.1 * draw
        p.data.copy_(draw)


def make_model(case, folder):
    """Writes the checkpoint."""
    text = dict(max_position_embeddings=512, pad_token_id=0, bos_token_id=2, eos_token_id=1, tie_word_embeddings=True) | case.config
    if case.vlm:
        vocabulary = text["vocab_size"]
        vision = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
                      vision_use_head=False, model_type="siglip_vision_model")
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=vocabulary - 3,
                                           eoi_token_index=vocabulary - 2, image_token_index=vocabulary - 1, tie_word_embeddings=True)
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        config = transformers.Gemma3TextConfig(**text)
        model = transformers.Gemma3ForCausalLM(config)
    randomise(model, generator(case, "weights"))
    model.tie_weights()
    model = model.to(case.weights)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=max(size // 3, 1000) if case.shards else "5GB")
    rename_tensors(case, folder)
    rewrite_config(case, folder)
    return config


def rename_tensors(case, folder):
    """`hub` is what transformers writes; `module` are the names in memory."""
    if not case.vlm or case.names != "module":
        return
    def new(name):
        name = "model.language_model." + name.removeprefix("language_model.model.") if name.startswith("language_model.model.") else name
        return "model." + name if name.startswith(("vision_tower.", "multi_modal_projector.")) else name
    for path in folder.glob("*.safetensors"):
        save_file({new(k): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {new(k): v for k, v in content["weight_map"].items()}
        index.write_text(json.dumps(content))


def rewrite_config(case, folder):
    """config.json as another era writes it."""
    path = folder / "config.json"
    outer = json.loads(path.read_text())
    text = outer["text_config"] if case.vlm else outer
    scaling = text.get("rope_scaling")
    if case.style == "5":
        text["rope_parameters"] = {
            "full_attention": {"rope_type": "default", **(scaling or {}), "rope_theta": text["rope_theta"]},
            "sliding_attention": {"rope_type": "default", "rope_theta": text["rope_local_base_freq"]}}
        for key in ("rope_theta", "rope_local_base_freq", "rope_scaling", "_sliding_window_pattern", "sliding_window_pattern"):
            text.pop(key, None)
    elif case.style in ("4.50", "minimal"):
        if "layer_types" not in case.config:
            del text["layer_types"]
        text.pop("_sliding_window_pattern", None)
        text["sliding_window_pattern"] = case.config.get("sliding_window_pattern", 6)
        outer["torch_dtype"] = outer.pop("dtype", None)
        text.pop("dtype", None)
        if case.style == "minimal":
            kept = set(case.config) | {"model_type", "architectures"}
            text = {key: value for key, value in text.items() if key in kept}
            outer = {key: outer[key] for key in ("model_type", "architectures", "vision_config", "mm_tokens_per_image", "image_token_index",
                                                 "boi_token_index", "eoi_token_index")} | {"text_config": text} if case.vlm else text
    path.write_text(json.dumps(outer, indent=2))


def load(case, config, folder, dtype):
    """The checkpoint's weights in a Hugging Face model; float32 holds those of every storage exactly."""
    kind = transformers.Gemma3ForConditionalGeneration if case.vlm else transformers.Gemma3ForCausalLM
    state = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    model = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, attn_implementation="eager")
    return model.to(dtype).eval()


def text_model(model):
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return inner.model.language_model if hasattr(inner.model, "language_model") else inner.model


def add_adapter(case, model):
    layers = {} if case.layers is None else dict(layers_to_transform=case.layers, layers_pattern="layers")
    vlm = dict(exclude_modules=r".*vision_tower.*") if case.vlm else {}
    config = peft.LoraConfig(r=case.rank, lora_alpha=case.alpha, lora_dropout=0.0, target_modules=case.modules, use_rslora=case.rslora,
                             task_type="CAUSAL_LM", **layers, **vlm)
    adapted = peft.get_peft_model(model, config).eval()
    g = generator(case, "adapter")
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            draw = torch.randn(p.shape, generator=g) * (1 / math.sqrt(p.shape[1]) if "lora_A" in name else 0.1)
            p.data.copy_(draw.to(case.adapter_dtype))
    return adapted


def stored_name(case, name):
    """The name of an adapter parameter in adapter_model.safetensors."""
    name = name.replace(".default.", ".")
    return name.replace("model.model.language_model.", "model.language_model.model.") if case.vlm and case.names == "old" else name


def make_adapter(case, model, folder):
    """Writes the adapter; returns the adapted float32 model."""
    adapted = add_adapter(case, model)
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    expected = {n.replace(".default.", ".") for n, _ in adapted.named_parameters() if "lora_" in n}
    assert set(stored) == expected
    save_file({stored_name(case, k): v.to(case.adapter_dtype) for k, v in stored.items()}, path, metadata={"format": "pt"})
    return adapted


def make_groups(case, config):
    r = random.Random(case.seed)
    vocabulary = config.get_text_config().vocab_size
    window = config.get_text_config().sliding_window
    usable = vocabulary - 4 if case.vlm else vocabulary
    ids = lambda n: [2] + [r.randrange(4, usable) for _ in range(n - 1)]
    suffix = lambda n: [r.randrange(4, usable) for _ in range(n)]
    short = min(window, 12)
    prefixes = [min(window, 40) + r.randint(3, 9), 1, max(2, short - 1), r.randint(2, 30)]
    if case.long:
        prefixes[0] = 150 + r.randint(0, 20)
    answers = r.sample(range(4, usable), 2)
    groups = []
    for index, phrasings in enumerate(case.phrasings):
        suffixes = [suffix(r.choice([1, 2, 3, 5, 9, 17])) for _ in range(phrasings)]
        if index == 0:
            suffixes[-1] = suffix(1)
        if index == 1 and phrasings > 2:
            suffixes[2] = list(suffixes[0][:1]) + suffix(3)  # shares a token that the prefix does not hold
        yes, no = answers if case.ids_on_top or index % 2 == 0 else r.sample(range(4, usable), 2)
        groups.append(dict(prefix=ids(prefixes[index % 4]), suffixes=suffixes, yes=yes, no=no,
                           label=r.choice(["yes", "no", "Yes", "NO", "No"])))
    return groups


def write_groups(case, groups, path):
    """As the goldens (ids in each group) or the peer (on top) state them."""
    if case.ids_on_top:
        top = {"answer_ids": {"Yes": groups[0]["yes"], "No": groups[0]["no"]}, "lambda": case.lambda_}
        entries = [{key: g[key] for key in ("prefix", "suffixes", "label")} for g in groups]
    else:
        top = {"lambda": case.lambda_}
        entries = [{"prefix": g["prefix"], "suffixes": g["suffixes"], "yes_id": g["yes"], "no_id": g["no"], "label": g["label"],
                    "image": None} for g in groups]
    path.write_text(json.dumps(top | {"groups": entries}))


# -------------------------------------------------------------------------------------------------------------- what Hugging Face says


@contextlib.contextmanager
def float64_mode():
    """Hugging Face casts to float32 in RMSNorm, softmax and rotary embedding whatever the model's dtype; this undoes it."""
    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)

    def rope(self, x, position_ids):
        config = self.config
        inverse = 1.0 / (config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim))
        if self.rope_type == "linear":
            inverse = inverse / config.rope_scaling["factor"]
        angles = position_ids[:, :, None].double() * inverse
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
        repeats = module.num_key_value_groups
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    saved = gemma.Gemma3RMSNorm.forward, gemma.Gemma3RotaryEmbedding.forward, gemma.eager_attention_forward
    gemma.Gemma3RMSNorm.forward, gemma.Gemma3RotaryEmbedding.forward, gemma.eager_attention_forward = norm, rope, attention
    try:
        yield
    finally:
        gemma.Gemma3RMSNorm.forward, gemma.Gemma3RotaryEmbedding.forward, gemma.eager_attention_forward = saved


def logits(model, ids, keep=1):
    ids = torch.tensor([ids])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=keep).logits[0]


def last_logits(model, groups):
    """[phrasings, vocab] of each group, every prompt alone."""
    return [torch.stack([logits(model, g["prefix"] + s)[-1] for s in g["suffixes"]]) for g in groups]


def hidden_states(model, groups):
    """{trace's name: [tokens, hidden]}"""
    inner, out, states = text_model(model), {}, {}
    hooks = [inner.layers[0].register_forward_pre_hook(
        lambda m, a, k: states.update(embed=a[0] if a else k["hidden_states"]), with_kwargs=True)]
    for index, layer in enumerate(inner.layers):
        hooks.append(layer.register_forward_hook(
            lambda m, i, o, index=index: states.update({f"layer_{index:02d}": o[0] if isinstance(o, tuple) else o})))
    hooks.append(inner.norm.register_forward_hook(lambda m, i, o: states.update(final_norm=o)))
    for g, group in enumerate(groups):
        for k, suffix in enumerate(group["suffixes"]):
            logits(model, group["prefix"] + suffix)
            out |= {f"group{g}.phrasing{k}.hidden.{name}": value[0].clone() for name, value in states.items()}
    for hook in hooks:
        hook.remove()
    return out


def losses(case, groups, last):
    """Every loss by trace's name: means over pairs or phrasings, then over groups. A group without a pair has no pair's loss."""
    symkl = lambda a, b: 0.5 * ((a.exp() * (a - b)).sum() + (b.exp() * (b - a)).sum())
    mean = lambda values: torch.stack(values).mean() if values else torch.zeros((), dtype=last[0].dtype)
    found = {name: [] for name in LOSSES}
    for g, z in zip(groups, last):
        two = z[:, [g["yes"], g["no"]]]
        m, full, binary = two[:, 0] - two[:, 1], F.log_softmax(z, -1), F.log_softmax(two, -1)
        yes = g["label"].lower() == "yes"
        ce = -binary[:, 0 if yes else 1]
        pairs = list(itertools.combinations(range(len(z)), 2))
        found["margin"].append(mean([(m[i] - m[j]) ** 2 for i, j in pairs]))
        found["symkl-binary"].append(mean([symkl(binary[i], binary[j]) for i, j in pairs]))
        found["symkl-full"].append(mean([symkl(full[i], full[j]) for i, j in pairs]))
        found["ce-full"].append(-full[:, g["yes" if yes else "no"]].mean())
        found["ce-binary"].append(ce.mean())
        found["paper"].append(mean([symkl(binary[0], binary[j]) + ce[0] + ce[j] for j in range(1, len(z))]))
        found["combined"].append(found["ce-full"][-1] + case.lambda_ * found["margin"][-1])
    return {name: torch.stack(values).mean() for name, values in found.items()}


def losses_and_gradients(case, model, groups, layers):
    """Values by loss, and gradients by loss and stored name: 0 where a layer of `layers` was taken out of the model."""
    inner = text_model(model)
    present, inner.layers = inner.layers, layers
    parameters = {stored_name(case, n): p for n, p in model.named_parameters() if "lora_" in n}
    inner.layers = present
    values = losses(case, groups, last_logits(model, groups))
    gradients = {}
    for name, value in values.items():
        if value.requires_grad:
            found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        else:
            found = [None] * len(parameters)
        gradients[name] = {n: torch.zeros_like(p) if d is None else d for (n, p), d in zip(parameters.items(), found)}
    return {name: value.item() for name, value in values.items()}, gradients


# ------------------------------------------------------------------------------------------------------------------------ comparing


class Worst:
    """Worst error of each kind, and what exceeded its tolerance."""

    def __init__(self):
        self.kinds, self.failures, self.float32, self.beyond = {}, [], 0.0, 0

    def error(self, kind, where, error, tolerance, floor=0.0):
        if kind == "gradient":
            self.float32 = max(self.float32, floor)
        if floor <= tolerance and not error <= self.kinds.get(kind, -1.0):
            self.kinds[kind] = error
        if floor > tolerance:
            self.beyond += 1
        elif not error <= tolerance:
            note = f" (float32 Hugging Face {floor:.2e})" if floor else ""
            self.failures.append(f"{where}: {kind} {error:.2e} > {tolerance:.0e}{note}")

    def tensor(self, kind, where, name, found, expected, tolerance, floor=0.0):
        if found is None:
            self.failures.append(f"{where}: no tensor {name}")
        elif found.dtype != torch.float32 or found.shape != expected.shape:
            self.failures.append(f"{where}: {name} is {found.dtype} {list(found.shape)}, expected float32 {list(expected.shape)}")
        else:
            self.error(kind, f"{where} {name}", relative(found, expected), tolerance, floor)

    def names(self, where, found, expected):
        if set(found) != set(expected):
            self.failures.append(f"{where}: missing {sorted(set(expected) - set(found))[:3]}, unexpected {sorted(set(found) - set(expected))[:3]}")


def relative(found, expected):
    """Largest difference over the expected tensor's largest value."""
    scale = expected.double().abs().max().item()
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / scale if scale > 0 else difference


def trace(binary, folder, arguments, adapter=True):
    out = folder / "trace.safetensors"
    out.unlink(missing_ok=True)
    command = [binary, "trace", "--model", folder / "model", "--input", folder / "groups.json", "--out", out, *arguments]
    if adapter:
        command += ["--adapter", folder / "adapter"]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command))}` failed with {run.returncode}:\n{run.stderr}")
    return load_file(out)


def back_ends(isas):
    """Name, arguments, whether its bits are those of every other CPU run, and whether every loss runs on it."""
    yield "reference", ["--device", "reference"], False, False
    for isa in isas:
        for threads in ("1", "3"):
            yield f"{isa}/{threads}", ["--device", "cpu", "--isa", isa, "--threads", threads], True, (isa, threads) == (isas[-1], "3")


def few_and_all(model, depth, compute):
    """A result with the first `depth` layers alone, then with all; `compute` gets them all either way."""
    inner = text_model(model)
    layers = inner.layers
    inner.layers = layers[:depth]
    few = compute(layers)
    inner.layers = layers
    return few, compute(layers)


def check_case(case, binary, isas, folder):
    worst = Worst()
    config = make_model(case, folder / "model")
    groups = make_groups(case, config)
    write_groups(case, groups, folder / "groups.json")
    adapted = make_adapter(case, load(case, config, folder / "model", torch.float32), folder / "adapter")
    wide = add_adapter(case, load(case, config, folder / "model", torch.float32)).double()
    depth = case.depth or max(1, config.get_text_config().num_hidden_layers // 2)
    few32, all32 = few_and_all(adapted, depth, lambda layers: losses_and_gradients(case, adapted, groups, layers))
    expected, inner = {}, text_model(wide)
    scale = inner.embed_tokens.embed_scale
    rounded = scale.to(torch.bfloat16).double()
    with float64_mode():
        few64, all64 = few_and_all(wide, depth, lambda layers: losses_and_gradients(case, wide, groups, layers))
        with torch.no_grad():
            expected["layers"], expected["exact"] = few_and_all(
                wide, depth, lambda _: (last_logits(wide, groups), hidden_states(wide, groups)))
            for name, value in (("auto", rounded if case.weights == torch.bfloat16 else scale), ("bf16", rounded)):
                inner.embed_tokens.embed_scale = value
                expected[name] = (last_logits(wide, groups), None)
            inner.embed_tokens.embed_scale = scale
            with wide.disable_adapter():
                expected["base"] = (last_logits(wide, groups), None)

    def forward(where, found, key, hidden):
        last, states = expected[key]
        names = set()
        for g, z in enumerate(last):
            margin = z[:, groups[g]["yes"]] - z[:, groups[g]["no"]]
            worst.tensor("logits", where, f"group{g}.last_logits", found.get(f"group{g}.last_logits"), z, LOGITS)
            # A margin is a difference of logits: its error is theirs.
            scale = z.abs().max().item()
            found_margin = found.get(f"group{g}.margin")
            if found_margin is None or found_margin.shape != margin.shape:
                worst.failures.append(f"{where}: group{g}.margin is missing or of another shape")
            else:
                worst.error("margin", f"{where} group{g}", (found_margin - margin).abs().max().item() / scale, LOGITS)
            names |= {f"group{g}.last_logits", f"group{g}.margin"}
        if hidden:
            for name, value in states.items():
                worst.tensor("hidden", where, name, found.get(name), value, LOGITS)
            names |= set(states)
        return names

    def loss_and_gradients(where, found, loss, single, double):
        losses32, losses64, gradients32, gradients64 = single[0][loss], double[0][loss], single[1][loss], double[1][loss]
        floor = abs(losses32 - losses64) / max(abs(losses64), 1e-300)
        worst.tensor("loss", where, "loss", found.get("loss"), torch.tensor([losses64]), LOSS, floor)
        for name, gradient in gradients64.items():
            worst.tensor("gradient", where, name, found.get(name), gradient, GRADIENT, relative(gradients32[name], gradient))
        return {"loss", *gradients64}

    bits = {}
    for sharing in ([], ["--no-sharing"]):
        for back_end, arguments, cpu, all_losses in back_ends(isas):
            common = [*arguments, *sharing, "--embed-scale", "exact"]
            where = f"{case.name} {back_end}{' unshared' if sharing else ''}"
            runs = {"hidden": trace(binary, folder, [*common, "--hidden"])}
            worst.names(f"{where} hidden", runs["hidden"], forward(where, runs["hidden"], "exact", True))
            # Elsewhere one loss on two rows of the head and one on all of them: the others differ in the objective alone.
            for loss in LOSSES if all_losses or (back_end == "reference" and not sharing) else ("paper", "symkl-full"):
                pairs = ["--pairs", "all"] if loss != "paper" else []
                found = runs[loss] = trace(binary, folder, [*common, "--loss", loss, *pairs])
                names = forward(f"{where} {loss}", found, "exact", False) | loss_and_gradients(f"{where} {loss}", found, loss, all32, all64)
                worst.names(f"{where} {loss}", found, names)
            for scale in ("auto", "bf16"):
                runs[scale] = trace(binary, folder, [*arguments, *sharing, "--embed-scale", scale])
                forward(f"{where} {scale}", runs[scale], scale, False)
            found = runs["layers"] = trace(binary, folder, [*common, "--layers", depth, "--hidden", "--loss", "ce-full"])
            at = f"{where} layers"
            worst.names(at, found, forward(at, found, "layers", True) | loss_and_gradients(at, found, "ce-full", few32, few64))
            runs["base"] = trace(binary, folder, common, adapter=False)
            forward(f"{where} base", runs["base"], "base", False)
            if not cpu:
                continue
            for kind, found in runs.items():
                first = bits.setdefault((kind, bool(sharing)), found)
                same = set(first) == set(found) and all(torch.equal(first[n].view(torch.int32), found[n].view(torch.int32)) for n in found)
                worst.error("bits", f"{where} {kind}", 0.0 if same else 1.0, 0.0)
            # The shortcuts of a run without hidden states change no bit.
            for name, value in runs["paper"].items():
                if name in runs["hidden"]:
                    same = torch.equal(value.view(torch.int32), runs["hidden"][name].view(torch.int32))
                    worst.error("bits", f"{where} {name} with and without --hidden", 0.0 if same else 1.0, 0.0)
    return worst


KINDS = ["logits", "margin", "hidden", "loss", "gradient", "bits"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/unflip")
    parser.add_argument("--seeds", default="", help="random cases: 3, or 1-20")
    parser.add_argument("--only", default="", help="fixed cases whose name holds one of these, comma-separated (`none` for none)")
    parser.add_argument("--isas", default="", help="instruction sets, comma-separated (default: those of this machine)")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the cases' files here")
    parser.add_argument("--output", type=pathlib.Path, help="write the table here as well")
    args = parser.parse_args()
    if not args.binary.exists():
        parser.error(f"{args.binary} is missing: cargo build --release")
    flags = pathlib.Path("/proc/cpuinfo").read_text().split() if pathlib.Path("/proc/cpuinfo").exists() else []
    isas = args.isas.split(",") if args.isas else ["portable"] + ["avx2"] * ("avx2" in flags) + ["avx512"] * ("avx512f" in flags)
    first, _, last = args.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1) if first else []
    cases = [c for c in fixed_cases() if any(part in c.name for part in args.only.split(","))] + [random_case(seed) for seed in seeds]

    print(f"on {', '.join(isas)} and reference; tolerances: logits, margin, hidden {LOGITS}, loss {LOSS}, gradient {GRADIENT}\n")
    rows = ["| case | " + " | ".join(KINDS) + " | | gradient of Hugging Face |", "|---|" + "---|" * len(KINDS) + "---|---|"]
    print("\n".join(rows))
    bad, total, float32 = [], {}, 0.0
    for case in cases:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.keep / case.name.replace("/", "-") if args.keep else pathlib.Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                worst = check_case(case, args.binary, isas, folder)
            except RuntimeError as error:
                worst = Worst()
                worst.failures.append(f"{case.name}: {error}")
        for kind, error in worst.kinds.items():
            total[kind] = max(total.get(kind, 0.0), error)
        float32 = max(float32, worst.float32)
        mark = "FAIL" if worst.failures else f"ok, {worst.beyond} beyond float32" if worst.beyond else "ok"
        cells = [("same" if worst.kinds[k] == 0 else "differ") if k == "bits" and k in worst.kinds else f"{worst.kinds.get(k, math.nan):.1e}"
                 for k in KINDS]
        rows.append(f"| {case.name} | " + " | ".join(cells) + f" | {mark} | {worst.float32:.1e} |")
        print(rows[-1], flush=True)
        bad += worst.failures
    rows.append("| **worst** | " + " | ".join(f"{total.get(k, math.nan):.1e}" for k in KINDS[:-1]) + f" | {'same' if not total.get('bits') else 'differ'} | {len(bad)} | {float32:.1e} |")
    print(rows[-1])
    if bad:
        print(f"\n{len(bad)} MISMATCHES:", *bad[:40], sep="\n  ")
    if args.output:
        args.output.write_text("\n".join(rows) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
