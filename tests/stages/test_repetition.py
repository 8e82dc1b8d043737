"""Which rows end in a loop."""

import pytest
import torch

from fire_opd_trl.stages import looped_tail_B


def looped(tokens: list[int], own: list[int] | None = None) -> bool:
    return looped_tail_B(torch.tensor([tokens]), torch.tensor([own or [1] * len(tokens)]).bool()).item()


@pytest.mark.parametrize(
    "tokens, loops",
    [
        (list(range(300)), False),
        ([7] * 32, True),
        ([7] * 31, False),  # too short: a line of equal signs
        ([1, 2, 3] * 11, True),  # 33 tokens
        ([1, 2, 3] * 10, False),  # 30
        (list(range(100, 200)) + [5, 6] * 16, True),  # what stands before it does not matter
        ([5, 6] * 16 + [9], False),  # it must go on to the end
        (list(range(128)) * 3, True),  # the longest piece, three times
        (list(range(128)) * 3 + list(range(30)), True),  # and cut short
        ((list(range(128)) * 3)[1:], False),  # too few
        (list(range(129)) * 3, False),  # a piece too long
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 9] * 4, True),
        ([token for count in range(40) for token in (1, 2, 100 + count)], False),  # it counts: "Step 1", "Step 2"
        ([], False),
    ],
)
def test_a_row_loops_if_its_last_tokens_are_one_piece_over_and_over(tokens, loops):
    assert looped(tokens or [0], [1] * len(tokens) or [0]) is loops


def test_padding_tool_output_and_the_rows_beside_it_never_change_whether_a_row_loops():
    looping, other, short = [1, 2, 3] * 20, list(range(60)), [4] * 20
    token_BT = torch.tensor([looping, other, short + [0] * 40, [0] * 60])
    own_BT = torch.ones_like(token_BT).bool()
    own_BT[2, 20:] = own_BT[3] = False
    assert looped_tail_B(token_BT, own_BT).tolist() == [
        True,
        False,
        False,
        False,
    ]  # 40 equal tokens of padding are no loop
    wide_BT, wide_own_BT = torch.zeros(4, 500, dtype=torch.long), torch.zeros(4, 500, dtype=torch.bool)
    columns = torch.arange(60) * 8  # seven tokens of something else behind each
    wide_BT[:, columns], wide_own_BT[:, columns] = token_BT, own_BT
    assert looped_tail_B(wide_BT, wide_own_BT).tolist() == [True, False, False, False]
