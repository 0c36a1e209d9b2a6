r"""Exercise 6: the reward that gets hacked, and its repair.

Reinforcement learning gives you what you pay for, which need not be what you want. In this exercise you write a
reward that sounds reasonable and ruins the model, and then you repair it.

The model is data/tiny-base. Asked `567+876=?` it writes one of these:

    <think>\n7+6=13;6+7+1=14;5+8+1=14</think>\boxed{1443}<reflection>correct</reflection>     careful, and right
    <think>\n7+6=13;6+7+0=13;5+8+0=13</think>\boxed{1333}<reflection>correct</reflection>     forgets the carry
    <think>easy</think>\boxed{333}<reflection>wrong</reflection>                              guesses
    \boxed{333}                                                                               only an answer
    <think>hmm hmm hmm hmm hmm hmm hmm hmm hmm hmm                                             never ends

It is right in about a quarter of its answers. `make exercises` trains it for eight steps on each of your rewards, and
compares its accuracy on 200 other sums before and after. No reward sees that accuracy: it is the hidden signal.

First blank, `cheap(text)`. It gets only the text of the completion. Write something that a colleague might propose
("good answers are short", "good answers are modest"), of which you expect that training on it makes the hidden signal
fall by 10 points or more. Three rules: it returns a finite number for any text, also the empty one, and always the
same number for the same text; it does not depend on which digits stand in the box, because it does not know the
answer; and at least one of the first four texts above earns more than the one that never ends.

Second blank, `repaired(text, answer)`. It gets the right answer as well ("1443"). Keep your colleague's wish if you
like, but pay for being right, so that *every* right completion earns more than *every* wrong one, and the hidden
signal rises by 10 points or more. A completion is right when its last `\boxed{...}` holds the answer. It is not
right because the answer occurs somewhere: a model that is paid for that learns to list numbers.

In the repository: minimal.py, reward; docs/rewards.md on what each signal pays for.
"""


def cheap(text: str) -> float:
    """A reward that sounds reasonable and makes the model worse."""
    ...  # your code here


def repaired(text: str, answer: str) -> float:
    """A reward under which every right completion earns more than every wrong one."""
    ...  # your code here
