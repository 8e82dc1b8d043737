"""Rows that end in a loop: the last tokens are the same piece over and over."""

import torch


# A tail is a loop if its last piece stands there at least so often, over at least so many tokens. Of 32 greedy answers
# of SmolLM2-135M-Instruct, 12 were cut at 448 tokens: these numbers find the ten of them that loop, and not the two
# that count on. Of 8,000 texts that people wrote (code, manuals, tables, data), cut at random places, they find none.
LONGEST_PIECE = 128
REPETITIONS = 3
SHORTEST_TAIL = 32


def looped_tail_B(token_BT: torch.Tensor, own_BT: torch.Tensor) -> torch.Tensor:
    """
    Whether a row ends in a loop: for some period `p` of 1 to 128 tokens, `y_t = y_(t-p)` among the last
    `max(3 p, 32)` tokens. A piece that is cut short at the end still counts; one in which a token changes does not.

    Args:
        token_BT (`torch.Tensor`): Token ids.
        own_BT (`torch.Tensor`): Which of them count: what the student sampled, without the token that ended the row,
            padding and tool output. What stands between them is left out, not compared.

    Returns:
        `torch.Tensor`: `looped_B`; false for a row of fewer than 32 such tokens.
    """
    longest = min(LONGEST_PIECE, token_BT.shape[1] // REPETITIONS)  # no more can fit into a row
    width = max(REPETITIONS * longest, SHORTEST_TAIL)
    count_BT = own_BT.long().cumsum(dim=1)
    back_W = torch.arange(width - 1, -1, -1, device=token_BT.device)
    wanted_BW = count_BT[:, -1:] - back_W  # the number of each of the last own tokens in its row, from 1
    place_BW = torch.searchsorted(count_BT, wanted_BW).clamp(max=token_BT.shape[1] - 1)
    tail_BW = torch.where(wanted_BW > 0, token_BT.gather(1, place_BW), -1 - back_W)  # nothing equals a missing token
    looped_B = torch.zeros(len(token_BT), dtype=torch.bool, device=token_BT.device)
    for period in range(1, longest + 1):
        start = width - max(REPETITIONS * period, SHORTEST_TAIL)
        looped_B |= (tail_BW[:, start + period :] == tail_BW[:, start : width - period]).all(dim=1)
    return looped_B
