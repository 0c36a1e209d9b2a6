"""Every estimator, loss, aggregation and correction on one set of numbers: ours, by hand, TRL's and verl's.

Two minibatches of two groups of four completions, 1 to 7 tokens long. One group is flat, some tokens are masked, ratios
lie on both sides of both clips, and the sampler is off by up to a factor of e. All numbers are multiples of 2^-10, so
that float32, in which TRL keeps the sampler's log-probabilities, holds them exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from test_learner import naive_surrogate
from tiny_model import REPO, make_tiny_model

from grpo import advantage
from grpo.advantage import compute_advantages, group_advantages
from grpo.learner import Learner
from grpo.loss import kl_k3
from grpo.settings import Config, LearnerConfig, RolloutConfig
from grpo.types import Sample
from rewards import Score

GROUP, GROUPS, MAX_TOKENS, EPS_OF_TRL = 4, 4, 9, 1e-4
REWARDS = ((1.0, 0.0, 0.0, 0.5), (0.25, 0.25, 0.25, 0.25), (0.0, 2.0, 0.5, 0.5), (1.5, 0.0, 0.75, 0.75))
SECOND_SIGNAL = ((0.0, 1.0, 1.0, 0.0), (0.5, 0.5, 0.5, 0.5), (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))
SIGNAL_WEIGHTS = {"verify": 1.0, "format": 0.5}
CLIP_LOW, CLIP_HIGH, CAP = 0.125, 0.25, 1.5
AGGREGATIONS = ("token-mean", "seq-mean", "dr_grpo")


class Numbers:
    """[16, 7] padded log-probabilities; `mask` is True for the trained tokens."""

    def __init__(self, seed: int = 94) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> torch.Tensor:
            values = low + (high - low) * torch.rand(GROUP * GROUPS, 7, generator=generator, dtype=torch.float64)
            return (values * 2**10).round() / 2**10

        self.lengths = torch.randint(1, 8, (GROUP * GROUPS,), generator=generator)
        written = torch.arange(7) < self.lengths[:, None]
        self.mask = written & (
            (torch.arange(7) != 2) | (torch.arange(16) % 3 > 0)[:, None]
        )  # every third: a tool's token
        self.written = written
        self.old = uniform(-3.0, -1.0)
        self.new = self.old + uniform(-0.5, 0.5) + uniform(-0.5, 0.5)[:, :1]  # gspo's means as well
        self.sampler = self.old + uniform(-1.0, 1.0)
        self.rewards = torch.tensor(REWARDS, dtype=torch.float64)
        # The mean of another group than their own: positive, negative and, for the flat group, zero advantages.
        self.advantages = group_advantages(self.rewards, "dr_grpo").flatten()


NUMBERS = Numbers()
MINIBATCHES = (slice(0, 8), slice(8, 16))


@dataclass(frozen=True)
class Settings:
    loss: str = "grpo"
    aggregation: str = "token-mean"
    correction: str = "none"
    clip_low: float = CLIP_LOW

    @property
    def learner(self) -> LearnerConfig:
        return LearnerConfig(
            loss=self.loss,
            loss_aggregation=self.aggregation,
            sampler_correction=self.correction,
            sampler_correction_cap=CAP,
            clip_low=self.clip_low,
            clip_high=CLIP_HIGH,
            grad_clip=1e9,
            microbatch_tokens=20,
        )


Result = tuple[torch.Tensor, torch.Tensor]
"""[2] losses of the minibatches, [16, 7] gradient by the new log-probabilities"""


def by_minibatch(loss_of: Callable[[slice, torch.Tensor], torch.Tensor]) -> Result:
    """The loss of each minibatch, and the gradient of their sum."""
    new = NUMBERS.new.clone().requires_grad_()
    losses = torch.stack([loss_of(rows, new) for rows in MINIBATCHES])
    losses.sum().backward()
    return losses.detach(), new.grad


# ---- ours


class GivenLogprobs:
    """A policy whose parameters are the log-probabilities themselves, in the order of the trained tokens."""

    device, dtype, lora = torch.device("cpu"), torch.float64, False

    def __init__(self, logprobs: torch.Tensor) -> None:
        self.values = torch.nn.Parameter(logprobs.clone())

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {"logprobs": self.values}

    def logprobs(self, batch, temperature, with_entropy=True):
        logprobs = self.values[batch.flat_index]
        return logprobs, torch.zeros_like(logprobs)


def ours(settings: Settings) -> Result:
    """The learner's own loss and gradient, in micro-batches of at most 20 tokens."""
    losses, gradient = [], torch.zeros_like(NUMBERS.new)
    for rows in MINIBATCHES:
        mask = NUMBERS.mask[rows]
        samples = [
            Sample(
                prompt_ids=(row // GROUP,),
                completion_ids=tuple(range(int(NUMBERS.lengths[row]))),
                sampler_logprobs=tuple(NUMBERS.sampler[row, : NUMBERS.lengths[row]].tolist()),
                advantage=NUMBERS.advantages[row].item(),
                mask=tuple(NUMBERS.mask[row, : NUMBERS.lengths[row]].tolist()),
            )
            for row in range(rows.start, rows.stop)
        ]
        policy = GivenLogprobs(NUMBERS.new[rows][mask])
        config = Config(learner=settings.learner, rollout=RolloutConfig(max_new_tokens=MAX_TOKENS))
        learner = Learner(policy, config)
        assert len(learner.micro_batches(samples)) > 1
        losses.append(learner._accumulate(samples, NUMBERS.old[rows][mask]).loss)
        gradient[rows][mask] = policy.values.grad
    return torch.tensor(losses, dtype=torch.float64), gradient


# ---- by hand


def by_hand(settings: Settings) -> Result:
    """Loops over completions and tokens, in float64, as the formulas are printed."""

    def loss_of(rows: slice, new: torch.Tensor) -> torch.Tensor:
        counts = NUMBERS.mask[rows].sum(1).tolist()
        total = torch.zeros((), dtype=torch.float64)
        for row in range(rows.start, rows.stop):
            kept = NUMBERS.mask[row]
            n = int(kept.sum())
            numbers = (new[row][kept], NUMBERS.old[row][kept], NUMBERS.sampler[row][kept])
            tokens = naive_surrogate(settings.learner, *numbers, NUMBERS.advantages[row].item()) if n else []
            share = {"token-mean": 1 / sum(counts), "dr_grpo": 1 / (8 * MAX_TOKENS), "seq-mean": 1 / (8 * max(n, 1))}
            total = total + share[settings.aggregation] * sum(tokens)
        return total

    return by_minibatch(loss_of)


# ---- verl


def of_verl(settings: Settings) -> Result | str:
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
    from verl.workers.config import ActorConfig

    aggregation = {"token-mean": "token-mean", "seq-mean": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=CLIP_LOW,
        clip_ratio_high=CLIP_HIGH,
        clip_ratio_c=1e9,  # verl's dual clip (arXiv 1912.09729), which we do not have, is out of reach
        global_batch_info={"loss_scale_factor": MAX_TOKENS},
    )

    def loss_of(rows: slice, new: torch.Tensor) -> torch.Tensor:
        mask, old = NUMBERS.mask[rows].double(), NUMBERS.old[rows]
        advantages = NUMBERS.advantages[rows, None].expand(mask.shape)
        weights = None
        if settings.correction != "none":
            level, above = settings.correction.split("_")
            threshold = CAP if above == "truncate" else f"1e-30_{CAP}"
            weights, _ = compute_rollout_correction_weights(old - NUMBERS.sampler[rows], mask, level, threshold)
        function = {
            "grpo": core_algos.compute_policy_loss_vanilla,
            "gspo": core_algos.compute_policy_loss_gspo,
            "cispo": core_algos.compute_policy_loss_cispo,
            "reinforce": core_algos.compute_policy_loss_reinforce,
        }[settings.loss]
        return function(old, new[rows], advantages, mask, aggregation[settings.aggregation], config, weights)[0]

    return by_minibatch(loss_of)


# ---- TRL


def trl_trainer(rloo: bool = False, correction: str = "none", reward_weights: list[float] | None = None, **settings):
    """TRL's own trainer. Its forward pass returns NUMBERS, and so does its rollout."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    trainer_class, config_class = (trl.RLOOTrainer, trl.RLOOConfig) if rloo else (trl.GRPOTrainer, trl.GRPOConfig)
    lengths = NUMBERS.lengths.tolist()

    class OnNumbers(trainer_class):
        rows, new = slice(0, 16), NUMBERS.new

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            logprobs = self.new[self.rows] if torch.is_grad_enabled() else NUMBERS.old[self.rows]
            return logprobs, torch.zeros_like(logprobs), None

        def _generate(self, prompts):
            if not rloo:
                return super()._generate(prompts)  # calls rollout
            return [[5]] * 16, [[6] * length for length in lengths], ["a"] * 16

    def rollout(prompts, trainer):
        rows = range(trainer.rows.start, trainer.rows.stop)
        return {
            "prompt_ids": [[5]] * len(rows),
            "completion_ids": [[6] * lengths[row] for row in rows],
            "logprobs": [NUMBERS.sampler[row, : lengths[row]].tolist() for row in rows],
            "env_mask": [NUMBERS.mask[row, : lengths[row]].int().tolist() for row in rows],
        }

    def reward_function(name: str, signal: tuple[tuple[float, ...], ...]):
        def reward(prompts, **_):
            return NUMBERS.rewards.new_tensor(signal).flatten()[trainer.rows].tolist()

        reward.__name__ = name
        return reward

    functions = [reward_function("verify", REWARDS)]
    if reward_weights:
        functions.append(reward_function("format", SECOND_SIGNAL))
    config = config_class(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        epsilon=CLIP_LOW,
        report_to=[],
        gradient_checkpointing=False,
        beta=0.0,
        reward_weights=reward_weights,
        **settings,
    )
    trainer = OnNumbers(
        model=make_tiny_model(),
        reward_funcs=functions,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 16),
        processing_class=AutoTokenizer.from_pretrained(REPO / "data" / "tiny-base"),
        **({} if rloo else {"rollout_func": rollout}),
    )
    trainer.model.eval()  # in training mode TRL divides by its accumulation steps
    trainer.num_generations_eval = GROUP
    if correction != "none":
        trainer.use_vllm, trainer._last_loaded_step = (
            True,
            trainer.state.global_step,
        )  # no vLLM: rollout has the numbers
        trainer.vllm_importance_sampling_mode = correction
        trainer.vllm_importance_sampling_clip_max = CAP
    return trainer


def of_trl(settings: Settings) -> Result | str:
    if settings.loss not in ("grpo", "gspo", "cispo"):
        return "has no such loss"
    if settings.loss == "cispo" and settings.aggregation != "token-mean":
        return "its cispo has the token mean only"
    loss_type = {"token-mean": "dapo", "seq-mean": "grpo", "dr_grpo": "dr_grpo"}[settings.aggregation]
    level = "sequence" if settings.loss == "gspo" else "token"
    # cispo in TRL: epsilon_high is the bound itself, and there is no lower bound.
    high = {"loss_type": "cispo", "epsilon_high": 1 + CLIP_HIGH} if settings.loss == "cispo" else {}
    options = {"loss_type": loss_type, "epsilon_high": CLIP_HIGH, "importance_sampling_level": level} | high
    trainer = trl_trainer(**options, correction=settings.correction)

    def loss_of(rows: slice, new: torch.Tensor) -> torch.Tensor:
        trainer.rows, trainer.new = rows, new
        inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * 8)
        inputs |= {"advantages": NUMBERS.advantages[rows], "old_per_token_logps": NUMBERS.old[rows]}
        return trainer._compute_loss(trainer.model, inputs)

    return by_minibatch(loss_of)


# ---- estimators


def estimator_of_ours(name: str) -> torch.Tensor:
    scores = [
        [
            Score(
                first + (0.5 * second if name == "gdpo" else 0.0), {"verify": first, "format": second}, None, None, ""
            )
            for first, second in zip(*signals, strict=True)
        ]
        for signals in zip(REWARDS, SECOND_SIGNAL, strict=True)
    ]
    return compute_advantages(scores, SIGNAL_WEIGHTS, name)


def estimator_by_hand(name: str) -> torch.Tensor:
    eps = advantage.EPS

    def compared(group: tuple[float, ...], name: str) -> list[float]:
        n, mean = len(group), sum(group) / len(group)
        std = (sum((r - mean) ** 2 for r in group) / (n - 1)) ** 0.5
        return {
            "grpo": [(r - mean) / (std + eps) for r in group],
            "dr_grpo": [r - mean for r in group],
            "rloo": [r - (sum(group) - r) / (n - 1) for r in group],
            "maxrl": [(r - mean) / (mean + eps) for r in group],
            "none": list(group),
        }[name]

    if name != "gdpo":
        return torch.tensor([compared(group, name) for group in REWARDS], dtype=torch.float64)
    first, second = (
        torch.tensor([compared(group, "grpo") for group in signal], dtype=torch.float64)
        for signal in (REWARDS, SECOND_SIGNAL)
    )
    total = first + 0.5 * second
    return total / (total.std() + eps)


def estimator_of_verl(name: str) -> torch.Tensor | str:
    from verl.trainer.ppo import core_algos

    index, mask = np.repeat(np.arange(GROUPS), GROUP), torch.ones(16, 1, dtype=torch.float64)
    rewards = NUMBERS.rewards.reshape(16, 1)
    if name in ("grpo", "dr_grpo"):
        compute = core_algos.compute_grpo_outcome_advantage
        return compute(rewards, mask, index, norm_adv_by_std_in_grpo=name == "grpo")[0].reshape(GROUPS, GROUP)
    if name == "rloo":
        return core_algos.compute_rloo_outcome_advantage(rewards, mask, index)[0].reshape(GROUPS, GROUP)
    if name == "gdpo":
        signals = {"verify": np.array(REWARDS).flatten(), "format": np.array(SECOND_SIGNAL).flatten()}
        batch = {"prompts": torch.zeros(16, 1), "attention_mask": torch.ones(16, 2, dtype=torch.long)}
        config = type("Algorithm", (dict,), {})(
            gdpo_reward_keys=list(signals), gdpo_reward_weights=list(SIGNAL_WEIGHTS.values())
        )
        found, _ = core_algos.compute_gdpo_outcome_advantage(
            torch.zeros(16, 1), mask.float(), index, config=config, non_tensor_batch=signals, batch=batch
        )
        return found.reshape(GROUPS, GROUP)
    return "has no such estimator"


def estimator_of_trl(name: str) -> torch.Tensor | str:
    options = {
        "grpo": {"scale_rewards": "group"},
        "dr_grpo": {"scale_rewards": "none"},
        "gdpo": {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": list(SIGNAL_WEIGHTS.values())},
    }
    if name not in (*options, "rloo"):
        return "has no such estimator"
    trainer = trl_trainer(rloo=name == "rloo", **options.get(name, {}))
    return trainer._generate_and_score_completions([{"prompt": "a"}] * 16)["advantages"].reshape(GROUPS, GROUP)


# ---- the table


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, by the largest number."""
    return ((ours - theirs.double()).abs().max() / theirs.abs().max()).item()


def bound(value: float) -> str:
    """The smallest of a few bounds that holds: figures of rounding differ from machine to machine."""
    return next((f"< {limit:.0e}" for limit in (1e-12, 1e-9, 1e-6) if value < limit), f"**{value:.1e}**")


class Cell:
    """A comparison with one other source: the largest difference of value and gradient, or why it is missing."""

    def __init__(self, text: str, worst: float = 0.0) -> None:
        self.text, self.worst = text, worst

    @classmethod
    def of(cls, ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...] | str, note: str = "") -> Cell:
        if isinstance(theirs, str):
            return cls(theirs)
        worst = max(difference(a, b) for a, b in zip(ours, theirs, strict=True))
        return cls(bound(worst) + note, worst)


