"""A reward model bounded by the verifier: a wrong answer never outranks a right one.

correct: (1 - b) + 2b * s, wrong: -a + 2a * s, with s = (rm - min) / (max - min + eps) the reward model's score, scaled
by the smallest and largest score of a warm-up. With a = b = 0.5: right answers get 0.5 .. 1.5, wrong ones -0.5 .. 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards.score import RewardError, Row, Score
from rewards.signals import MultiSignalMathReward

DEFAULT_MODEL = "nvidia/AceMath-7B-RM"
BATCH = 8
"""Completions in one forward pass"""
MAX_TOKENS = 4096
"""Limit of question and completion together; a longer text loses its beginning"""


class RewardModel:
    """A Hugging Face sequence-classification model with one output, in bf16.

    `device` auto: cuda if there is one. `offload` keeps the weights in main memory between calls.
    """

    def __init__(self, name: str, offload: bool = False, device: str = "auto") -> None:
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = automatic if device == "auto" else device
        self.offload = offload
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="right", truncation_side="left")
            self.model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.bfloat16)
        except OSError as error:
            raise RewardError(
                f"cannot read the reward model {name}: {str(error).splitlines()[0]}; give a folder with model and "
                "tokenizer, or a Hugging Face id and a network"
            ) from error
        self.model.eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def conversation(self, question: str, completion: str) -> str:
        """The question and its answer in the reward model's own chat template, as it was trained to read them."""
        if self.tokenizer.chat_template is None:
            return f"{question}\n\n{completion}{self.tokenizer.eos_token or ''}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False)

    @torch.inference_mode()
    def score(self, questions: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One number for each completion, read as the assistant's whole turn after the question."""
        texts = [self.conversation(*pair) for pair in zip(questions, completions, strict=True)]
        texts = [text.encode("utf-8", "replace").decode() for text in texts]  # no tokenizer takes a lone surrogate
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # similar lengths: little padding
        scores = torch.zeros(len(texts))
        self.model.to(self.device)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[row] for row in rows],
                add_special_tokens=False,  # the template has them
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            scores[rows] = self.model(**batch.to(self.device)).logits[:, 0].float().cpu()
        if self.offload:
            self.model.to("cpu")
        return scores.tolist()


class HybridReward(MultiSignalMathReward):
    """Verifier and reward model. The scale is set once: by `calibrate`, a checkpoint, or else the first batch.

    Scores outside the scale are clipped to it; otherwise an outlier would lift a wrong answer above a right one.
    `a`, `b`, `eps`: see the module. `warmup`: completions for `calibrate`.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        a: float = 0.5,
        b: float = 0.5,
        eps: float = 0.01,
        warmup: int = 1024,
        offload: bool = False,
        device: str = "auto",
        **verifier_options: Any,
    ) -> None:
        if not (a >= 0 and b >= 0 and a + b <= 1):
            raise RewardError(
                f"hybrid reward: a={a}, b={b}: need a, b >= 0 with a + b <= 1 "
                "(or a wrong answer could outrank a right one)"
            )
        super().__init__(0.0, 0.0, 0.0, **verifier_options)
        self.weights = {"hybrid": 1.0, "verify": 0.0, "model": 0.0}
        self.a, self.b, self.eps, self.warmup = a, b, eps, warmup
        self.name = model
        self.model = RewardModel(model, offload, device)
        self.scale: tuple[float, float] | None = None

    @property
    def calibration_size(self) -> int:
        return self.warmup if self.scale is None else 0

    def calibrate(self, completions: Sequence[str], rows: Sequence[Row]) -> None:
        opinions = self.model.score([row["question"] for row in rows], completions)
        self.scale = min(opinions), max(opinions)

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], rows: Sequence[Row] | None = None
    ) -> list[Score]:
        """Returns scores in order. Each row must hold its question: a reward model judges the answer to a question."""
        if rows is None or not all("question" in row for row in rows):
            raise RewardError('hybrid reward: pass the questions to score_batch: rows=[{"question": ...}, ...]')
        scores = super().score_batch(completions, ground_truths, rows)
        opinions = self.model.score([row["question"] for row in rows], completions)
        self.scale = low, high = self.scale or (min(opinions), max(opinions))
        return [self._weighed(score, opinion, low, high) for score, opinion in zip(scores, opinions, strict=True)]

    def _weighed(self, score: Score, opinion: float, low: float, high: float) -> Score:
        s = min(max((opinion - low) / (high - low + self.eps), 0.0), 1.0)
        total = (1 - self.b) + 2 * self.b * s if score.outcome == "correct" else -self.a + 2 * self.a * s
        return replace(score, total=total, signals={"hybrid": total, "verify": score.verify, "model": s})

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.name, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("model") != self.name:
            raise RewardError(
                f"hybrid reward: model {self.name!r}, but the checkpoint was made with {state.get('model')!r}"
            )
        self.scale = state["scale"]
