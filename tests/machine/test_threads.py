"""Work beside other work: order, at most two items alive, threads shared and given back, errors; work spread over threads."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.machine.threads import beside, spread


@pytest.fixture(autouse=True)
def _two_threads(set_threads):
    set_threads(2)


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


@pytest.mark.parametrize("inference", [True, False])
def test_spread_work_takes_one_of_torchs_threads_for_each_worker(inference):
    """Each item once; workers at the same time, none with itself; without gradients, in the caller's mode."""
    together, seen, busy = threading.Barrier(2), [], [threading.Lock(), threading.Lock()]
    weight = torch.ones(3, requires_grad=True)

    def work(item, worker):
        assert busy[worker].acquire(blocking=False)
        if item < 2:
            together.wait(10)
        made = weight * item
        seen.append((item, torch.get_num_threads(), made.requires_grad, made.is_inference()))
        busy[worker].release()

    with torch.inference_mode(inference):
        spread(work, range(6), 2)
    assert sorted(seen) == [(item, 1, False, inference) for item in range(6)]
    assert torch.get_num_threads() == 2
    of_another = []
    thread = threading.Thread(target=lambda: of_another.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_another == [2], "threads that begin later have what torch was told"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system keeps no thread on a core")
def test_as_many_workers_as_cores_have_one_each_and_the_caller_all(set_threads):
    cores, seen = os.sched_getaffinity(0), {}
    workers = len(cores)
    set_threads(workers)
    together = threading.Barrier(workers)

    def work(_, worker):
        together.wait(10)
        seen[worker] = os.sched_getaffinity(0)

    spread(work, range(workers), workers)
    assert workers == 1 or (sorted(map(len, seen.values())) == [1] * workers and set.union(*seen.values()) == cores)
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_spread_work_is_raised_and_no_more_begins(failing):
    began, failed = [], threading.Event()

    def work(item, worker):
        began.append(item)
        if worker == failing:
            failed.set()
            raise ZeroDivisionError
        assert failed.wait(10)
        time.sleep(0.05)

    with pytest.raises(ZeroDivisionError):
        spread(work, range(100), 2)
    assert len(began) < 100
    done = []
    spread(lambda item, _: done.append(item), range(5), 2)
    assert sorted(done) == list(range(5)), "the threads go on with other work"


def test_each_thread_that_spreads_work_has_workers_of_its_own():
    """Two at the same time take four workers: none waits for those of the other."""
    together, ended = threading.Barrier(4), []

    def one():
        torch.set_num_threads(2)
        spread(lambda *_: together.wait(10), range(2), 2)
        ended.append(True)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True, True]


def test_fewer_cores_than_workers_stay_in_one_thread(monkeypatch):
    monkeypatch.setattr("turbovaed_cli.machine.threads._cores", lambda: [0])
    seen = []
    spread(lambda item, worker: seen.append((item, worker, threading.get_ident())), range(3), 2)
    assert seen == [(item, item % 2, threading.get_ident()) for item in range(3)]


def test_work_that_is_watched_stays_in_its_thread():
    seen = []
    with FlopCounterMode(display=False) as counter:
        spread(
            lambda item, worker: seen.append((item, worker, threading.get_ident(), torch.ones(2, 2) @ torch.ones(2, 2))),
            range(4),
            2,
        )
    assert [one[:3] for one in seen] == [(item, item % 2, threading.get_ident()) for item in range(4)]
    assert counter.get_total_flops() == 4 * 16


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list a process's threads")
def test_threads_that_wait_for_this_ones_next_operation_end_before_work_is_spread():
    def num_threads():
        return len(list(Path("/proc/self/task").iterdir()))

    spread(lambda *_: None, range(2), 2)
    before = num_threads()
    assert torch.ones(2**20).add_(1).sum() == 2**21
    assert num_threads() == before + 1
    spread(lambda *_: None, range(2), 2)
    assert num_threads() == before
    assert torch.ones(2**20).add_(1).sum() == 2**21


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_threads_of_its_own():
    spread(lambda *_: None, range(4), 2)
    child = os.fork()
    if not child:
        done = []
        try:
            spread(lambda item, _: done.append(item), range(4), 2)
        finally:
            os._exit(len(done))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
