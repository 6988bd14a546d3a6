"""swiglu against float64, and its gradient."""

import pytest
import torch
from tokendial_kernels.swiglu import swiglu
from tokendial_kernels.swiglu.op import swiglu_op
from torch import Tensor


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_worked_example():
    gate = torch.tensor([0.0, 1.0, -1.0])
    assert swiglu(gate, torch.full((3,), 2.0)).tolist() == pytest.approx([0.0, 1.4621172, -0.5378828])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("records", [False, True], ids=["inference", "training"])
def test_result_is_within_two_roundings_of_float64_and_leaves_its_inputs(dtype: torch.dtype, records: bool):
    gate, up = draw(3, 37, dtype=dtype), draw(3, 37, seed=1, dtype=dtype)
    kept = gate.clone(), up.clone()
    result = swiglu(gate.requires_grad_(records), up)
    sigmoid = torch.sigmoid(kept[0].double())
    wanted = kept[0].double() * sigmoid * kept[1].double()
    assert ((result.double() - wanted).abs() <= 2 * torch.finfo(dtype).eps * wanted.abs() + 1e-7).all()
    assert torch.equal(gate, kept[0])
    assert torch.equal(up, kept[1])
    assert result.requires_grad == records


def test_halves_of_one_projection_are_accepted():
    gate, up = draw(4, 10).chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(gate, up), gate * torch.sigmoid(gate) * up)


def test_op_passes_gradcheck_and_opcheck():
    gate, up = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(swiglu_op, (gate, up))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    torch.library.opcheck(swiglu_op, (gate, up))
    torch.library.opcheck(swiglu_op, (gate.detach(), up.detach()))
