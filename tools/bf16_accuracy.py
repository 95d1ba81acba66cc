#!/usr/bin/env python3
"""How far bf16 is from f32: margins and adapter gradients of `unflip --precision bf16`, and of transformers + PEFT in bf16.

Both sides get the same token ids (report questions, tokenised here), the same adapter (rank 16 on all seven projections of every layer, B drawn,
not zero) and the same loss (full-vocabulary cross-entropy of the answer + 0.1 · squared margin differences over all pairs). Each side's
bf16 is compared with its own f32 on the same groups, and the two f32 sides with each other. The peer is its prefix-cache setting: model
and adapter in bf16, prefix once. √hidden, the factor on embeddings, is the one of a bf16 model everywhere, so that rounding alone differs.

    tools/bf16_accuracy.py MODEL [--groups 16] [--gradient-groups 6] [--data FILE]... [--isa NAME] [--state DIR] [--out docs/benchmarks/bf16-accuracy.json]

All 800 groups take hours on two cores. With `--state DIR` every group's results are kept there as they come, and the same command goes on where
it was stopped.

Prints a table: error of a margin (absolute), of a group's whole gradient and of each of its tensors (‖bf16 − f32‖ / ‖f32‖), at the mean,
99th percentile and maximum; then every answer that differs from f32. `--peer-logits f32` gives the peer f32 answer rows. Where a CPU has
no bf16 instructions torch's bf16 products take several times as long as f32 ones; `--peer-linear f32-sums` computes the linear layers' products as f32
products of the widened operands, rounded once to bf16, which is what a bf16 GEMM with f32 accumulation computes. Needs torch,
transformers, peft (tools/peer/requirements.txt) and target/release/unflip. Exit code 1 if a 99th percentile of unflip's is above the peer's.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "peer"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from peer_common import load, prefix_hidden  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

INSTRUCTION = "You are a medical imaging expert. For yes/no questions, respond with only Yes or No."
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAMBDA = 0.1


def token_groups(model, files, count):
    """`count` groups spread over the files, as `unflip trace` reads them."""
    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    lines = [line for file in files for line in pathlib.Path(file).read_text().splitlines()]
    chosen = [json.loads(lines[i * len(lines) // count]) for i in range(min(count, len(lines)))]
    groups = []
    for group in chosen:
        questions = [group["question"]] + [p if isinstance(p, str) else p["text"] for p in group["paraphrases"]]
        prompts = [f"<bos><start_of_turn>user\n{INSTRUCTION}\n\n{group['context']}\n\n{question}<end_of_turn>\n<start_of_turn>model\n"
                   for question in questions]
        ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        shared = 0
        while shared < min(map(len, ids)) - 1 and len({row[shared] for row in ids}) == 1:
            shared += 1
        groups.append({"id": group["id"], "prefix": ids[0][:shared], "suffixes": [row[shared:] for row in ids],
                       "label": "Yes" if group["answer"] == "yes" else "No", "image": None})
    answers = {name: tokenizer.token_to_id(name) for name in ("Yes", "No")}
    return {"lambda": LAMBDA, "answer_ids": answers, "groups": groups}


class LinearInF32Sums(torch.autograd.Function):
    """A bf16 linear layer whose three products are f32 sums, each rounded once."""

    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return (x.float() @ weight.float().T).bfloat16()

    @staticmethod
    def backward(context, dy):
        x, weight = context.saved_tensors
        dy = dy.float()
        dx = (dy @ weight.float()).bfloat16() if context.needs_input_grad[0] else None
        dw = (dy.flatten(0, -2).T @ x.float().flatten(0, -2)).bfloat16() if context.needs_input_grad[1] else None
        return dx, dw


def linear_in_f32_sums():
    """Puts it in the place of torch's for bf16 layers without bias, which all of Gemma 3's and LoRA's are."""
    own = F.linear

    def linear(x, weight, bias=None):
        if weight.dtype == torch.bfloat16 and x.dtype == torch.bfloat16 and bias is None:
            return LinearInF32Sums.apply(x, weight)
        return own(x, weight, bias)

    F.linear = linear


