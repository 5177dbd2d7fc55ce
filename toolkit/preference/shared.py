"""The preference step with nothing computed twice: a pair's prompt once for both answers, the head on answer tokens only, the
reference once a pair, and the layers below the lowest adapter once a pair too.

Measured against TRL's own step in docs/results.md. Log-probabilities are TRL's up to rounding (tests/test_shared_prompt.py).
"""

import functools
import hashlib
import types
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import nn

from toolkit.models.anchor import BLOCK
from toolkit.models.lower import KEPT, layers_from, lowest_adapted, plain_kind, states_into
from toolkit.records import append_jsonl, read_jsonl

TRIED = 64  # tokens of each answer by which the shared pass is compared: no more logits than that are made
FILE = "reference.jsonl"
# mean difference in nats a token between the shared and the plain pass at which the shared one is taken to be the same function
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class Row:
    """Tokens of one forward pass, and which answer tokens are read from it.

    ids (1, T); `at` (N,): positions whose next token is the answer token `targets` (N,); `rejected` (N,): whether it is of the
    rejected answer; `parts` (prompt, first answer, second answer): lengths, the last 0 where the pass has one answer only.
    """

    ids: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    rejected: torch.Tensor
    parts: tuple[int, int, int]

    def layout(self) -> dict[str, torch.Tensor]:
        """Positions (1, T) and mask (1, 1, T, T): the second answer follows the prompt and does not see the first.

        Nothing for a pass with one answer, which is a text like any other.
        """
        prompt, first, second = self.parts
        if not second:
            return {}
        total, device = prompt + first + second, self.ids.device
        positions = torch.arange(total, device=device)
        positions[prompt + first :] -= first
        mask = torch.ones(total, total, dtype=torch.bool, device=device).tril_()
        mask[prompt + first :, prompt : prompt + first] = False
        return {"position_ids": positions[None], "attention_mask": mask[None, None]}


def rows_of(prompt: list[int], chosen: list[int], rejected: list[int], shared: bool, device="cpu") -> list[Row]:
    """The forward passes of a pair: one, with the prompt shared by both answers, or one an answer."""
    tensor = functools.partial(torch.tensor, device=device)
    p, c, r = len(prompt), len(chosen), len(rejected)
    own = lambda start, n: [p - 1, *range(start, start + n - 1)]  # noqa: E731
    if shared:
        flags = tensor([False] * c + [True] * r)
        at = tensor(own(p, c) + own(p + c, r))
        return [Row(tensor([prompt + chosen + rejected]), at, tensor(chosen + rejected), flags, (p, c, r))]
    return [
        Row(tensor([prompt + answer]), tensor(own(p, n)), tensor(answer), tensor([flag] * n), (p, n, 0))
        for answer, n, flag in ((chosen, c, False), (rejected, r, True))
    ]


def worth_sharing(prompt: int, chosen: int, rejected: int, layer: int, width: int) -> bool:
    """Whether reading the prompt once saves more than attention over both answers in one row costs.

    Args:
        prompt, chosen, rejected: tokens. layer: weights of one layer; width: of its queries, all heads together.
    """
    saved = prompt * 2 * layer  # multiply-adds of the prompt's second reading, × 2
    plain = (
        (prompt + chosen) ** 2 + (prompt + rejected) ** 2
    ) / 2  # causal attention skips the upper half, a mask does not
    return saved > 4 * width * ((prompt + chosen + rejected) ** 2 - plain)


