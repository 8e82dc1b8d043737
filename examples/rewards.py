"""
Rewards for the recipes: whether an answer is right. `reward_funcs` names one as `FILE.py:NAME`, and a reward of your
own likewise.
"""

import importlib.util

from trl.rewards import accuracy_reward


if (
    importlib.util.find_spec("math_verify") is None
):  # TRL's reward says so at its first call, after a window is sampled
    raise ImportError("it needs math-verify: pip install -e '.[eval]'")


def final_answer(completions, final_answer=None, answer=None, **kwargs):
    """
    1 where an answer's box equals the column `final_answer` by math-verify, 0 where it does not, and nothing
    (`None`) where that column cannot be read. DeepMath-103K has this column, and what `fire-opd data` writes has
    `answer` in its place; TRL's own reward reads another one, in which an answer stands between dollar signs.
    """
    right = answer if final_answer is None else final_answer
    if right is None:
        raise ValueError("The reward final_answer reads a column `final_answer` or `answer`. The rows have neither.")
    return accuracy_reward(completions, ["" if one is None else f"${one}$" for one in right], **kwargs)