def peft_model(model, dtype, attn, threads, adapter=None, save=None):
    """The peer with its adapter; a drawn one is saved to `save`."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file as load_torch

    torch.manual_seed(0)
    base = load(model, dtype, attn, threads)
    # The factor that the weights' stored dtype implies, in f32 as well.
    scale = base.model.embed_tokens.embed_scale
    scale.copy_(scale.to(torch.bfloat16).to(scale.dtype))
    base.config.use_cache = False
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=MODULES)
    peer = get_peft_model(base, config, autocast_adapter_dtype=False)
    if save:
        for name, parameter in peer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.005)
        peer.save_pretrained(save)
    else:
        set_peft_model_state_dict(peer, load_torch(adapter + "/adapter_model.safetensors"))
    return peer.train()


class Kept:
    """Results of one side, group by group, in a folder: margins, then the gradients of the first groups by name."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, count):
        return [index for index in range(count) if not (self.folder / f"{index}.npz").exists()]

    def put(self, index, margins, gradients, seconds=0.0):
        part = self.folder / f"{index}.part.npz"
        np.savez(part, margins=np.asarray(margins), seconds=seconds, **(gradients or {}))
        part.rename(self.folder / f"{index}.npz")

    def results(self, count, gradient_groups):
        margins, gradients, seconds = [], [], 0.0
        for index in range(count):
            with np.load(self.folder / f"{index}.npz") as kept:
                margins.append(kept["margins"].tolist())
                seconds += float(kept["seconds"])
                if index < gradient_groups:
                    gradients.append({name: kept[name] for name in kept.files if "lora_" in name})
        return margins, gradients, seconds


def peer_results(make, data, gradient_groups, f32_logits, kept):
    """Margins of each group, and the gradients of the first ones by name. `make` gives the model, if anything is left to do."""
    count, (yes, no) = len(data["groups"]), (data["answer_ids"]["Yes"], data["answer_ids"]["No"])
    missing = kept.missing(count)
    peer = make() if missing else None
    for index in missing:
        group, core = data["groups"][index], peer.get_base_model()
        with torch.set_grad_enabled(index < gradient_groups):
            hidden = prefix_hidden(core.model, group["prefix"], group["suffixes"])
            head = core.lm_head.weight
            logits = hidden.float() @ head.float().T if f32_logits else core.lm_head(hidden).float()
            difference = logits[:, yes] - logits[:, no]
            if index >= gradient_groups:
                kept.put(index, difference.tolist(), None)
                continue
            target = torch.full((len(difference),), yes if group["label"] == "Yes" else no)
            i, j = torch.triu_indices(len(difference), len(difference), 1)
            loss = F.cross_entropy(logits, target) + LAMBDA * (difference[i] - difference[j]).pow(2).mean()
            loss.backward()
        gradients = {name.replace(".default", ""): p.grad.float().numpy() for name, p in peer.named_parameters() if p.requires_grad}
        kept.put(index, difference.tolist(), gradients)
        peer.zero_grad(set_to_none=True)
    return kept.results(count, gradient_groups)[:2]


def unflip_results(binary, model, adapter, data, gradient_groups, flags, kept):
    """The same of `unflip trace`, one group a call; the last line of its standard error names the unit."""
    count, unit_file = len(data["groups"]), kept.folder / "unit"
    for index in kept.missing(count):
        group, place, out = data["groups"][index], kept.folder / "group.json", kept.folder / "trace.safetensors"
        place.write_text(json.dumps({**data, "groups": [group]}))
        command = [binary, "trace", "--model", model, "--input", place, "--adapter", adapter, "--out", out, *flags]
        if index < gradient_groups:
            command += ["--loss", "combined", "--pairs", "all"]
        start = time.perf_counter()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
        unit_file.write_text(done.stderr.strip().splitlines()[-1].removeprefix("computed by "))
        tensors = load_file(out)
        gradients = {name: value for name, value in tensors.items() if "lora_" in name} if index < gradient_groups else None
        kept.put(index, tensors["group0.margin"].tolist(), gradients, seconds)
    margins, gradients, seconds = kept.results(count, gradient_groups)
    return margins, gradients, unit_file.read_text(), seconds


def summary(values):
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return None
    return {"n": len(values), "mean": values.mean(), "p99": float(np.percentile(values, 99)), "max": values.max()}