def query_width(config) -> int:
    """Elements of a token's queries in one layer, all heads together."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


class AnswerLogps(torch.autograd.Function):
    """log softmax(states · weightᵀ)[target] of N tokens, (N,) float32; few logits at a time, each made once.

    The gradient with respect to a state is weight[target] − Σ p · weight, times what comes from above: it is made in the forward
    pass while the logits are there, instead of making them again (2 instead of 3 products with the vocabulary).
    """

    @staticmethod
    def forward(ctx, states, weight, targets):
        size = max(1, BLOCK // (4 * weight.shape[0]))
        needed = ctx.needs_input_grad[0]
        logps = torch.empty(len(targets), device=states.device)
        slopes = torch.empty_like(states) if needed else None
        for at in range(0, len(targets), size):
            part = slice(at, at + size)
            logits = (states[part] @ weight.T).float()
            logits -= logits.amax(-1, keepdim=True)
            said = logits.gather(-1, targets[part, None])
            # in place: logsumexp would make a second block, and this one's exponentials twice
            total = logits.exp_().sum(-1, keepdim=True)
            logps[part] = (said - total.log())[:, 0]
            if needed:
                slopes[part] = weight[targets[part]] - logits.div_(total).to(weight.dtype) @ weight
            del logits, said, total  # before the next block is asked for
        ctx.slopes = slopes
        return logps

    @staticmethod
    def backward(ctx, above):
        return (ctx.slopes.float() * above[:, None]).to(ctx.slopes.dtype), None, None


def answer_logps(base, row: Row, start: int = 0, states: torch.Tensor | None = None) -> torch.Tensor:
    """(N,) log-probability of each answer token of a row; `states` (1, T, H) are the ones that come into layer `start`."""
    source = {"input_ids": row.ids} if states is None else {"inputs_embeds": states}
    with layers_from(base.base_model, 0 if states is None else start):
        out = base.base_model(**source, **row.layout(), use_cache=False).last_hidden_state[0]
    return AnswerLogps.apply(out[row.at], base.get_output_embeddings().weight, row.targets)


def lower_states(base, row: Row, start: int) -> torch.Tensor:
    """(1, T, H): what comes into layer `start`."""
    return states_into(base.base_model, start, input_ids=row.ids, **row.layout())


def why_plain(model, example: tuple[list[int], list[int], list[int]]) -> str:
    """Why this model's pairs are read the plain way; "" when the shared pass is the same function.

    What is known to differ is named; anything else is tried on one pair (prompt, chosen, rejected token ids).
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    config, backbone, head = base.config.get_text_config(), base.base_model, base.get_output_embeddings()
    if why := plain_kind(config):
        return why
    if not isinstance(getattr(backbone, "layers", None), nn.ModuleList):
        return f"the layers of {config.model_type} are not where they are looked for"
    if type(head) is not nn.Linear or head.bias is not None:
        return "its head is not a plain one"
    if config._attn_implementation != "sdpa":
        return f"attention is {config._attn_implementation}, not sdpa"
    prompt, chosen, rejected = example
    gap = _gap(model, base, (prompt, chosen[:TRIED], rejected[:TRIED]))
    return "" if gap <= SAME.get(base.dtype, 0.0) else f"the shared pass differs by {gap:.3f} nats a token"


@torch.no_grad()
def _gap(model, base, example) -> float:
    """Mean difference of the answer tokens' log-probabilities between the shared pass, cut in two, and the model's own."""
    training = model.training
    model.eval()
    shared = rows_of(*example, True, base.device)[0]
    middle = len(base.base_model.layers) // 2
    try:
        found = answer_logps(base, shared, middle, lower_states(base, shared, middle))
        own = []
        for row in rows_of(*example, False, base.device):
            logits = base(input_ids=row.ids, use_cache=False, logits_to_keep=len(row.at) + 1).logits[0, :-1].float()
            own.append(logits.log_softmax(-1).gather(-1, row.targets[:, None])[:, 0])
    except (RuntimeError, TypeError, KeyError, IndexError, AttributeError, ValueError):
        return float("inf")
    finally:
        model.train(training)
    return float((found - torch.cat(own)).abs().mean())


class PairsAsTheyAre:
    """Batch of token ids, pair by pair: {"pairs": [(prompt, chosen, rejected)], "weights": (B,)}. Nothing is padded."""

    def __call__(self, examples: list[dict]) -> dict:
        pairs = [(e["prompt_ids"], e["chosen_ids"], e["rejected_ids"]) for e in examples]
        return {"pairs": pairs, "weights": torch.tensor([float(e.get("weight", 1.0)) for e in examples])}


