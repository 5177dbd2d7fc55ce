"""What the divergence from the reference costs at a large vocabulary (docs/results.md, "Safe fine-tuning").

python benchmarks/safety_loss.py [--tokens 1024] [--vocabulary 152000] [--times 5]

Peak memory above the model's own and the time (of the clock, and of the processors) of one forward and backward pass of −log π and KL(π_ref ‖ π) over the whole vocabulary, made in
blocks (toolkit.models.anchor) and directly, each in a process of its own; and how far their values and gradients differ.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

HIDDEN = 256


def one(kind: str, tokens: int, vocabulary: int) -> dict:
    """{"peak": GiB above what stood before, "seconds", "processors": seconds, "nll", "kl", "gradient": its norm}."""
    import torch

    from toolkit.models.anchor import token_terms

    torch.manual_seed(0)
    layer = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(False)
    head = lambda states: layer(states).float()  # noqa: E731
    own = torch.randn(tokens, HIDDEN, requires_grad=True)
    reference, targets = own.detach() + 0.1 * torch.randn(tokens, HIDDEN), torch.randint(0, vocabulary, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, worked = time.perf_counter(), time.process_time()
    if kind == "blocks":
        nll, kl = token_terms(head, own, reference, targets, vocabulary)
    else:
        with torch.no_grad():
            log_p = head(reference).log_softmax(-1)
        log_q = head(own).log_softmax(-1)
        nll, kl = -log_q.gather(-1, targets[:, None])[:, 0], (log_p.exp() * (log_p - log_q)).sum(-1)
    (0.5 * nll + 0.5 * kl).mean().backward()
    times = {"seconds": time.perf_counter() - started, "processors": time.process_time() - worked}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    found = {"nll": nll.mean(), "kl": kl.mean(), "gradient": own.grad.norm()}
    return {"peak": peak, **times, **{k: float(v) for k, v in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--times", type=int, default=5, help="median, least and most of so many")
    parser.add_argument("--one", choices=["blocks", "direct"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.tokens, args.vocabulary)))
        return
    sizes = ["--tokens", str(args.tokens), "--vocabulary", str(args.vocabulary)]
    found: dict[str, list[dict]] = {"blocks": [], "direct": []}
    for _ in range(args.times):  # by turns, so that a slow moment of the machine meets both
        for kind, rows in found.items():
            command = [sys.executable, __file__, "--one", kind, *sizes]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print("| form | peak, GiB | seconds | processors' seconds | −log π | KL | norm of the gradient |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for kind, rows in found.items():
        middle = lambda key, rows=rows: "{1:.2f} ({0:.2f}–{2:.2f})".format(*_spread([r[key] for r in rows]))  # noqa: E731
        f = rows[0]
        print(
            f"| {kind} | {middle('peak')} | {middle('seconds')} | {middle('processors')} | {f['nll']:.5f} | {f['kl']:.6f} | {f['gradient']:.6f} |"
        )


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


if __name__ == "__main__":
    main()
