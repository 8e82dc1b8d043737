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


def final_answer(completions, final_answer, **kwargs):
    """
    1 where an answer's box equals the column `final_answer` by math-verify, 0 where it does not, and nothing
    (`None`) where that column cannot be read. DeepMath-103K has this column; TRL's own reward reads another one, in
    which an answer stands between dollar signs.
    """
    return accuracy_reward(completions, [f"${answer}$" for answer in final_answer], **kwargs)
