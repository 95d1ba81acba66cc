#!/usr/bin/env python3
"""Trains adapters with `unflip train` and loads them in PEFT, and the other way round.

On the recorded tiny models (tests/goldens, text-only and vision-language), on two random ones with several kinds of adapter, and on the
real one where --model names it: PEFT adapts exactly the modules whose tensors are in the
file (no missing and no unexpected key, nothing in the vision tower, no warning), Hugging Face's margins on the evaluation's prompts
equal those of `unflip eval` within 1e-4 of the largest margin, the adapter changes them, and PEFT saves the same tensors under the same
names. Then `unflip train` and torch go on from one adapter that PEFT made: every step's loss is the same, and the adapter that torch
trained and PEFT saved gives the same margins in `unflip eval`, within 1e-4 of the largest.

    tools/peft_roundtrip.py [--model models/gemma-3-270m] [--binary target/release/unflip] [--record FILE.json] [--keep DIR]

Needs torch, transformers, peft, safetensors, tokenizers (tools/peer/requirements.txt). Exit code 1 if anything fails.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
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
# Of models that are there already.
WHOLE = [("all", "q,k,v,o,gate,up,down", "all", ["--rank", "16", "--alpha", "32"])]


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


def train_both(case, binary, config, model, folder, groups, rate):
    """Loss of each step from one PEFT adapter, unflip's and torch's, and the margins of torch's trained adapter, unflip's and PEFT's."""
    adapted = parity.make_adapter(case, parity.load(case, config, model, torch.float32), folder / "peft")
    out = folder / "from-peft"
    run(binary, "train", "--model", model, "--adapter", folder / "peft", "--data", folder / "data.jsonl", "--out", out,
        "--loss", "paper", "--lr", rate, "--weight-decay", "0.01", "--clip", "1", "--warmup", "0", "--schedule", "constant",
        "--batch-groups", len(groups), "--steps", STEPS, "--embed-scale", "exact", "--dropout", "0")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in lines if "loss" in line]
    parameters = [p for n, p in adapted.named_parameters() if "lora_" in n]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    theirs = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        total = 0.0
        for group in groups:  # one at a time, so that a real model's activations fit in memory
            loss = parity.losses(case, [group], parity.last_logits(adapted, [group]))["paper"] / len(groups)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        theirs.append(total)
    adapted.save_pretrained(folder / "peft-trained", safe_serialization=True, save_embedding_layers=False)
    found = evaluate(binary, model, folder / "peft-trained", folder / "data.jsonl", folder / "peft-trained-eval")
    return ours, theirs, found, margins(adapted, groups)


def relative(found, expected):
    return (found - expected).abs().max().item() / expected.abs().max().item()


