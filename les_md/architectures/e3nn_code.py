"""Code of e3nn and MACE modules, generated anew from their stored sizes.

e3nn keeps the compiled functions of a linear map or tensor product in the checkpoint as TorchScript, MACE those of its
symmetric contraction as Python source. ``read_checkpoint`` leaves both out, since either would run what the file says.
Everything they are made from – irreps, instructions with their weights, coupling tensors – is stored beside them as
numbers, and is all that is used here.
"""

from __future__ import annotations

import functools

import opt_einsum_fx
import torch
import torch.fx
from e3nn import o3
from e3nn.nn._extract import Extract, ExtractIr
from e3nn.o3._linear import _codegen_linear
from e3nn.o3._tensor_product._codegen import codegen_tensor_product_left_right
from e3nn.util.codegen import CodeGenMixin
from mace.modules.symmetric_contraction import Contraction

from les_md.architectures.registry import UnsupportedModelError

_CONNECTIONS = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")


def generate_code(model: torch.nn.Module) -> None:
    """Give every e3nn and MACE module in ``model`` the code that it had when it was made.

    Constants (Wigner symbols) are rounded to the precision of the model's parameters, as they were.
    """
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for module in list(model.modules()):
            if isinstance(module, Contraction):
                _generate_contraction(module)
            elif module.__dict__.pop("__codegen__", None):
                for attribute, code in _compiled(module).items():
                    if isinstance(code, torch.fx.GraphModule):
                        module._codegen_register({attribute: code})
                    else:
                        setattr(module, attribute, code)
                        module.__codegen__.append(attribute)
    finally:
        torch.set_default_dtype(default)


def _compiled(module: CodeGenMixin) -> dict[str, torch.nn.Module]:
    """The functions of one e3nn module by attribute name, as graphs or already compiled."""
    _require_numbers(module)
    if isinstance(module, o3.Linear):
        if module.weight.dim() > 1:
            raise UnsupportedModelError("an e3nn Linear over extra channel axes is not supported")
        graph, weights, biases = _codegen_linear(
            module.irreps_in,
            module.irreps_out,
            module.instructions,
            shared_weights=module.shared_weights,
            optimize_einsums=module._optimize_einsums,
        )
        if (weights, biases) != (module.weight_numel, module.bias_numel):
            raise UnsupportedModelError(
                "an e3nn Linear in the checkpoint does not have the weights of its instructions"
            )
        return {"_compiled_main": graph}
    if isinstance(module, o3.TensorProduct):
        left_right = codegen_tensor_product_left_right(
            module.irreps_in1,
            module.irreps_in2,
            module.irreps_out,
            module.instructions,
            module.shared_weights,
            module._specialized_code,
            module._optimize_einsums,
        )
        return {"_compiled_main_left_right": left_right, "_compiled_main_right": _no_right_product()}
    if isinstance(module, Extract):
        made = Extract(
            module.irreps_in, module.irreps_outs, module.instructions, squeeze_out=isinstance(module, ExtractIr)
        )
        return {"_compiled_forward": made._compiled_forward}
    raise UnsupportedModelError(f"generated code of {type(module).__module__}.{type(module).__name__} is not supported")


def _require_numbers(module: CodeGenMixin) -> None:
    """What code is generated from must be irreps and numbers, so that the code can hold nothing else."""
    for attribute, value in vars(module).items():
        if attribute.startswith("irreps") and not isinstance(value, tuple):
            raise UnsupportedModelError(f"{attribute} of an e3nn {type(module).__name__} is not made of irreps")
    for instruction in module.instructions:
        for entry in instruction:
            numbers = entry if isinstance(entry, tuple) else (entry,)
            if not all(isinstance(n, (int, float)) or n in _CONNECTIONS for n in numbers):
                raise UnsupportedModelError(f"an instruction of an e3nn {type(module).__name__} is not made of numbers")


@functools.cache
def _no_right_product() -> torch.jit.ScriptModule:
    """The product with the second factor alone, which scripting needs but MACE never calls: it raises."""
    return o3.TensorProduct("0e", "0e", "0e", [(0, 0, 0, "uuu", False)])._compiled_main_right


def _generate_contraction(module: Contraction) -> None:
    """The einsums of a symmetric contraction up to its correlation ν.

    With coupling tensor U [(m,) i_1, …, i_ν, k], weights w [e, k, c], features x [b, c, i] and elements y [b, e], the
    highest order contracts all four; each lower one adds U w y to the result and contracts another i with x.
    """
    highest = module.correlation
    channels, atoms = module.num_features, 10  # the number of atoms only guides the order of contraction
    elements = module.weights_max.shape[0]
    y = torch.zeros(atoms, elements)
    weighting, features = [], []
    for order in range(highest, 0, -1):
        coupling = module._buffers[f"U_matrix_{order}"]
        indices = "mnopqrstuv"[: coupling.dim() - 1]
        weights = torch.zeros(elements, coupling.shape[-1], channels)
        x = torch.zeros(atoms, channels, coupling.shape[-2])
        if order == highest:
            module.graph_opt_main = _einsum(
                f"{indices}k,ekc,bc{indices[-1]},be->bc{indices[:-1]}", coupling, weights, x, y
            )
        else:
            weighting.append(_einsum(f"{indices}k,ekc,be->bc{indices}", coupling, weights, y))
            state = torch.zeros(atoms, channels, *coupling.shape[:-1])
            features.append(_einsum(f"bc{indices},bc{indices[-1]}->bc{indices[:-1]}", state, x))
    module.contractions_weighting = torch.nn.ModuleList(weighting)
    module.contractions_features = torch.nn.ModuleList(features)


def _einsum(equation: str, *operands: torch.Tensor) -> torch.fx.GraphModule:
    """An einsum in its cheapest order for operands of these shapes."""
    graph = torch.fx.Graph()
    inputs = tuple(graph.placeholder(f"x{i}") for i in range(len(operands)))
    graph.output(graph.call_function(torch.einsum, (equation, *inputs)))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    return opt_einsum_fx.optimize_einsums_full(module, tuple(operand.detach() for operand in operands))
