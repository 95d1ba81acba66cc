#!/usr/bin/env python3
"""The peer, one step at a time: does a training step or an evaluation of one group for each line on stdin (`train [GROUP]`,
`eval [GROUP]`, `peak`) and answers with one line of JSON, so that a race can take turns with it. Loss, model and adapter as in peer_train.py.

  --prefix-cache   prefix once, KV cache repeated (else the group padded to one length, body then head on the last rows)
  --two-rows       evaluation reads two rows of the head instead of all
  --compile WHAT   torch.compile of every decoder layer (layers) or of their MLPs alone (mlp), shapes dynamic
  --keep-hidden    keeps each group's hidden states below the lowest adapted layer from its first step on (padded rows)
"""
import argparse, json, sys, time, warnings
warnings.filterwarnings("ignore")
BEGAN = time.perf_counter()
import torch, torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peer_common import *

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model"); p.add_argument("groups")
p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32"); p.add_argument("--attn", choices=["eager", "sdpa"], default="sdpa")
p.add_argument("--layers", default="all", help="all, or lo-hi inclusive, e.g. 8-11"); p.add_argument("--lora", help="adapter folder to evaluate, unmerged")
p.add_argument("--prefix-cache", action="store_true"); p.add_argument("--two-rows", action="store_true"); p.add_argument("--keep-hidden", action="store_true")
p.add_argument("--compile", choices=["layers", "mlp"])
p.add_argument("--lam", type=float, default=0.1); p.add_argument("--lr", type=float, default=1e-4)
p.add_argument("--threads", type=int, default=2); p.add_argument("--ftz", action="store_true", help="flush denormals to zero")
a = p.parse_args()
torch.set_flush_denormal(a.ftz); torch.manual_seed(0)
data = json.load(open(a.groups)); Y, N = data["answer_ids"]["Yes"], data["answer_ids"]["No"]
m = load(a.model, torch.bfloat16 if a.dtype == "bf16" else torch.float32, a.attn, a.threads)
m.config.use_cache = False
layers = list(range(m.config.num_hidden_layers)) if a.layers == "all" else list(range(int(a.layers.split("-")[0]), int(a.layers.split("-")[1]) + 1))
if a.lora:
    m = PeftModel.from_pretrained(m, a.lora)
else:
    m = get_peft_model(m, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", layers_to_transform=layers,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), autocast_adapter_dtype=a.dtype != "bf16")
core = m.get_base_model()
for layer in core.model.layers if a.compile else []: (layer if a.compile == "layers" else layer.mlp).compile(dynamic=True)
params = [q for q in m.parameters() if q.requires_grad]
opt = torch.optim.AdamW(params, lr=a.lr, weight_decay=0.0) if params else None
kept, below = {}, layers[0]



class Entering(torch.nn.Module):
    """Stands before the lowest adapted layer: notes what enters it, or puts what was noted in its place."""
    def __init__(self, layer): super().__init__(); self.layer, self.group = layer, None; self.attention_type = layer.attention_type
    def forward(self, hidden, **rest):
        if self.group is not None: hidden = kept.setdefault(self.group, hidden.detach())
        return self.layer(hidden, **rest)


class Skipped(torch.nn.Module):
    """A frozen layer that is left out where its result is kept."""
    def __init__(self, layer, entering): super().__init__(); self.layer, self.entering = layer, [entering]; self.attention_type = layer.attention_type
    def forward(self, hidden, **rest):
        return (hidden,) if self.entering[0].group in kept else self.layer(hidden, **rest)


entering = None
if a.keep_hidden:
    if a.prefix_cache or below == 0: sys.exit("error: --keep-hidden needs frozen layers below the adapter and no --prefix-cache")
    stack = core.model.layers
    entering = Entering(stack[below]); stack[below] = entering
    for i in range(below): stack[i] = Skipped(stack[i], entering)


def rows(index):
    g = data["groups"][index]
    if a.prefix_cache: return prefix_hidden(core.model, g["prefix"], g["suffixes"])
    ids, mask, pos = pad_left([g["prefix"] + s for s in g["suffixes"]])
    if entering is not None: entering.group = index
    return core.model(input_ids=ids, attention_mask=mask, position_ids=pos, use_cache=False).last_hidden_state[:, -1].contiguous()


def train(index):
    lg = core.lm_head(rows(index)).float()
    t = torch.full((lg.shape[0],), Y if data["groups"][index]["label"] == "Yes" else N)
    d = lg[:, Y] - lg[:, N]; i, j = torch.triu_indices(len(d), len(d), 1)
    loss = F.cross_entropy(lg, t) + a.lam * (d[i] - d[j]).pow(2).mean()
    loss.backward(); opt.step(); opt.zero_grad(set_to_none=True)
    return {"loss": float(loss.detach())}


@torch.inference_mode()
def evaluate(index):
    h = rows(index)
    lg = (F.linear(h, core.lm_head.weight[[Y, N]]) if a.two_rows else core.lm_head(h)[:, [Y, N]]).float()
    return {"margins": (lg[:, 0] - lg[:, 1]).tolist()}


print(json.dumps({"ready": time.perf_counter() - BEGAN, "groups": len(data["groups"])}), flush=True)
turn = {"train": 0, "eval": 0}
for line in sys.stdin:
    verb, *rest = line.split()
    if verb == "peak":
        print(json.dumps({"peak_resident": round(peak_rss_mb() * 2**20)}), flush=True); continue
    index = int(rest[0]) if rest else turn[verb] % len(data["groups"])
    turn[verb] += 1
    m.train() if verb == "train" else m.eval()
    begin = time.perf_counter(); answer = (train if verb == "train" else evaluate)(index)
    print(json.dumps({"group": index, "seconds": time.perf_counter() - begin, **answer}), flush=True)
