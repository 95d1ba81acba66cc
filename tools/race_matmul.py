#!/usr/bin/env python3
"""Races the engine's GEMM against torch's float32 matmul on the projections of a Gemma 3 270M layer.

Both compute x·Wᵀ and dy·W at 420 rows with the same number of threads, in turns within one run, so that both meet the
same clock and the same neighbours. The engine reads W as bf16 and packs it inside the timed call; torch gets W in f32,
ready. Needs torch in the Python that runs it, and cargo.

    tools/race_matmul.py [--threads 2] [--rounds 9] [--passes 5] [--isa NAME] [--output FILE.json]

Prints a table of medians over the rounds and writes every round to docs/benchmarks/matmul-<machine>.json.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build() -> str:
    """Builds the benchmark and returns the path of its executable."""
    command = ["cargo", "build", "--release", "--bench", "projections", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    messages = (json.loads(line) for line in lines)
    paths = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "projections"]
    return paths[-1]


def torch_products(torch, shapes, rows):
    """One callable per product, in the engine's order, over operands made once."""
    generator = torch.Generator().manual_seed(1)
    products = []
    for shape in shapes:
        weight = torch.rand(shape["out"], shape["in"], generator=generator) * 2 - 1
        forward = shape["pass"] == "forward"
        left = torch.rand(rows, shape["in"] if forward else shape["out"], generator=generator) * 2 - 1
        products.append((left, weight.t() if forward else weight))
    return products


def torch_round(torch, products, passes):
    """Median seconds of each product over the passes, after one pass to warm up."""
    seconds = [[] for _ in products]
    for index in range(passes + 1):
        for times, (left, right) in zip(seconds, products):
            start = time.perf_counter()
            torch.mm(left, right)
            elapsed = time.perf_counter() - start
            if index:
                times.append(elapsed)
    return [statistics.median(times) for times in seconds]


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        return re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text()).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=5, help="runs of every product within a round")
    parser.add_argument("--rows", type=int, default=420)
    parser.add_argument("--isa", help="instruction set of the engine; the best by default")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    command = [build(), "--threads", str(arguments.threads), "--rows", str(arguments.rows)]
    command += ["--passes", str(arguments.passes)]
    if arguments.isa:
        command += ["--isa", arguments.isa]

    rounds, products = [], None
    for _ in range(arguments.rounds):
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        products = products or torch_products(torch, report["products"], arguments.rows)
        rounds.append({"engine": report, "torch_seconds": torch_round(torch, products, arguments.passes)})

    first = rounds[0]["engine"]
    peaks = [statistics.median(r["engine"][key] for r in rounds) for key in ("peak_one_core_gflops", "peak_gflops")]
    machine = cpu_name()
    mkl = re.search(r"Math Kernel Library Version (\S+)", torch.__config__.parallel_info())
    print(f"{machine}, {first['isa']}, {arguments.threads} threads, {arguments.rows} rows, {len(rounds)} rounds")
    print(f"torch {torch.__version__}" + (f" with MKL {mkl.group(1)}" if mkl else ""))
    print(f"peak multiply-add rate: one core {peaks[0]:.1f}, all {peaks[1]:.1f} GFLOP/s\n")
    print(f"{'product':<14}{'in':>6}{'out':>6}{'engine':>9}{'torch':>9}  GFLOP/s, median   engine/torch")
    table, totals = [], [0.0, 0.0]
    for index, product in enumerate(first["products"]):
        engine = statistics.median(r["engine"]["products"][index]["seconds"] for r in rounds)
        other = statistics.median(r["torch_seconds"][index] for r in rounds)
        work = 2e-9 * arguments.rows * product["in"] * product["out"]
        totals = [totals[0] + engine, totals[1] + other]
        name = f"{product['projection']} {product['pass']}"
        print(f"{name:<14}{product['in']:>6}{product['out']:>6}{work / engine:>9.1f}{work / other:>9.1f}{other / engine:>33.2f}")
        table.append({"product": name, "engine_gflops": work / engine, "torch_gflops": work / other})
    per_round = [
        sum(r["torch_seconds"]) / sum(p["seconds"] for p in r["engine"]["products"]) for r in rounds
    ]
    ratio = totals[1] / totals[0]
    print(f"\ntime-weighted: engine at {100 * ratio:.0f} % of torch's speed", end=" ")
    print(f"(rounds {100 * min(per_round):.0f} to {100 * max(per_round):.0f} %, median {100 * statistics.median(per_round):.0f} %)")

    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = arguments.output or ROOT / "docs" / "benchmarks" / f"matmul-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine,
        "isa": first["isa"],
        "threads": arguments.threads,
        "rows": arguments.rows,
        "torch": torch.__version__,
        "mkl": mkl.group(1) if mkl else None,
        "date": time.strftime("%Y-%m-%d"),
        "peak_one_core_gflops": peaks[0],
        "peak_gflops": peaks[1],
        "time_weighted_ratio": ratio,
        "medians": table,
        "rounds": rounds,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"raw numbers: {path}")


if __name__ == "__main__":
    main()
