"""MACE models whose modules are cuEquivariance's, brought back to e3nn's.

mace-torch can put cuEquivariance's linear maps, tensor products and symmetric contractions in the place of e3nn's.
Linear maps and products with node attributes then have the same weights in the same order, and the convolution none.
A symmetric contraction may use another basis of couplings (``use_reduced_cg``). Its checkpoint holds the polynomial
itself, as numbers, from which the coupling tensors of MACE's own contraction are made here. cuEquivariance need not be
installed: ``read_checkpoint`` gives stand-ins for its classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace.modules.irreps_tools import tp_out_irreps_with_instructions
from mace.modules.symmetric_contraction import Contraction, SymmetricContraction
from torch import Tensor

from les_md.architectures.registry import UnsupportedModelError
from les_md.stand_in import StandIn

_BY_HAND = "; convert it with `mace_cueq_to_e3nn MODEL --output_model e3nn.model --return_model` where it was trained"


def convert_to_e3nn(model: torch.nn.Module) -> bool:
    """Replace every module of cuEquivariance in ``model`` by e3nn's or MACE's own; False if there is none.

    Raises UnsupportedModelError naming what cannot be replaced.
    """
    if not any(_is_accelerated(module) for module in model.modules()):
        return False
    default = torch.get_default_dtype()
    torch.set_default_dtype(model.r_max.dtype)  # e3nn makes weights and constants in this type
    try:
        for interaction in model.interactions:
            if _is_accelerated(interaction.conv_tp):
                interaction.conv_tp = _convolution(interaction)
        for path, module in list(model.named_modules()):
            for name, child in list(module.named_children()):
                if _is_accelerated(child) and not isinstance(module, StandIn):
                    setattr(module, name, _replacement(child, f"{path}.{name}"))
    finally:
        torch.set_default_dtype(default)
    for module in model.modules():
        if "cueq_config" in module.__dict__:
            module.cueq_config = None
    return True


def _is_accelerated(module: torch.nn.Module) -> bool:
    return isinstance(module, StandIn) and module.class_path.startswith("cuequivariance_torch.")


def _replacement(module: StandIn, path: str) -> torch.nn.Module:
    kind = module.class_path.rsplit(".", 1)[1]
    if kind == "Linear":
        made = o3.Linear(_irreps(module, "irreps_in"), _irreps(module, "irreps_out"))
        return _with_weights(made, module, path)
    if kind == "FullyConnectedTensorProduct":
        names = ("irreps_in1", "irreps_in2", "irreps_out")
        made = o3.FullyConnectedTensorProduct(*[_irreps(module, name) for name in names])
        return _with_weights(made, module, path)
    if kind == "SymmetricContraction":
        return _symmetric_contraction(module, path)
    raise UnsupportedModelError(f"{path} of the MACE model is {module.class_path}, which is not supported{_BY_HAND}")


def _irreps(owner: StandIn, name: str) -> o3.Irreps:
    """Irreps of a module of cuEquivariance; only those of MACE's group have e3nn's sign conventions."""
    found = []
    for mul_ir in owner.find(f"{name}._mulirreps"):
        if getattr(mul_ir.ir, "class_path", "") != "mace.tools.cg.O3_e3nn":
            raise UnsupportedModelError(
                f"{owner.class_path} in the MACE model is of another group than mace.tools.cg.O3_e3nn{_BY_HAND}"
            )
        found.append((mul_ir.mul, (mul_ir.ir.l, mul_ir.ir.p)))
    return o3.Irreps(found)


def _with_weights(made: torch.nn.Module, module: StandIn, path: str) -> torch.nn.Module:
    weight = module.tensor("weight")
    if weight.numel() != made.weight.numel():
        raise UnsupportedModelError(
            f"{path} of the MACE model has {weight.numel()} weights, where e3nn has {made.weight.numel()}{_BY_HAND}"
        )
    made.weight = torch.nn.Parameter(weight.reshape(made.weight.shape).clone())
    return made


def _convolution(interaction: torch.nn.Module) -> o3.TensorProduct:
    """The tensor product of neighbours' features and edges, as MACE makes it with e3nn."""
    irreps = (interaction.edge_irreps, interaction.edge_attrs_irreps)
    out, instructions = tp_out_irreps_with_instructions(*irreps, interaction.target_irreps)
    made = o3.TensorProduct(*irreps, out, instructions=instructions, shared_weights=False, internal_weights=False)
    stored = interaction.conv_tp
    for name, expected in (("irreps_in1", irreps[0]), ("irreps_in2", irreps[1]), ("irreps_out", out)):
        if _irreps(stored, name).simplify() != expected.simplify():
            raise UnsupportedModelError(f"{name} of a convolution of the MACE model is not what MACE makes{_BY_HAND}")
    if stored.get("weight_numel") != made.weight_numel:
        raise UnsupportedModelError(f"a convolution of the MACE model has an unknown number of weights{_BY_HAND}")
    return made


