"""What the terminal shows: a line or a bar a step, and now and then one good and one bad completion."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

from tqdm import tqdm

from grpo.types import Group
from rewards import Score

LONGEST = 1200
"""Characters of a completion that are shown; the rest is in completions/."""
SEPARATORS = "\u2028\u2029"


def say(message: str) -> None:
    """One line on stderr, above the progress bar where there is one."""
    tqdm.write(printable(message), file=sys.stderr)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal spelled out: only newline and tab keep their effect.

    Covers control characters (escape sequences, carriage return), format characters (those that reverse the direction
    of writing), lone surrogates and private or unassigned code points.
    """
    return "".join(character if _harmless(character) else _spelled(character) for character in text)


def _harmless(character: str) -> bool:
    return character in "\n\t" or (unicodedata.category(character)[0] != "C" and character not in SEPARATORS)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def step_line(metrics: dict[str, float], limit: int | None = None) -> str:
    """The step in one line: reward and its parts, length, speed, held-out accuracy; starred where eval.limit is set."""
    star = "*" if limit else ""
    parts = [name for name in metrics if name.startswith("signal/") and not name.endswith("_group_std")]
    shown = {
        "reward": "reward/mean",
        **{name.removeprefix("signal/"): name for name in parts},
        "tokens": "completion/tokens_mean",
        "tokens/s": "speed/tokens_per_second",
        f"sampled{star}": "eval/sampled_accuracy",
        f"greedy{star}": "eval/greedy_accuracy",
    }
    return "  ".join(f"{label} {metrics[key]:.3g}" for label, key in shown.items() if key in metrics)


def before_and_after(summary: dict) -> str:
    """The test figures of the untrained and the trained policy, a line each; empty where nothing was tested."""
    before, after = summary["before"], summary["after"]
    lines = [f"test {name.replace('_', ' '):22}{before[name]:7.1%} -> {after[name]:.1%}" for name in after]
    if lines and summary["limit"]:
        lines.append(f"*: smoke figures, of the first {summary['limit']} problems of each file (eval.limit)")
    return "\n".join(lines)


def good_and_bad(groups: Sequence[Group], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[Score]]) -> str:
    """The step's best and worst completion, as text that is safe to print."""
    places = [(g, i) for g, group in enumerate(scores) for i in range(len(group))]
    best = max(places, key=lambda place: scores[place[0]][place[1]].total)
    worst = min(places, key=lambda place: scores[place[0]][place[1]].total)
    blocks = []
    for label, (g, i) in (("best", best), ("worst", worst)):
        score, completion = scores[g][i], groups[g].completions[i]
        signals = "  ".join(f"{name} {value:g}" for name, value in score.signals.items())
        head = f"{label} of the step: reward {score.total:g}  {signals}  answer {score.answer}"
        head += f"  (truth {groups[g].problem.ground_truth}, {len(completion.ids)} tokens, {completion.finish_reason})"
        blocks.append(
            f"--- {printable(_clip(head, 300)).replace(chr(10), ' ')}\n{printable(_clip(texts[g][i], LONGEST))}"
        )
    return "\n".join(blocks)


def _clip(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"
