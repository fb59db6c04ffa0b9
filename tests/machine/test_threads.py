"""Work beside other work: order, at most two items alive, threads shared and given back, errors."""

import threading

import pytest
import torch

from turbovaed_cli.machine.threads import beside


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("share", "of_each"), [(True, {1}), (False, {2})])
def test_each_item_is_worked_on_beside_the_next_by_half_of_the_threads(share, of_each):
    made, seen, alive = threading.Event(), set(), []

    def items():
        for number in range(4):
            seen.add(torch.get_num_threads())
            alive.append(number)
            if number == 1:
                made.set()
            yield number

    def work(number):
        assert made.wait(10), "the second item is made while the first is worked on"
        seen.add(torch.get_num_threads())
        return 10 * number

    def results():
        for number, result in beside(work, items(), share_threads=share):
            assert max(alive) <= number + 1, "no third item is made while two are alive"
            yield number, result

    assert list(results()) == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert seen == of_each
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "in_turns"), [(1, False), (2, True)])
def test_one_thread_is_not_shared_and_works_in_turns(threads, in_turns):
    torch.set_num_threads(threads)
    began = []
    items = (began.append(number) or number for number in range(3))
    assert [list(seen) for _, seen in beside(lambda _: tuple(began), items, share_threads=True, in_turns=in_turns)] == [
        [0],
        [0, 1],
        [0, 1, 2],
    ]


def test_an_error_ends_it_and_gives_the_threads_back():
    with pytest.raises(ZeroDivisionError):
        list(beside(lambda number: 1 // number, [2, 1, 0, 3, 4], share_threads=True))
    assert torch.get_num_threads() == 2
