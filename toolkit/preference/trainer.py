"""TRL's DPO trainer with another loss: what comes in is TRL's, what a pair costs is preference.losses."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from trl import DPOTrainer
from trl.trainer import utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from toolkit.models.anchor import Anchor, answer_terms, last_states, row_sums
from toolkit.preference import losses

# TRL ≥ 1.16 computes log-probabilities in chunks of the vocabulary, inside the model; older ones make all logits
FUSED = hasattr(utils, "add_fused_lm_head")


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batch (chosen answers, then rejected ones), each pair's `weights` (B,), 1 where it has none, and its `risks` (B,)."""

    def torch_call(self, examples):
        found = {"weights": torch.tensor([float(e.get("weight", 1.0)) for e in examples])}
        if "risk" in examples[0]:
            found["risks"] = torch.tensor([float(e["risk"]) for e in examples])
        return {**super().torch_call(examples), **found}


def trainer_for(loss: str, odds: float = 0.25, anchor: Anchor | None = None) -> type[DPOTrainer]:
    """DPOTrainer whose loss is `ddpo`, `orpo` or `dorpo`; β is DPOConfig's, λ is `odds`.

    With an anchor a pair of risk s costs α · loss + β_s · KL(π_ref ‖ π) on its chosen answer, in the loss's own units: DPO's
    β times the sum over the answer's tokens where the loss sees sums (dpo, ddpo), the mean over them where it sees means. Not
    published; chosen so that neither drowns the other at any length.
    """

    class PairTrainer(DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            """Mean over the pairs of a batch; over `of` pairs where the batch is only a part of one."""
            if return_outputs:
                raise NotImplementedError("logits are not kept: they would cost a vocabulary for every token")
            inputs = dict(inputs)
            weights, risks = inputs.pop("weights"), inputs.pop("risks", None)
            of = inputs.pop("of", len(weights))
            inner = self.accelerator.unwrap_model(model)
            with last_states(inner) if anchor else nullcontext() as seen:
                (chosen, rejected), lengths, aux = self.answers(model, inputs)
            if loss == "ddpo":
                ref_chosen, ref_rejected = self.compute_ref_log_probs(model, inputs)
                ratios = chosen - ref_chosen, rejected - ref_rejected
                each = losses.ddpo(ratios[0] - ratios[1], weights, self.beta)
                note = {"chosen": self.beta * ratios[0], "rejected": self.beta * ratios[1]}
            else:
                means = chosen / lengths[0], rejected / lengths[1]
                each = losses.dorpo(*means, weights if loss == "dorpo" else torch.ones_like(weights), odds)
                note = {"chosen": losses.log_odds(means[0]), "rejected": losses.log_odds(means[1])}
            self._note(note, chosen, rejected, weights)
            share = 1.0
            if anchor:
                beta = anchor.betas(risks).to(each.device)
                kl = self._divergence(inner, inputs, seen[0])
                each, share = (1 - beta) * each + beta * kl, (1 - beta).mean()
                self._note_held(beta, risks)
            return each.sum() / of + (0.0 if aux is None else share * self.router_aux_loss_coef * aux)

        def answers(self, model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            """Of (2B, T) tokens, chosen answers, then rejected ones: each answer's log-probability (2, B), its tokens (2, B), and a
            mixture of experts' balance loss or None.
            """
            logps, aux = token_logps(self, model, inputs)
            lengths = inputs["completion_mask"].sum(1).clamp(min=1)
            return torch.stack(logps.sum(1).chunk(2)), torch.stack(lengths.chunk(2)), aux

        def _divergence(self, inner, inputs: dict, states) -> torch.Tensor:
            """(B,) KL(π_ref ‖ π) of the chosen answers; `states` (2B, T, H) as the loss's own pass left them."""
            half = len(states) // 2
            ids, mask = inputs["input_ids"][:half], inputs["completion_mask"][:half]
            known = {"input_ids": ids, "attention_mask": inputs["attention_mask"][:half]}
            reference = anchor.reference_states(inner, known)
            _, kl, row = answer_terms(inner, states[:half], reference, ids, mask)
            total, tokens = row_sums(kl, row, half), mask[:, 1:].sum(1).clamp(min=1)
            self._note_safety("kl", total.detach() / tokens)
            return self.beta * total if loss == "ddpo" else total / tokens

        def _note_held(self, beta, risks) -> None:
            for name, value in (("beta", beta), ("risk", risks.to(beta))):
                self._note_safety(name, value)

        def _note_safety(self, name: str, value) -> None:
            self._metrics["train"][f"safety/{name}"].append(self.accelerator.gather(value).mean().item())

        @torch.no_grad()
        def _note(self, rewards: dict, chosen, rejected, weights) -> None:
            """What TRL would log. Rewards are β · log-ratios, or log-odds where there is no reference."""
            gap = rewards["chosen"] - rewards["rejected"]
            values = {
                "rewards/chosen": rewards["chosen"],
                "rewards/rejected": rewards["rejected"],
                "rewards/margins": gap,
                "rewards/accuracies": (gap > 0).float(),
                "logps/chosen": chosen,
                "logps/rejected": rejected,
                "weights": weights,
            }
            mode = "train" if self.model.training else "eval"
            for name, value in values.items():
                self._metrics[mode][name].append(self.accelerator.gather(value).float().mean().item())

    return PairTrainer


def token_logps(trainer: DPOTrainer, model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of every answer token, 0 elsewhere, (2B, T − 1); and a mixture of experts' balance loss, or None."""
    ids, mask = inputs["input_ids"], inputs["completion_mask"]
    known = {k: v for k, v in inputs.items() if k not in ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")}
    known["use_cache"] = False
    if trainer.aux_loss_enabled:
        known["output_router_logits"] = True
    if FUSED:
        out = model(**known, labels=ids.masked_fill(mask == 0, -100), fused_lm_head=True)
        logps = out.log_probs[:, -(ids.shape[1] - 1) :]
    else:
        out = model(**known)
        logps = utils.selective_log_softmax(out.logits[:, :-1], ids[:, 1:]) * mask[:, 1:]
    return logps, out.aux_loss if trainer.aux_loss_enabled else None
