"""Breaks a line of the algorithm, runs the test that guards it, and reports the breaks that no test saw.

    python tests/mutations.py [WORD ...]      # all (about five minutes), or those whose file or rule holds a word

Works on a copy. Exit code 1 when a break survives, or when its line is no longer in the file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent


class Break(NamedTuple):
    rule: str
    file: str
    line: str
    broken: str
    test: str
    """As in pytest: file of tests/, and words for -k."""


BREAKS = (
    Break("std with n - 1", "advantage.py", "rewards.std(-1,", "rewards.std(-1, correction=0,", "test_advantage.py"),
    Break("equal rewards give exact zeros", "advantage.py", "<= ROUNDING *", "<= 0 *", "test_advantage.py"),
    Break("the smaller of the two surrogates", "loss.py", "-torch.minimum(", "-torch.maximum(", "test_loss.py clip"),
    Break("the clips are not swapped", "loss.py", "clamp(1 - clip_low, 1 + clip_high) * advantages",
          "clamp(1 - clip_high, 1 + clip_low) * advantages", "test_loss.py swapped"),
    Break("k3 keeps small differences", "loss.py", "torch.expm1(log_ratio) - log_ratio",
          "log_ratio.float().exp().sub(1) - log_ratio", "test_loss.py k3"),
    Break("log-ratios are bounded", "loss.py", "log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", "log_ratio",
          "test_loss.py absurd"),
    Break("gspo's ratio is the geometric mean", "loss.py", "importance_ratio(batch.mean(logprobs)",
          "importance_ratio(batch.total(logprobs)", "test_learner.py gspo"),
    Break("gspo counts completions", "loss.py", "_replace(loss=batch.spread(surrogate.loss))",
          "_make(map(batch.spread, surrogate))", "test_learner.py counts"),
    Break("cispo's ratio is detached", "loss.py", "importance_ratio(logprobs, old).detach()",
          "importance_ratio(logprobs, old)", "test_learner.py cispo"),
    Break("a masked correction sets the weight to 0", "loss.py", "ratio * (ratio <= cap)", "ratio.clamp(max=cap)",
          "test_learner.py correction"),
    Break("a sequence's correction is the product", "loss.py", "batch.spread(completion_ratio(old_logprobs, batch))",
          "importance_ratio(old_logprobs, batch.sampler_logprobs)", "test_learner.py correction"),
    Break("rloo leaves the completion itself out", "advantage.py", "* size / (size - 1)", "* 1",
          "test_advantage.py rloo"),
    Break("maxrl divides by the mean", "advantage.py", "(rewards.mean(-1, keepdim=True) + EPS)",
          "(rewards.std(-1, keepdim=True) + EPS)", "test_advantage.py maxrl"),
    Break("maxrl refuses negative rewards", "advantage.py", "if (rewards < 0).any():", "if False:",
          "test_advantage.py maxrl"),
    Break("what is left out is not counted", "loss.py", "sum(length > 0 for length in lengths)",
          "len(lengths)", "test_loss.py sum_to_one"),
    Break("temperature", "logprob.py", "beta=0, alpha=1 / temperature", "beta=0, alpha=1.0", "test_logprob.py plain"),
    Break("float32 logits", "logprob.py", "hidden, head = hidden.to(wide), head.to(wide)",
          "hidden = hidden @ head.T; head = torch.eye(len(head)); hidden = hidden.to(wide)",
          "test_logprob.py unrounded"),
    Break("the target's gradient is summed before rounding", "logprob.py", "scatter_(-1, targets, at_target.to(dtype))",
          "scatter_add_(-1, targets, g.to(dtype))", "test_logprob.py certain"),
    Break("the later minibatches' old log-probabilities", "learner.py", "[None, *later]", "[None] * len(minibatches)",
          "test_learner.py two_optimiser"),
    Break("a masked token is no target", "types.py", "zip(positions, self.mask, strict=True) if trained]",
          "zip(positions, self.mask, strict=True)]", "test_learner.py masked"),
    Break("a masked token is not counted", "learner.py", "[len(sample.trained) for sample in samples]",
          "[len(sample.completion_ids) for sample in samples]", "test_learner.py masks"),
    Break("a truncated completion can be masked", "packing.py", "if masked else", "if not masked else",
          "test_packing.py truncation"),
    Break("metrics over all micro-batches", "metrics.py", "total += values.sum(dtype=torch.float64)",
          "total.copy_(values.sum(dtype=torch.float64))", "test_learner.py formula"),
    Break("a non-finite step moves nothing", "learner.py", "if step.finite:", "if True:", "test_learner.py non_finite"),
    Break("a skipped step counts in the schedule", "learner.py", "self.optimizer.skip()", "pass",
          "test_learner.py non_finite"),
    Break("groups that do not divide are refused", "learner.py", "if rest or not groups_per_minibatch:",
          "if not groups_per_minibatch:", "test_learner.py divide"),
    Break("NaN is over every limit", "engines/sync_check.py", "if not mismatch <= limit:", "if mismatch > limit:",
          "test_learner.py nan"),
    Break("a maximum keeps a NaN", "metrics.py", "*np.max(steps, axis=0).tolist()", "*map(max, zip(*steps))",
          "test_learner.py nan"),
    Break("a completion sees its own prompt", "packing.py", "runs.append((sample.completion_ids, prompt, completion))",
          "runs.append((sample.completion_ids, np.arange(len(prompt)), completion))", "test_learner.py formula"),
    Break("the first token is predicted by the prompt's last", "packing.py", "np.append(prompt[-1],",
          "np.append(prompt[-1] - 1,", "test_packing.py predicted"),
    Break("the token budget", "packing.py", "used + cost > capacity", "used + cost > 2 * capacity",
          "test_packing.py budget"),
    Break("float32 masters", "optim.py", "return torch.nn.Parameter(parameter.detach().float())", "return parameter",
          "test_optim.py"),
    Break("moments before the first step", "optim.py", "for master in masters:  #", "for master in ():  #",
          "test_optim.py moments"),
    Break("dropout is 0", "policy.py", "setattr(section, name, 0.0)", "pass", "test_model_check.py dropout"),
    Break("the reference is LoRA's base", "policy.py", "with self.model.disable_adapter():", "if True:",
          "test_policy.py reference"),
)  # fmt: skip


def survives(one: Break, copy: Path) -> str | None:
    """The problem, if the break went unseen."""
    path = copy / "grpo" / one.file
    text = path.read_text()
    if text.count(one.line) != 1:
        return f"{one.line!r} stands in {one.file} {text.count(one.line)} times"
    file, _, words = one.test.partition(" ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{file}"]
    path.write_text(text.replace(one.line, one.broken))
    try:
        run = subprocess.run([*command, *(["-k", words] if words else [])], cwd=copy, capture_output=True, text=True)
    finally:
        path.write_text(text)
    return None if run.returncode == 1 else f"{one.test} did not fail (exit code {run.returncode})"


def main(words: list[str]) -> int:
    chosen = [one for one in BREAKS if not words or any(word in f"{one.file} {one.rule}" for word in words)]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "*.parquet.part")
        shutil.copytree(REPO, copy, ignore=ignored, symlinks=True)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for one in chosen:
            problem = survives(one, copy)
            failed += problem is not None
            print(f"{'SURVIVED' if problem else 'seen':9} {one.rule}{': ' + problem if problem else ''}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} breaks were seen")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
