"""The bank: first in, first out for each code, unit length, halves of each code's projections."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.bank import CodeBank
from rsc_seg.cause.sampling import SeededDraws


def content(bank: CodeBank, code: int) -> set[int]:
    """Entries of a code; `tagged` vectors are told apart by their angle."""
    keys = bank.keys[bank.codes == code]
    return {round(float(torch.atan2(k[1], k[0])) * 1000) for k in keys}


def tagged(numbers: list[int]) -> Tensor:
    """Vectors of various lengths whose angle is the number in thousandths."""
    angle = torch.tensor(numbers) / 1000
    return torch.stack([angle.cos(), angle.sin()], 1) * (1 + torch.arange(len(numbers)))[:, None]


def test_the_oldest_entry_of_a_full_code_leaves() -> None:
    bank = CodeBank(4, 2, per_code=3)
    bank.append(torch.tensor([1, 1, 2]), tagged([10, 11, 20]))
    assert (content(bank, 1), content(bank, 2), len(bank)) == ({10, 11}, {20}, 3)
    bank.append(torch.tensor([1, 1]), tagged([12, 13]))
    assert (content(bank, 1), content(bank, 2), len(bank)) == ({11, 12, 13}, {20}, 4)
    bank.append(torch.tensor([1, 2, 1]), tagged([14, 21, 15]))
    assert (content(bank, 1), content(bank, 2)) == ({13, 14, 15}, {20, 21})
    assert bank.sizes.tolist() == [0, 3, 2, 0]
    assert torch.allclose(bank.keys.norm(dim=1), torch.ones(5))


def test_of_more_than_fit_the_last_ones_stay() -> None:
    bank = CodeBank(2, 2, per_code=3)
    bank.append(torch.zeros(1, dtype=torch.long), tagged([1]))
    bank.append(torch.zeros(5, dtype=torch.long), tagged([2, 3, 4, 5, 6]))
    assert content(bank, 0) == {4, 5, 6} and len(bank) == 3
    bank.append(torch.zeros(1, dtype=torch.long), tagged([7]))
    assert content(bank, 0) == {5, 6, 7}


def test_it_agrees_with_plain_lists_over_many_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, lists = CodeBank(6, 2, per_code=4), defaultdict[int, list[int]](list)
    for start in range(0, 600, 30):
        codes = torch.randint(6, (30,), generator=generator) * torch.randint(2, (30,), generator=generator)
        numbers = list(range(start, start + 30))
        bank.append(codes, tagged(numbers))
        for code, number in zip(codes.tolist(), numbers, strict=True):
            lists[code] = [*lists[code], number][-4:]
    assert {code: content(bank, code) for code in range(6)} == {code: set(lists[code]) for code in range(6)}
    assert len(bank) == sum(map(len, lists.values()))


def test_memory_grows_with_what_is_held() -> None:
    bank = CodeBank(2048, 4, per_code=100)
    assert len(bank._rows) == 1024
    bank.append(torch.arange(2048), torch.randn(2048, 4))
    assert len(bank) == 2048 <= len(bank._rows) < 5000


def test_half_of_each_code_comes_in_rounded_down() -> None:
    bank = CodeBank(5, 3)
    codes = torch.tensor([[0, 1, 1, 2], [2, 2, 3, 2]])  # 1, 2, 4 and 1 projections
    values = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    chosen = bank.update(codes, values, SeededDraws(torch.Generator().manual_seed(0)))
    assert bank.sizes.tolist() == [0, 1, 2, 0, 0]
    assert codes.flatten()[chosen].tolist() == [1, 2, 2]
    assert torch.allclose(bank.keys, F.normalize(values.flatten(0, 1)[chosen], dim=1))
    assert torch.equal(bank.codes, torch.tensor([1, 2, 2]))
