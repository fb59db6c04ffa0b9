"""The export form is the same function, of rank 4."""

import pytest
import torch
from golden import NAMES, load_golden, write_student

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.models.loading import load_student


@pytest.fixture(scope="module", params=NAMES)
def student(request, tmp_path_factory):
    return load_student(*write_student(load_golden(request.param), tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("layout", ["4d-cat", "4d-sum", "5d"])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 3), (2, 4, 1)])
def test_it_equals_the_student(student, layout, shape):
    """In double precision, so that the one-channel norm at the end of the golden nets magnifies nothing."""
    student = student.double()
    latents = torch.randn(
        1, student.config.latent_channels, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        wanted, found = student(latents), export_form(student, layout)(latents)
    assert found.shape == wanted.shape
    # The values themselves, not a cancellation: 1e-9 of a range of 2.
    assert torch.allclose(found, wanted, atol=1e-6, rtol=0)


def test_nothing_inside_has_more_than_four_dimensions(student):
    latents = torch.randn(1, student.config.latent_channels, 2, 2, 2, dtype=student.dtype)
    program = torch.export.export(export_form(student), (latents,))
    ranks = {node.name: node.meta["val"].ndim for node in program.graph.nodes if hasattr(node.meta.get("val"), "ndim")}
    inner = [rank for name, rank in ranks.items() if name not in ("latents", "unsqueeze")]
    assert max(inner) == 4
    assert not [node for node in program.graph.nodes if "conv3d" in str(node.target)]


def test_an_unknown_layout_is_refused(student):
    with pytest.raises(SettingsError, match="6d"):
        export_form(student, "6d")