def _symmetric_contraction(module: StandIn, path: str) -> SymmetricContraction:
    """MACE's own contraction with the couplings of the stored polynomial.

    A term of degree ν is coefficient · w[k] x[i₁] … x[i_ν] → y[m], for each channel by itself; its coupling tensor is
    U[m, i₁, …, i_ν, k], with k over the weights of this degree and output irrep.
    """
    irreps_in, irreps_out = _irreps(module, "irreps_in"), _irreps(module, "irreps_out")
    weight = module.tensor("weight")  # [elements, k, channels]
    projection = module.get("projection")
    if projection is not None:  # from the weights of MACE's own basis
        weight = torch.einsum("zau,ab->zbu", weight, projection.detach())
    highest, size = int(module.contraction_degree), sum(ir.dim for _, ir in irreps_in)
    terms = _terms(module, path, highest, size, weight.size(1), sum(ir.dim for _, ir in irreps_out))
    contractions, start = [], 0
    for _, ir in irreps_out:
        couplings, weights = [], []
        for degree in range(1, highest + 1):
            own = [term for term in terms[degree] if start <= term[2] < start + ir.dim]
            numbers = sorted({k for k, *_ in own})
            coupling = torch.zeros([ir.dim, *[size] * degree, max(1, len(numbers))], dtype=torch.float64)
            for k, inputs, m, coefficient in own:
                coupling[(m - start, *inputs, numbers.index(k))] += coefficient
            couplings.append(coupling if ir.dim > 1 else coupling[0])
            weights.append(weight[:, numbers] if numbers else torch.zeros_like(weight[:, :1]))
        contractions.append(_contraction(irreps_in, couplings, weights, weight.dtype))
        start += ir.dim
    # Its constructor would make the couplings of e3nn's basis.
    made = SymmetricContraction.__new__(SymmetricContraction)
    torch.nn.Module.__init__(made)
    made.irreps_in, made.irreps_out = irreps_in, irreps_out
    made.contractions = torch.nn.ModuleList(contractions)
    return made


def _contraction(irreps_in: o3.Irreps, couplings: list[Tensor], weights: list[Tensor], dtype: torch.dtype) -> Any:
    """A MACE Contraction without its code, which ``generate_code`` adds; lists by degree from 1 on."""
    made = Contraction.__new__(Contraction)
    torch.nn.Module.__init__(made)
    made.num_features = irreps_in[0].mul
    made.coupling_irreps = o3.Irreps([ir for _, ir in irreps_in])
    made.correlation = len(couplings)
    for degree, coupling in enumerate(couplings, start=1):
        made.register_buffer(f"U_matrix_{degree}", coupling.to(dtype))
    made.weights_max = torch.nn.Parameter(weights[-1].clone())
    made.weights = torch.nn.ParameterList([torch.nn.Parameter(w.clone()) for w in reversed(weights[:-1])])
    return made


def _terms(
    module: StandIn, path: str, highest: int, size: int, num_weights: int, size_out: int
) -> dict[int, list[tuple[int, tuple[int, ...], int, float]]]:
    """Terms (k, (i₁, …, i_ν), m, coefficient) of a stored polynomial by degree ν.

    Each operand is cut into segments of one number for each channel: weights k, inputs i, outputs m.
    """
    terms: dict[int, list] = {degree: [] for degree in range(1, highest + 1)}
    channels = _irreps(module, "irreps_in")[0].mul
    lengths = {0: num_weights, 1: size, 2: size_out}
    try:
        for operation, product in module.find("etp.polynomial.operations"):
            buffers, degree = tuple(operation.buffers), len(operation.buffers) - 2
            operands = [operand for operand, _ in product.operands_and_subscripts]
            segments = [tuple(operand.segments) for operand in operands]
            if buffers != (0, *[1] * degree, 2) or any(
                found != ((channels,),) * lengths[buffer] for buffer, found in zip(buffers, segments, strict=True)
            ):
                raise UnsupportedModelError(f"{path} of the MACE model is another polynomial than known{_BY_HAND}")
            for term in product.paths:
                k, *inputs, m = term.indices
                terms[degree].append((k, tuple(inputs), m, float(np.asarray(term.coefficients).item())))
    except (AttributeError, KeyError, TypeError) as error:
        raise UnsupportedModelError(
            f"{path} of the MACE model comes from another version of cuEquivariance than known ({error}){_BY_HAND}"
        ) from error
    return terms
