"""Decodes captured in graphs give the frames of those that are not, on a CPU whose graphs are recorded operations (cpu_graphs)."""

import itertools

import cpu_graphs
import pytest
import torch
from members import NAMED, built

from turbovaed_cli.models import gpu_graphs
from turbovaed_cli.models.gpu_form import GRAPHS, form_of
from turbovaed_cli.models.gpu_graphs import Graph
from turbovaed_cli.models.streaming import StreamingDecoder


@pytest.fixture
def graphs(monkeypatch):
    return cpu_graphs.install(monkeypatch)


def clip(frames, seed, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, frames, 2, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMED)
def test_whole_clips_are_replayed_with_their_own_latents(name, graphs):
    student = built(NAMED[name])
    fast = form_of(student, GRAPHS)
    with torch.no_grad():
        for frames, seed in ((3, 0), (3, 1), (3, 2), (2, 3), (3, 4), (3, 5)):
            assert (fast.decode(clip(frames, seed)) - student(clip(frames, seed))).abs().max() <= 1e-9
    assert (graphs.made, graphs.replays) == (2, 3)  # the second, third and last clip; another shape is another graph


def test_a_video_that_was_returned_does_not_change_with_the_next_one(graphs):
    student = built(NAMED["8x8x8"])
    fast = form_of(student, GRAPHS)
    fast.decode(clip(2, 0))
    fast.decode(clip(2, 0))
    first = fast.decode(clip(2, 1))
    fast.decode(clip(2, 2))
    with torch.no_grad():
        assert (first - student(clip(2, 1))).abs().max() <= 1e-9


@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in NAMED), ("keeps first frames", 2)])
def test_pieces_of_a_stream_are_replayed_once_they_repeat(name, batch, graphs):
    student = built(NAMED[name])
    latents = clip(42, 0, batch)
    stream = StreamingDecoder(form_of(student, GRAPHS))
    # Pieces of one shape, then others, then the first shape again: the frames that are kept in between are the same ones.
    pieces = latents.split([2] * 14 + [1, 3, 2, 2, 2, 1, 1, 2], dim=2)
    made = torch.cat([*map(stream.push, pieces), stream.finish()], dim=2)
    with torch.no_grad():
        wanted = student(latents)
    assert made.shape == wanted.shape and (made - wanted).abs().max() <= 1e-9
    assert graphs.made == batch and graphs.replays >= 3 * batch


def test_the_next_clip_of_a_stream_has_a_graph_of_its_own(graphs):
    student = built(NAMED["images"])
    stream = StreamingDecoder(form_of(student, GRAPHS))
    for seed in (0, 1):
        latents = clip(30, seed)
        made = torch.cat([*map(stream.push, latents.split(1, dim=2)), stream.finish()], dim=2)
        with torch.no_grad():
            assert (made - student(latents)).abs().max() <= 1e-9
    assert graphs.made == 2


def test_latents_are_brought_to_the_device_and_its_precision_before_a_capture(graphs, monkeypatch):
    """A copy from the CPU cannot be captured."""
    seen = []
    made = Graph.__init__
    monkeypatch.setattr(Graph, "__init__", lambda self, *arguments: (seen.append(arguments[1].dtype), made(self, *arguments))[1])
    fast = form_of(built(NAMED["images"]), GRAPHS)
    stream = StreamingDecoder(fast)
    for piece in clip(30, 0).float().split(1, dim=2):
        stream.push(piece)
    for _ in range(2):
        fast.decode(clip(2, 0).float())
    assert seen == [torch.float64, torch.float64]


def test_with_rows_or_a_disk_nothing_is_captured(graphs, tmp_path):
    student = built(NAMED["images"])
    for options in ({"rows": 1}, {"spill": tmp_path}):
        stream = StreamingDecoder(form_of(student, GRAPHS), **options)
        made = torch.cat([*map(stream.push, clip(30, 0).split(1, dim=2)), stream.finish()], dim=2)
        with torch.no_grad():
            assert (made - student(clip(30, 0))).abs().max() <= 1e-9
    assert graphs.made == 0


def test_without_room_for_a_graph_decodes_go_on_without(graphs, monkeypatch):
    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.cuda, "graph", full)
    student = built(NAMED["images"])
    fast = form_of(student, GRAPHS)
    latents = clip(30, 0)
    with torch.no_grad():
        wanted = student(latents)
    for _ in range(3):
        assert (fast.decode(latents) - wanted).abs().max() <= 1e-9
    assert graphs.made == 1  # and no second attempt at this shape
    stream = StreamingDecoder(fast)
    made = torch.cat([*map(stream.push, latents.split(1, dim=2)), stream.finish()], dim=2)
    assert (made - wanted).abs().max() <= 1e-9
    assert graphs.made == 2


def test_another_error_of_a_capture_is_not_hidden(graphs, monkeypatch):
    def broken(*_arguments, **_options):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    with pytest.raises(RuntimeError, match="not permitted"):
        fast = form_of(built(NAMED["images"]), GRAPHS)
        fast.decode(clip(2, 0))
        fast.decode(clip(2, 0))


def test_a_graph_keeps_the_memory_that_it_uses(graphs, monkeypatch):
    """Buffers that a longer clip replaces, and weights that are forgotten, would be given to others while a graph writes there."""
    held = []
    made = Graph.__init__
    monkeypatch.setattr(Graph, "__init__", lambda self, *arguments: (held.extend(arguments[2]), made(self, *arguments))[1])
    student = built(NAMED["8x8x8"])
    fast = form_of(student, GRAPHS)
    fast.decode(clip(2, 0))
    fast.decode(clip(2, 0))
    pointers = {one.data_ptr() for one in held}
    weights = [weight for kernel in fast._kernels for weight in kernel.prepared()]
    assert weights and {weight.data_ptr() for weight in weights} <= pointers
    assert fast.scratch.blocks() and {block.data_ptr() for block in fast.scratch.blocks()} <= pointers


def test_a_graph_that_would_hold_too_much_is_not_kept(graphs, monkeypatch):
    """More than a tenth of the device's memory would be missing to the other networks of a pipeline."""
    student = built(NAMED["8x8x8"])
    with torch.no_grad():
        wanted = student(clip(2, 0))
    for held, replays in ((150, 0), (50, 2)):
        reserved = itertools.cycle((0, held * 10**6))
        monkeypatch.setattr(gpu_graphs, "reserved_bytes", lambda _, reserved=reserved: (next(reserved), 1e9))
        fast = form_of(student, GRAPHS)
        graphs.replays = 0
        for _ in range(3):
            assert (fast.decode(clip(2, 0)) - wanted).abs().max() <= 1e-9
        assert graphs.replays == replays
