"""GRPO's loss over sampled tokens. Pure arithmetic on tensors of one entry a token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GAP_CAP, KL_CAP = 20.0, 10.0


class TokenLoss(NamedTuple):
    """What one micro-batch adds to the step: sums over its tokens, already divided by the step's number of tokens."""

    loss: Tensor
    kl: Tensor
    clip_fraction: Tensor


def grpo_loss(
    new: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, *, clip_ratio: float, kl_coef: float, tokens: int
) -> TokenLoss:
    """Clipped policy gradient with a leash to the reference, as a mean over the step's sampled tokens.

    new, old, reference: log-probability of each sampled token now, when it was sampled, and under the frozen reference.
    advantages: that of the token's rollout. tokens: how many sampled tokens all micro-batches of the step hold together,
    so that the step's gradient is the same however it is cut into micro-batches.

    Every token weighs the same; a mean within each rollout first would favour short right answers and long wrong ones.
    """
    ratio = torch.exp(new - old)
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages)
    kl = k3(new, reference)
    clipped = ((ratio - 1).abs() > clip_ratio).float()
    return TokenLoss((kl_coef * kl - gain).sum() / tokens, kl.detach().sum() / tokens, clipped.sum() / tokens)


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """Schulman's third estimate of KL(policy || reference) from the policy's samples: never negative, and capped a token.

    Its plain gradient is not that of the KL, because what is sampled changes with the policy too. A weight of 1 whose
    gradient is that of the sample's own log-probability makes it so: new - reference a token, times the gradient of new.

    Uncapped its mean is right on average and useless step by step: a single token that the policy said against all odds,
    and the reference would have said gladly, outweighs the thousand others, in figure and gradient. A capped token has
    no gradient. NeMo RL weighs and caps in the same way.
    """
    gap = reference - new
    held = gap.clamp(-GAP_CAP, GAP_CAP)
    weight = torch.exp(new - new.detach())
    weight = torch.where(gap == held, weight, weight.detach())
    return (weight * (torch.exp(held) - held - 1)).clamp(max=KL_CAP)


def token_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row's distribution, in nats."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
