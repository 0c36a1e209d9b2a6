"""GRPO in one file: `python minimal.py` trains a small language model on one addition problem, in about a minute.

The model (data/tiny-base, 0.33M weights) can add with carries but seldom takes the trouble. Training on 567+876 alone
makes it do so, and it then adds other numbers too. Run it in the repository's folder.

Symbols. Shapes stand beside the tensors below.

    q        a prompt of P tokens                       G    completions of one prompt: a group
    o        a completion of at most T tokens           N    completions of one step: QUESTIONS * G
    r        the reward of a completion, one number     V    tokens in the vocabulary
    A        its advantage: (r - mean) / std over its group, the same for all its tokens
    pi(t)    the probability that the model gives to token t of the completion, given what stands before it

    loss = -sum over all completion tokens of A * log pi(t) / number of completion tokens

Omitted parts of GRPO (arXiv 2402.03300) and PPO (arXiv 1707.06347), the reason, and where this repository has them:

    value network    the mean of the group takes its place: the idea of GRPO    grpo/advantage.py: group_advantages
    ratio and clip   with one optimiser step per rollout it is exactly 1       grpo/loss.py: policy_loss
    KL penalty       the published weight is small, and many recipes use 0      grpo/loss.py: kl_k3
    other averages   by completion or by a constant, instead of by token        grpo/loss.py: token_weights
    temperature      it is 1 here; sampler and loss must share any other        grpo/logprob.py: token_logprobs
    micro-batches    all N completions fit in memory at once                    grpo/learner.py: Learner
    packing          28% of the tokens are padding here; it may be most         grpo/packing.py: pack
    bfloat16         float32 weights can take small steps without masters       grpo/optim.py: Optimizer
    a fast sampler   vLLM, and a check that it holds the present weights        grpo/rollout.py: rollout
    a verifier       comparing strings is enough for sums of whole numbers      rewards/verifier.py: Verifier
"""

import re
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "data/tiny-base"
PROBLEM = (567, 876)  # the one problem that is trained on
QUESTIONS, G = 16, 8  # groups, and completions of each: N = 128; the one problem stands in for 16 different ones
T = 40  # a completion is cut after this many tokens
STEPS, LEARNING_RATE, EPS = 60, 1e-4, 1e-6


def load(folder=MODEL):
    """Model (float32, dropout off) and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, problems):
    """[B, P] token ids of the problems as chat prompts. All have three digits, so all have one length."""
    chats = [[{"role": "user", "content": f"{a}+{b}=?"}] for a, b in problems]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return tokenizer(texts, add_special_tokens=False, return_tensors="pt").input_ids


@torch.no_grad()
def sample(model, prompts, stop, greedy=False):
    """[B, P] prompts -> [B, T] completions and [B, T] mask: True up to the stop token, and for the stop token itself.

    Drawn from the model's own distribution, without top-k or top-p, because that is what the loss differentiates.
    """
    tokens, cache, columns = prompts, None, []
    for _ in range(T):
        out = model(tokens, past_key_values=cache, use_cache=True)
        p = out.logits[:, -1].softmax(-1)  # [B, V]: the distribution of the next token
        tokens = p.argmax(-1, keepdim=True) if greedy else torch.multinomial(p, 1)  # [B, 1]
        columns.append(tokens)
        cache = out.past_key_values
    completions = torch.cat(columns, 1)  # [B, T], including what was drawn after the stop token
    stops = (completions == stop).long()
    return completions, stops.cumsum(1) - stops == 0  # no stop token before this one


def reward(text, answer):
    """Text in, number out: 1 for the right answer in the last box, and 0.5 for the layout, whatever the answer."""
    boxes = re.findall(r"\\boxed\{(.*?)\}", text)
    right = bool(boxes) and boxes[-1] == answer
    layout = re.fullmatch(r"<think>.+</think>\\boxed\{\d+\}<reflection>\w+</reflection>", text, re.DOTALL)
    return 1.0 * right + 0.5 * (layout is not None)


def group_advantages(rewards):
    """[QUESTIONS, G] rewards -> [QUESTIONS, G] advantages: distance from the group's mean, in stds."""
    spread = rewards.std(1, keepdim=True)  # [QUESTIONS, 1], the sample's: divided by G - 1
    return (rewards - rewards.mean(1, keepdim=True)) / (spread + EPS)  # equal rewards give zeros


def logprobs(model, prompts, completions):
    """[N, P], [N, T] -> [N, T] log pi(t). What follows the stop token is computed as well, and masked in the loss.

    The output at a token predicts the next one: the last prompt token predicts completion token 0, and so on.
    """
    logits = model(torch.cat([prompts, completions], 1)).logits  # [N, P + T, V]
    logits = logits[:, prompts.shape[1] - 1 : -1]  # [N, T, V]: the outputs that predict the completion
    return logits.log_softmax(-1).gather(-1, completions[:, :, None])[:, :, 0]


def loss_of(logp, advantages, mask):
    """[N, T], [N], [N, T] -> a number whose gradient makes good completions likelier and bad ones less likely."""
    return -(advantages[:, None] * logp * mask).sum() / mask.sum()


def texts_of(tokenizer, completions, mask):
    """The completions as text, up to the stop token."""
    ids = [row[kept].tolist() for row, kept in zip(completions, mask, strict=True)]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def evaluate(model, tokenizer, problems, greedy):
    """Percentage of the problems answered correctly, with one completion each."""
    texts = texts_of(tokenizer, *sample(model, encode(tokenizer, problems), tokenizer.eos_token_id, greedy))
    return 100 * sum(reward(text, str(a + b)) >= 1 for text, (a, b) in zip(texts, problems, strict=True)) / len(texts)


def step(model, tokenizer, optimizer):
    """One step of GRPO: sample, score, compare, learn. Returns the mean reward and one completion."""
    prompts = encode(tokenizer, [PROBLEM]).expand(QUESTIONS * G, -1)  # [N, P]
    completions, mask = sample(model, prompts, tokenizer.eos_token_id)  # [N, T], [N, T]
    texts = texts_of(tokenizer, completions, mask)
    rewards = torch.tensor([reward(text, str(sum(PROBLEM))) for text in texts])  # [N]
    advantages = group_advantages(rewards.view(QUESTIONS, G)).view(-1)  # [N]
    loss = loss_of(logprobs(model, prompts, completions), advantages, mask)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return rewards.mean().item(), texts[0]


def main(steps=STEPS, held_out=300):
    """Trains, and returns held-out accuracy (sampled, greedy) before and after."""
    torch.manual_seed(0)
    model, tokenizer = load()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    drawn = torch.randint(100, 1000, (held_out, 2)).tolist()
    others = [pair for pair in drawn if sorted(pair) != sorted(PROBLEM)]
    before = [evaluate(model, tokenizer, others, greedy) for greedy in (False, True)]
    start = time.perf_counter()
    for i in range(1, steps + 1):
        mean, text = step(model, tokenizer, optimizer)
        print(f"step {i:2d}  reward {mean:.2f}  {text[:90]!r}")
    print(f"{steps} steps in {time.perf_counter() - start:.0f} s")
    after = [evaluate(model, tokenizer, others, greedy) for greedy in (False, True)]
    for name, was, now in zip(("sampled", "greedy"), before, after, strict=True):
        print(f"right on {len(others)} other sums, {name}: {was:.1f}% before, {now:.1f}% after")
    return before, after


if __name__ == "__main__":
    main()