Row = tuple[str, str, Cell, Cell, Cell]


def loss_rows() -> list[Row]:
    cases = [
        Settings(loss, aggregation) for loss in ("grpo", "gspo", "cispo", "reinforce") for aggregation in AGGREGATIONS
    ]
    corrections = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    cases += [Settings("grpo", "token-mean", correction) for correction in corrections]
    cases += [Settings("gspo", "seq-mean", correction) for correction in corrections[2:]]
    rows = []
    for case in cases:
        result, compared, note = ours(case), case, ""
        trl = of_trl(case)
        if case.loss == "cispo" and not isinstance(trl, str):
            compared, note = (
                Settings(case.loss, case.aggregation, case.correction, clip_low=0.999),
                ", without a lower clip (a)",
            )
        name = case.loss if case.correction == "none" else f"{case.loss}, {case.correction}"
        cells = Cell.of(result, by_hand(case)), Cell.of(ours(compared), trl, note), Cell.of(result, of_verl(case))
        rows.append((name, case.aggregation, *cells))
    return rows


def estimator_rows() -> list[Row]:
    rows = []
    for name in (*advantage.ESTIMATORS, "gdpo"):
        result = (estimator_of_ours(name),)
        hand, verl, trl = estimator_by_hand(name), estimator_of_verl(name), estimator_of_trl(name)
        note = ", with its eps of 1e-4 (b)" if name in ("grpo", "gdpo") else ""
        whitened = ", with its whitening (c)" if name == "gdpo" else ""
        ours_for_trl = with_eps(EPS_OF_TRL, name) if note else result
        # verl whitens: it subtracts the mean, which is 0 here, and divides by sqrt(variance + 1e-8).
        total = result[0] * (1 + advantage.EPS / unscaled_std(result[0])) if whitened else result[0]
        hand, trl, verl = (value if isinstance(value, str) else (value,) for value in (hand, trl, verl))
        cells = Cell.of(result, hand), Cell.of(ours_for_trl, trl, note), Cell.of((total,), verl, whitened)
        rows.append((name, "", *cells))
    return rows