def shared_trainer_for(loss: str, odds: float, out: Path, reference: str):
    """`trainer_for`, pair by pair and with nothing computed twice.

    Args:
        out: FILE in it keeps the reference's log-probabilities, so that a resumed training does not make them again.
        reference: what tells this reference from others, such as the weights' hash.
    """
    from trl.trainer.utils import use_adapter

    from toolkit.preference.trainer import trainer_for

    class SharedTrainer(trainer_for(loss, odds)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._base = self.model.get_base_model()
            self._start, self._kept, self._room = lowest_adapted(self._base), {}, KEPT
            self._known = {row["key"]: (row["chosen"], row["rejected"]) for row in read_jsonl(out / FILE)}
            self._new: list[dict] = []  # rows of FILE that this step makes
            self._layer = sum(
                p.numel() for n, p in self._base.base_model.layers[0].named_parameters() if "lora_" not in n
            )
            _answer_too(self._base)

        def training_step(self, model, inputs, num_items_in_batch=None):
            """A batch pair by pair, each with its backward pass: one pair's activations are there at a time."""
            count = len(inputs["pairs"])
            ones = [
                {"pairs": inputs["pairs"][i : i + 1], "weights": inputs["weights"][i : i + 1], "of": count}
                for i in range(count)
            ]
            loss = sum(super(SharedTrainer, self).training_step(model, one, num_items_in_batch) for one in ones)
            self._keep_references()
            return loss

        def floating_point_ops(self, inputs):
            return 0  # counted by columns that these inputs do not have; nobody reads it

        def answers(self, model, inputs: dict) -> tuple:
            ((prompt, chosen, rejected),) = inputs["pairs"]
            width = query_width(self._base.config)
            shared = worth_sharing(len(prompt), len(chosen), len(rejected), self._layer, width)
            device = self.accelerator.device
            rows = rows_of(prompt, chosen, rejected, shared, device)
            key = hashlib.sha256(repr((reference, prompt, chosen, rejected)).encode()).hexdigest()[:24]
            self._now = key, rows, self._lower(key, rows)
            return (
                self._sums(model, rows, self._now[2]),
                torch.tensor([[len(chosen)], [len(rejected)]], device=device),
                None,
            )

        def compute_ref_log_probs(self, model, inputs):
            """The reference's, of the pair that `answers` has just read: from the disk where they stand there."""
            key, rows, states = self._now
            if key not in self._known:
                peft = self.accelerator.unwrap_model(self.model)
                with torch.no_grad(), use_adapter(peft, "ref" if "ref" in peft.peft_config else None):
                    sums = self._sums(peft, rows, states)[:, 0].tolist()
                self._known[key] = tuple(sums)
                self._new.append({"key": key, "chosen": sums[0], "rejected": sums[1]})
            return torch.tensor(self._known[key], device=self.accelerator.device)[:, None]

        def _keep_references(self) -> None:
            """What this step found of the reference: to the disk, and to the other processes, which may get the pair next time."""
            found, self._new = gather_object(self._new), []
            self._known |= {row["key"]: (row["chosen"], row["rejected"]) for row in found}
            if found and self.accelerator.is_main_process:
                append_jsonl(out / FILE, found)

        def _sums(self, model, rows: list[Row], states: list) -> torch.Tensor:
            """(2, 1): log-probability of the chosen and of the rejected answer."""
            total = [0.0, 0.0]
            for row, state in zip(rows, states, strict=True):
                found = model(answers=row, inputs_embeds=state, start_layer=self._start)
                for side in (0, 1):
                    total[side] = total[side] + found[row.rejected == bool(side)].sum()
            return torch.stack(total)[:, None]

        def _lower(self, key: str, rows: list[Row]) -> list[torch.Tensor | None]:
            """What comes into the lowest adapted layer, for each row: the same in every epoch and for the reference."""
            if not self._start:
                return [None] * len(rows)
            if key in self._kept:
                return [state.to(self.accelerator.device) for state in self._kept[key]]
            found = [lower_states(self._base, row, self._start) for row in rows]
            size = sum(s.numel() * s.element_size() for s in found)
            if self.args.num_train_epochs > 1 and size <= self._room:
                self._kept[key], self._room = [s.cpu() for s in found], self._room - size
            return found

    return SharedTrainer


def _answer_too(base) -> None:
    """base(answers=row, …) gives `answer_logps`: through the model's forward, so that what wraps a model sees the pass."""
    original = base.forward

    @functools.wraps(type(base).forward)  # `generate` checks its arguments against the signature
    def forward(self, *args, answers: Row | None = None, start_layer: int = 0, **kwargs):
        if answers is None:
            return original(*args, **kwargs)
        return answer_logps(self, answers, start_layer, kwargs.get("inputs_embeds"))

    base.forward = types.MethodType(forward, base)
