#!/usr/bin/env python3
"""Trains adapters with `unflip train` on tiny random models and loads them in PEFT, and the other way round.

For a text-only and a vision-language checkpoint and several kinds of adapter: PEFT adapts exactly the modules whose tensors are in the
file (no missing and no unexpected key, nothing in the vision tower, no warning), Hugging Face's margins on the evaluation's prompts
equal those of `unflip eval` within 1e-4 of the largest margin, the adapter changes them, and PEFT saves the same tensors under the same
names. Then `unflip train` goes on from an adapter that PEFT made, and every step's loss equals that of the same steps in torch.

    tools/peft_roundtrip.py [--binary target/release/unflip] [--keep DIR]

Needs torch, transformers, peft, safetensors, tokenizers (tools/peer/requirements.txt). Exit code 1 if anything fails.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import parity  # next to this file: makes the models, and computes the losses
import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

INSTRUCTION = "You are a medical imaging expert. For yes/no questions, respond with only Yes or No."
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
MARGIN, STEP_LOSS = 1e-4, 1e-5
STEPS = 4

# Name, modules and layers as `unflip train` takes them, other flags.
ADAPTERS = [
    ("all", "q,k,v,o,gate,up,down", "all", ["--rank", "4", "--alpha", "8"]),
    ("range", "q,k,v,o,gate,up,down", "1-2", ["--rank", "16", "--alpha", "32"]),
    ("list-rslora", "q,v", "0,3", ["--rank", "3", "--alpha", "5.5", "--rslora", "true"]),
    ("one-module-dropout", "down", "2", ["--rank", "1", "--alpha", "2", "--dropout", "0.1"]),
    ("mlp", "gate,up", "0-3", ["--rank", "2", "--alpha", "1"]),
]


def write_tokenizer(folder):
    """Gemma's kind of tokenizer over characters, with the answers as tokens of their own."""
    letters = ["\n", "▁"] + [chr(c) for c in range(33, 127)]
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    vocabulary = {token: index for index, token in enumerate(SPECIAL + letters + ["".join(pair) for pair in merges])}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, token in enumerate(SPECIAL)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": None, "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary,
                  "merges": [list(pair) for pair in merges]}}))
    return len(vocabulary)


def write_data(path):
    findings = ["effusion", "edema", "fracture", "hernia", "mass", "nodule"]
    groups = []
    for index, finding in enumerate(findings):
        present = index % 2 == 0
        groups.append({"id": f"g{index}", "context": f"{'Small' if present else 'No'} {finding}.", "question": f"Is there {finding}?",
                       "paraphrases": [f"Is {finding} present?", f"Does this show {finding}?"], "answer": "yes" if present else "no"})
    path.write_text("".join(json.dumps(g) + "\n" for g in groups))
    return groups


def token_groups(groups, tokenizer):
    """What parity.losses takes: prompts of each group behind an empty prefix."""
    yes, no = tokenizer.token_to_id("Yes"), tokenizer.token_to_id("No")
    out = []
    for group in groups:
        prompts = [f"<bos><start_of_turn>user\n{INSTRUCTION}\n\n{group['context']}\n\n{question}<end_of_turn>\n<start_of_turn>model\n"
                   for question in [group["question"], *group["paraphrases"]]]
        ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        out.append(dict(prefix=[], suffixes=ids, yes=yes, no=no, label=group["answer"]))
    return out


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"`{' '.join(map(str, command))}` failed with {result.returncode}:\n{result.stderr}")
    return result.stdout


def margins(model, groups):
    with torch.no_grad():
        return torch.cat([z[:, g["yes"]] - z[:, g["no"]] for g, z in zip(groups, parity.last_logits(model, groups))])


def evaluate(binary, model, adapter, data, out):
    """Margins as `unflip eval` writes them, group by group."""
    run(binary, "eval", "--model", model, *(["--adapter", adapter] if adapter else []), "--data", data, "--out", out,
        "--embed-scale", "exact", "--resamples", "10")
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return torch.tensor([line["margin"] for line in lines if "margin" in line])


def load_in_peft(base, folder):
    """The adapted model, and what PEFT has to say against the adapter."""
    problems = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, folder).eval()
    problems += [f"warning: {w.message}" for w in caught]
    stored = load_file(folder / "adapter_model.safetensors")
    adapted = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    if set(adapted) != set(stored):
        problems.append(f"PEFT adapts other tensors: without a stored one {sorted(set(adapted) - set(stored))[:3]}, unused {sorted(set(stored) - set(adapted))[:3]}")
    problems += [f"{name} was not loaded" for name in set(adapted) & set(stored) if not torch.equal(adapted[name], stored[name])]
    result = peft.set_peft_model_state_dict(model, stored)
    problems += [f"unexpected {name}" for name in result.unexpected_keys] + [f"missing {n}" for n in result.missing_keys if "lora_" in n]
    return model, problems


