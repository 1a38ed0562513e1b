"""GRPO's loss in numbers worked out by hand, and that cutting the step into micro-batches changes nothing."""

import math

import pytest
import torch

from agent_rft.training.local.loss import grpo_loss, k3, token_entropy

LOG2 = math.log(2.0)


def loss_of(new, old, reference, advantages, tokens=None, clip_ratio=0.2, kl_coef=0.0):
    return grpo_loss(
        *(torch.tensor(values, dtype=torch.float64) for values in (new, old, reference, advantages)),
        clip_ratio=clip_ratio,
        kl_coef=kl_coef,
        tokens=tokens or len(new),
    )


def test_on_policy_the_loss_is_minus_the_mean_advantage():
    """Ratio 1 everywhere: -(2 - 1) / 2."""
    assert loss_of([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [2.0, -1.0]).loss.item() == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (2.0, 1.0, -1.2, 1.0),  # a good token gains no more than 1 + 0.2
        (0.5, 1.0, -0.5, 1.0),  # a good token that became unlikely still pulls in full
        (2.0, -1.0, 2.0, 1.0),  # a bad token that became likely still pushes in full
        (0.5, -1.0, 0.8, 1.0),  # a bad token gains no more than 1 - 0.2
        (1.1, 1.0, -1.1, 0.0),
    ],
)
def test_clipping(ratio, advantage, expected, clipped):
    done = loss_of([math.log(ratio)], [0.0], [math.log(ratio)], [advantage])
    assert done.loss.item() == pytest.approx(expected)
    assert done.clip_fraction.item() == clipped


def test_the_kl_estimate_by_hand():
    """Reference twice as likely: exp(ln 2) - ln 2 - 1 = 0.30685; half as likely: 0.5 + 0.69315 - 1 = 0.19315."""
    kl = k3(torch.tensor([0.0, 0.0]), torch.tensor([LOG2, -LOG2]))
    assert kl.tolist() == pytest.approx([0.30685, 0.19315], abs=1e-5)


def test_one_unlikely_token_does_not_outweigh_all_others():
    """exp(6) - 6 - 1 = 396.4 for one token, capped at 10 and without a pull of its own; exp(2) - 2 - 1 = 4.38906 is not.

    The KL's own gradient is new - reference a token, -2 - 0; that of k3 alone would be 1 - exp(2).
    """
    new = torch.tensor([-6.0, -2.0], requires_grad=True)
    kl = k3(new, torch.tensor([0.0, 0.0]))
    kl.sum().backward()
    assert kl.tolist() == pytest.approx([10.0, 4.38906])
    assert new.grad.tolist() == pytest.approx([0.0, -2.0])


def test_the_leash_adds_its_share():
    """0.1 x (0.30685 + 0.19315) / 2 = 0.025, beside a policy part of nothing."""
    done = loss_of([0.0, 0.0], [0.0, 0.0], [LOG2, -LOG2], [0.0, 0.0], kl_coef=0.1)
    assert done.loss.item() == pytest.approx(0.025)
    assert done.kl.item() == pytest.approx(0.25)


def test_every_token_of_the_step_weighs_the_same():
    """A rollout of one token with advantage 1 and one of three with -1: -(1 - 3) / 4, whichever micro-batch they are in."""
    whole = loss_of([0.0] * 4, [0.0] * 4, [0.0] * 4, [1.0, -1.0, -1.0, -1.0])
    parts = [loss_of([0.0], [0.0], [0.0], [1.0], tokens=4), loss_of([0.0] * 3, [0.0] * 3, [0.0] * 3, [-1.0] * 3, tokens=4)]
    assert whole.loss.item() == sum(part.loss.item() for part in parts) == pytest.approx(0.5)


def test_entropy_of_a_fair_coin_is_one_bit():
    assert token_entropy(torch.tensor([[0.5, 0.5], [1.0, 1e-30]]).log()).tolist() == pytest.approx([LOG2, 0.0])