def unscaled_std(advantages: torch.Tensor) -> float:
    """The s of x / (s + eps) whose standard deviation is s / (s + eps)."""
    std = advantages.std().item()
    return advantage.EPS * std / (1 - std)


def with_eps(eps: float, name: str) -> tuple[torch.Tensor, ...]:
    before, advantage.EPS = advantage.EPS, eps
    try:
        return (estimator_of_ours(name),)
    finally:
        advantage.EPS = before


def k3_row() -> Row:
    from verl.trainer.ppo.core_algos import kl_penalty_forward

    ref = NUMBERS.sampler

    def with_gradient(k3: Callable[[torch.Tensor], torch.Tensor]) -> Result:
        new = NUMBERS.new.clone().requires_grad_()
        values = k3(new)[NUMBERS.mask]
        values.sum().backward()
        return values.detach(), new.grad

    hand = with_gradient(lambda new: (ref - new).exp() - (ref - new) - 1)
    result = with_gradient(lambda new: kl_k3(new, ref))
    verl = with_gradient(lambda new: kl_penalty_forward(new, ref, "low_var_kl"))
    return "k3", "", Cell.of(result, hand), Cell("in a whole step, below (d)"), Cell.of(result, verl)


HEAD = "| `{}` | aggregation | by hand | TRL 1.16 | verl 0.9.1 |\n|---|---|---|---|---|"


def lines(title: str, rows: list[Row]) -> list[str]:
    return [
        *HEAD.format(title).splitlines(),
        *(
            f"| {name} | {aggregation} | " + " | ".join(cell.text for cell in cells) + " |"
            for name, aggregation, *cells in rows
        ),
    ]


@cache
def tables() -> tuple[list[Row], str]:
    estimators, losses = estimator_rows(), [*loss_rows(), k3_row()]
    text = "\n".join([*lines("learner.advantage", estimators), "", *lines("learner.loss", losses)])
    return [*estimators, *losses], text


START, END = "<!-- written by python tests/peers/write_table.py -->", "<!-- end of the written table -->"
PAGE = Path(REPO) / "docs" / "measurements" / "peers.md"


def committed() -> str:
    return PAGE.read_text().partition(START)[2].partition(END)[0].strip()
