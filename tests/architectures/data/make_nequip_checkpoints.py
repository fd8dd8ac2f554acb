"""Writes ``nequip_<version>.ckpt`` beside this file, with the nequip that runs it.

Small NequIP models of random weights, in checkpoints as that version's training writes them, with the energies and
charges it evaluates itself: so the tests see what configurations meant in versions that are not installed any more.

    pip install nequip==0.7.0 e3nn==0.5.6     # or 0.15.0
    python make_nequip_checkpoints.py

nequip's own parts only: the charge readout is one more linear readout of nequip, as NequIP-LES adds it.
"""

import importlib.metadata
import sys
from pathlib import Path

import ase
import ase.data
import numpy as np
import torch
from nequip import __version__
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import NequIPGNNModel
from nequip.nn import ScalarMLP
from nequip.train.ema import EMAWeights
from nequip.utils.global_state import set_global_state

TYPES = ["O", "H", "Si"]
SMALL_RADIAL_NETWORK = {"radial_mlp_depth": 1, "radial_mlp_width": 4}

VARIANTS = {
    "even": {"parity": False, "l_max": 2, "num_layers": 3, "bessel_trainable": True, **SMALL_RADIAL_NETWORK},
    "parity": {"parity": True, "l_max": 2, "num_layers": 3, "polynomial_cutoff_p": 5, "pair_potential": {
        "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPES},
        **SMALL_RADIAL_NETWORK},
    "defaults": {"l_max": 1, "num_layers": 2, "per_type_energy_shifts": -13440.6},
}  # fmt: skip


def structure() -> ase.Atoms:
    """A small triclinic crystal."""
    generator = np.random.default_rng(5)
    atoms = ase.Atoms("HOSiHOSiHO", cell=[[5.1, 0.0, 0.0], [0.6, 4.8, 0.0], [-0.4, 0.5, 3.2]], pbc=True)
    sites = np.array(list(np.ndindex(2, 2, 2))) / 2.0 + 0.1
    atoms.set_scaled_positions(sites + generator.uniform(-0.05, 0.05, (8, 3)))
    return atoms


def main() -> None:
    set_global_state()
    listed = int(__version__.split(".")[1]) < 8  # tables by type name since then
    contents = {}
    for name, changes in VARIANTS.items():
        scales = [1.1, 0.7, 1.6]
        configuration = {
            "seed": 7, "model_dtype": "float64", "type_names": TYPES, "r_max": 3.7, "num_features": 2,
            "num_bessels": 4, "avg_num_neighbors": 11.0, "per_type_energy_shifts": -4.9,
            "per_type_energy_scales": scales if listed else dict(zip(TYPES, scales, strict=True)), **changes,
        }  # fmt: skip
        model = NequIPGNNModel(**configuration)
        energy_model = model.model.func
        readout = ScalarMLP(output_dim=1, field="node_features", out_field="LES_q", irreps_in=energy_model.irreps_out)
        energy_model.append("latent_charge_readout", readout)
        state = {f"model.sole_model.{key}": value.clone() for key, value in model.state_dict().items()}
        if name == "even":
            ema = EMAWeights(model, decay=0.999)
            ema.update_parameters(model)
            state.update({f"ema.{key}": value for key, value in ema.state_dict().items()})
            # The weights themselves are spoiled: the running averages are what counts.
            for key, _parameter in model.named_parameters():
                state[f"model.sole_model.{key}"] += 1.0
        atoms = structure()
        data = compute_neighborlist_(from_ase(atoms), 3.7)
        data["atom_types"] = torch.tensor([TYPES.index(symbol) for symbol in atoms.get_chemical_symbols()])
        result = model(data)
        information = {"versions": {"nequip": __version__, "e3nn": importlib.metadata.version("e3nn")}}
        contents[name] = {
            "checkpoint": {
                "state_dict": state,
                "hyper_parameters": {
                    "model": {
                        "_target_": "nequip.model.NequIPGNNModel", "use_les": True, "les_args": {}, **configuration
                    },
                    "info_dict": information,
                },
            },
            "energy": result[AtomicDataDict.TOTAL_ENERGY_KEY].detach().reshape(()),
            "forces": result[AtomicDataDict.FORCE_KEY].detach(),
            "charges": result["LES_q"].detach(),
        }  # fmt: skip
    path = Path(__file__).parent / f"nequip_{__version__}.ckpt"
    torch.save(contents, path)
    print(path, path.stat().st_size, file=sys.stderr)


if __name__ == "__main__":
    main()