def saved_again(model, stored, folder):
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    again, first = load_file(folder / "adapter_model.safetensors"), load_file(stored / "adapter_model.safetensors")
    return set(again) == set(first) and all(torch.equal(again[n], first[n]) for n in first)


def train_both(case, binary, config, folder, groups):
    """Loss of each step from one PEFT adapter: unflip's and torch's."""
    adapted = parity.make_adapter(case, parity.load(case, config, folder / "model", torch.float32), folder / "peft")
    out = folder / "from-peft"
    run(binary, "train", "--model", folder / "model", "--adapter", folder / "peft", "--data", folder / "data.jsonl", "--out", out,
        "--loss", "paper", "--lr", "1e-3", "--weight-decay", "0.01", "--clip", "1", "--warmup", "0", "--schedule", "constant",
        "--batch-groups", len(groups), "--steps", STEPS, "--embed-scale", "exact", "--dropout", "0")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in lines if "loss" in line]
    parameters = [p for n, p in adapted.named_parameters() if "lora_" in n]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    theirs = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = parity.losses(case, groups, parity.last_logits(adapted, groups))["paper"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        theirs.append(loss.item())
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=parity.ROOT / "target/release/unflip")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the files here")
    args = parser.parse_args()
    failed = False
    print("| model | adapter | tensors | margin error / largest margin | adapter moves margins by | PEFT |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or pathlib.Path(temporary)
        steps = []
        for vlm in (False, True):
            folder = root / ("vlm" if vlm else "text")
            vocabulary = write_tokenizer(folder / "model")
            case = parity.Case("roundtrip", 42, parity.dimensions(vocab_size=vocabulary + 6, num_hidden_layers=4, sliding_window=48), vlm=vlm)
            case.config["layer_types"] = ["sliding_attention", "full_attention"] * 2
            config = parity.make_model(case, folder / "model")
            tokenizer = Tokenizer.from_file(str(folder / "model/tokenizer.json"))
            groups = token_groups(write_data(folder / "data.jsonl"), tokenizer)
            base = margins(parity.load(case, config, folder / "model", torch.float32), groups)
            for name, modules, layers, flags in ADAPTERS:
                out = folder / name
                run(args.binary, "train", "--model", folder / "model", "--data", folder / "data.jsonl", "--out", out / "run", "--modules", modules,
                    "--layers", layers, "--lr", "1e-2", "--warmup", "0", "--batch-groups", "3", "--steps", "6", "--checkpoint-every", "6",
                    "--embed-scale", "exact", *flags)
                adapter = out / "run/checkpoints/step-6"
                found = evaluate(args.binary, folder / "model", adapter, folder / "data.jsonl", out / "eval")
                model, problems = load_in_peft(parity.load(case, config, folder / "model", torch.float32), adapter)
                expected = margins(model, groups)
                error = (found - expected).abs().max().item() / expected.abs().max().item()
                moved = (expected - base).abs().max().item()
                if not saved_again(model, adapter, out / "again"):
                    problems.append("PEFT saves other tensors")
                if not error <= MARGIN:
                    problems.append(f"margins differ by {error:.1e} > {MARGIN}")
                if moved < 1e-2:
                    problems.append("the adapter does nothing")
                failed |= bool(problems)
                count = len(load_file(adapter / "adapter_model.safetensors"))
                print(f"| {folder.name} | {name} | {count} | {error:.1e} | {moved:.2f} | {'; '.join(problems) or 'ok'} |", flush=True)
            ours, theirs = train_both(case, args.binary, config, folder, groups)
            errors = [abs(a - b) / abs(b) for a, b in zip(ours, theirs)]
            # AdamW turns the rounding of near-zero gradients into whole steps, so later losses may differ by more.
            fine = len(ours) == STEPS and errors[0] <= STEP_LOSS and max(errors) <= 1e-3
            failed |= not fine
            steps.append(f"{folder.name}, {STEPS} steps from PEFT's adapter: losses {', '.join(f'{x:.6f}' for x in ours)}; relative to torch's "
                         f"{', '.join(f'{e:.1e}' for e in errors)} {'ok' if fine else 'FAIL'}")
    print(f"\n(transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__})", *steps, sep="\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