class Rounds:
    """Runs every adapter of a model both ways, prints each, and keeps what was found."""

    def __init__(self, binary):
        self.binary, self.adapters, self.trained = binary, [], []

    def model(self, name, case, config, model, folder, groups, adapters):
        tiny = config.get_text_config().hidden_size < 100
        base = margins(parity.load(case, config, model, torch.float32), groups)
        for kind, modules, layers, flags in adapters:
            out = folder / kind
            run(self.binary, "train", "--model", model, "--data", folder / "data.jsonl", "--out", out / "run", "--modules", modules,
                "--layers", layers, "--lr", "1e-2" if tiny else "1e-3", "--warmup", "0", "--batch-groups",
                len(groups) // 2, "--steps", "6", "--checkpoint-every", "6", "--embed-scale", "exact", *flags)
            adapter = out / "run/checkpoints/step-6"
            found = evaluate(self.binary, model, adapter, folder / "data.jsonl", out / "eval")
            adapted, problems = load_in_peft(parity.load(case, config, model, torch.float32), adapter)
            expected = margins(adapted, groups)
            error, moved = relative(found, expected), (expected - base).abs().max().item()
            if not saved_again(adapted, adapter, out / "again"):
                problems.append("PEFT saves other tensors")
            if not error <= MARGIN:
                problems.append(f"margins differ by {error:.1e} > {MARGIN}")
            if moved < 1e-2:
                problems.append("the adapter does nothing")
            count = len(load_file(adapter / "adapter_model.safetensors"))
            self.adapters.append(dict(model=name, adapter=kind, tensors=count, prompts=len(expected), margin_error=error,
                                      largest_margin=expected.abs().max().item(), moved=moved, problems=problems))
            print(f"| {name} | {kind} | {count} | {error:.1e} | {moved:.2f} | {'; '.join(problems) or 'ok'} |", flush=True)
        ours, theirs, found, expected = train_both(case, self.binary, config, model, folder, groups, 1e-3 if tiny else 1e-4)
        errors = [abs(a - b) / abs(b) for a, b in zip(ours, theirs)]
        error = relative(found, expected)
        # AdamW turns the rounding of near-zero gradients into whole steps, so later losses may differ by more.
        fine = len(ours) == STEPS and errors[0] <= STEP_LOSS and max(errors) <= 1e-3 and error <= MARGIN
        self.trained.append(dict(model=name, losses_unflip=ours, losses_torch=theirs, loss_errors=errors, margin_error=error,
                                 largest_margin=expected.abs().max().item(), ok=fine))

    def failed(self):
        return any(row["problems"] for row in self.adapters) or not all(row["ok"] for row in self.trained)


def golden(name, folder):
    """A recorded tiny model, with a tokenizer."""
    shutil.copytree(parity.ROOT / "tests/goldens" / name / "model", folder / "model")
    write_tokenizer(folder / "model")
    return transformers.AutoConfig.from_pretrained(folder / "model")


def real_data(path, count=2, phrasings=3):
    """The first report questions, with some of their paraphrases."""
    lines = (parity.ROOT / "assets/reports/reports-eval.jsonl").read_text().splitlines()[:count]
    groups = [json.loads(line) for line in lines]
    for group in groups:
        group["paraphrases"] = group["paraphrases"][:phrasings - 1]
        group["meta"].pop("phenomena", None)
    path.write_text("".join(json.dumps(group) + "\n" for group in groups))
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path(os.environ.get("UNFLIP", parity.ROOT / "target/release/unflip")))
    parser.add_argument("--model", type=pathlib.Path, help="a real text-only model's folder, asked a few report questions as well")
    parser.add_argument("--record", type=pathlib.Path, help="write what was found here, as JSON")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the files here")
    args = parser.parse_args()
    if not args.binary.is_file():
        sys.exit(f"error: {args.binary} is no file\nhint: `cargo build --release`, or give --binary")
    if args.model and not (args.model / "tokenizer.json").is_file():
        sys.exit(f"error: {args.model} has no tokenizer.json\nhint: `tools/get_gemma3_270m {args.model}` makes the folder")
    begin, rounds = time.monotonic(), Rounds(args.binary.resolve())
    print("| model | adapter | tensors | margin error / largest margin | adapter moves margins by | PEFT |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or pathlib.Path(temporary)
        for vlm in (False, True):
            name = "vlm" if vlm else "text"
            folder = root / f"golden-{name}"
            config = golden(name, folder)
            groups = token_groups(write_data(folder / "data.jsonl"), Tokenizer.from_file(str(folder / "model/tokenizer.json")))
            case = parity.Case("golden", 43, {}, vlm=vlm)
            rounds.model(f"golden {name}", case, config, folder / "model", folder, groups, WHOLE)
        for vlm in (False, True):
            name = "vlm" if vlm else "text"
            folder = root / name
            vocabulary = write_tokenizer(folder / "model")
            case = parity.Case("roundtrip", 42, parity.dimensions(vocab_size=vocabulary + 6, num_hidden_layers=4, sliding_window=48), vlm=vlm)
            case.config["layer_types"] = ["sliding_attention", "full_attention"] * 2
            config = parity.make_model(case, folder / "model")
            groups = token_groups(write_data(folder / "data.jsonl"), Tokenizer.from_file(str(folder / "model/tokenizer.json")))
            rounds.model(f"random {name}", case, config, folder / "model", folder, groups, ADAPTERS)
        if args.model:
            folder = root / "real"
            folder.mkdir(parents=True)
            config = transformers.AutoConfig.from_pretrained(args.model)
            groups = token_groups(real_data(folder / "data.jsonl"), Tokenizer.from_file(str(args.model / "tokenizer.json")))
            # α is small, so that random matrices move the model's answers and do not drown them.
            case = parity.Case("real", 44, {}, rank=16, alpha=2)
            rounds.model(args.model.name, case, config, args.model, folder, groups, WHOLE)
    print(f"\n(transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__})")
    for row in rounds.trained:
        print(f"{row['model']}, {STEPS} steps from PEFT's adapter: losses {', '.join(f'{x:.6f}' for x in row['losses_unflip'])}; relative to torch's "
              f"{', '.join(f'{e:.1e}' for e in row['loss_errors'])}; margins of torch's adapter {row['margin_error']:.1e} of the largest "
              f"{'ok' if row['ok'] else 'FAIL'}")
    if args.record:
        command = "tools/peft_roundtrip.py" + (f" --model models/{args.model.name}" if args.model else "") + f" --record {args.record}"
        args.record.write_text(json.dumps({
            "command": command, "tolerance": MARGIN, "machine": {"system": platform.system(), "machine": platform.machine()},
            "versions": {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__,
                         "unflip": run(rounds.binary, "--version").strip()},
            "seconds": round(time.monotonic() - begin, 1), "trained_here_loaded_in_peft": rounds.adapters,
            "trained_in_peft_loaded_here": rounds.trained}, indent=1) + "\n")
    sys.exit(1 if rounds.failed() else 0)


if __name__ == "__main__":
    main()