def compare(found, exact, data):
    """Errors of margins and gradients, and the answers that differ."""
    (margins, gradients), (exact_margins, exact_gradients) = found, exact
    errors = [abs(a - b) for row, other in zip(margins, exact_margins) for a, b in zip(row, other)]
    whole, tensors = [], []
    for gradient, other in zip(gradients, exact_gradients):
        assert gradient.keys() == other.keys() and gradient
        apart = {name: float(np.linalg.norm(gradient[name].astype(np.float64) - other[name])) for name in other}
        size = {name: float(np.linalg.norm(other[name].astype(np.float64))) for name in other}
        whole.append((sum(v * v for v in apart.values()) / sum(v * v for v in size.values())) ** 0.5)
        tensors += [apart[name] / size[name] for name in other]
    flips = [{"group": group["id"], "phrasing": k, "f32": b, "bf16": a}
             for group, row, other in zip(data["groups"], margins, exact_margins)
             for k, (a, b) in enumerate(zip(row, other)) if (a > 0) != (b > 0)]
    return {"margin": summary(errors), "gradient": summary(whole), "gradient_tensor": summary(tensors),
            "answers_that_differ": flips, "ties": sum(a == 0 for row in margins for a in row)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", action="append", help="prompt groups with contexts (default: the three report files)")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--gradient-groups", type=int, default=6)
    parser.add_argument("--binary", default=ROOT / "target/release/unflip")
    parser.add_argument("--isa", help="of unflip in bf16")
    parser.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--peer-logits", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--peer-linear", choices=["torch", "f32-sums"], default="torch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=pathlib.Path, help="folder that keeps results group by group, so that a stopped run goes on")
    parser.add_argument("--out")
    a = parser.parse_args()
    if a.peer_linear == "f32-sums":
        linear_in_f32_sums()
    files = a.data or sorted(ROOT.glob("assets/reports/reports-*.jsonl"))
    data = token_groups(a.model, files, a.groups)
    count = min(a.gradient_groups, len(data["groups"]))
    flags = ["--threads", a.threads]
    isa = ["--isa", a.isa] if a.isa else []
    with tempfile.TemporaryDirectory() as name:
        state = a.state or pathlib.Path(name)
        state.mkdir(parents=True, exist_ok=True)
        # Results of another question must not be taken for this one's.
        asked = json.dumps([str(a.model), data, count, a.isa, a.attn, a.peer_logits, a.peer_linear, a.threads])
        if (state / "asked.json").exists() and (state / "asked.json").read_text() != asked:
            sys.exit(f"{state} holds results of other settings: use another folder")
        (state / "asked.json").write_text(asked)
        adapter = state / "adapter"
        kept = {side: Kept(state / side) for side in ("peer-f32", "unflip-f32", "unflip-bf16", "peer-bf16")}
        if not (adapter / "adapter_model.safetensors").exists():
            peft_model(a.model, torch.float32, a.attn, a.threads, save=str(adapter))
        peer = lambda dtype: lambda: peft_model(a.model, dtype, a.attn, a.threads, str(adapter))  # noqa: E731
        peer_f32 = peer_results(peer(torch.float32), data, count, True, kept["peer-f32"])
        print("peer f32 done", file=sys.stderr, flush=True)
        *ours_f32, unit_f32, seconds_f32 = unflip_results(a.binary, a.model, adapter, data, count, [*flags, "--precision", "f32"], kept["unflip-f32"])
        *ours_bf16, unit, seconds = unflip_results(a.binary, a.model, adapter, data, count, [*flags, *isa, "--precision", "bf16"], kept["unflip-bf16"])
        print("unflip done", file=sys.stderr, flush=True)
        peer_bf16 = peer_results(peer(torch.bfloat16), data, count, a.peer_logits == "f32", kept["peer-bf16"])
    result = {
        "command": " ".join(["tools/bf16_accuracy.py", "MODEL", *sys.argv[2:]]),
        "cpu": next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), None),
        "groups": len(data["groups"]), "phrasings": sum(len(g["suffixes"]) for g in data["groups"]), "gradient_groups": count,
        "tokens": sum(len(g["prefix"]) + sum(map(len, g["suffixes"])) for g in data["groups"]),
        "units": {"f32": unit_f32, "bf16": unit, "peer": f"torch {torch.__version__}, {a.attn}, prefix cache, {a.peer_linear} linear layers, {a.peer_logits} answer rows"},
        "seconds": {"unflip f32": seconds_f32, "unflip bf16": seconds},
        "unflip bf16 against its f32": compare(ours_bf16, ours_f32, data),
        "peer bf16 against its f32": compare(peer_bf16, peer_f32, data),
        "unflip f32 against the peer's f32": compare(ours_f32, peer_f32, data),
    }
    if a.out:
        pathlib.Path(a.out).write_text(json.dumps(result, indent=1) + "\n")
    pairs = [key for key in result if "against" in key]
    print(f"{'':34s} {'':16s} {'mean':>10s} {'p99':>10s} {'max':>10s}")
    for pair in pairs:
        for what in ("margin", "gradient", "gradient_tensor"):
            if row := result[pair][what]:
                print(f"{pair:34s} {what:16s} {row['mean']:10.3g} {row['p99']:10.3g} {row['max']:10.3g}")
        print(f"{pair:34s} answers that differ: {len(result[pair]['answers_that_differ'])}, ties: {result[pair]['ties']}")
        for flip in result[pair]["answers_that_differ"]:
            print(f"    {flip['group']} phrasing {flip['phrasing']}: {flip['f32']:.4f} in f32, {flip['bf16']:.4f}")
    ours, peers = result[pairs[0]], result[pairs[1]]
    worse = [what for what in ("margin", "gradient", "gradient_tensor") if ours[what] and ours[what]["p99"] > peers[what]["p99"]]
    if worse:
        sys.exit(f"above the peer's 99th percentile: {', '.join(worse)}")


if __name__ == "__main__":
    main()
