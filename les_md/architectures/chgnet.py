"""CHGNet and CHGNet-LES checkpoints: those of MatGL, those of the package chgnet, and the native ones les_md trains.

Source: Deng et al., Nat. Mach. Intell. 5, 1031 (2023) (CHGNet); Zhong et al., arXiv:2504.05169 (its LES variant).

The two packages have networks of different layouts, both called CHGNet. Both are rebuilt here from their weights; the
packages themselves serve only to check the export.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from les_md.architectures import chgnet_matgl, chgnet_originals, chgnet_package
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.architectures.registry import LoadOptions, NoLatentChargesError, TrainedModel, UnsupportedModelError
from les_md.electrostatics.parameters import LongRangeParameters

name = "chgnet"

#: What marks a native checkpoint, and the newest layout that can be read.
NATIVE_MARK = "les_md.chgnet"
NATIVE_FORMAT_VERSION = 1

_DIRECT = "the network in float64, differentiated over positions and by finite strains (matgl is not installed)"


def matches(checkpoint: object) -> bool:
    """Whether a checkpoint is a native one, one of MatGL's CHGNet, or one of the package chgnet."""
    if isinstance(checkpoint, dict) and checkpoint.get("architecture") == NATIVE_MARK:
        return True
    return chgnet_package.is_of_package(checkpoint) or chgnet_matgl.is_of_matgl(checkpoint)


def load(checkpoint: Any, *, options: LoadOptions) -> TrainedModel:
    """Make a network of a checkpoint.

    Raises
    ------
    NoLatentChargesError : the checkpoint has no latent charges and ``options.allow_short_range`` is False.
    UnsupportedModelError : the checkpoint uses an option that is not supported here.
    CheckpointError : the package to compare with is not installed, or parts of the checkpoint do not belong together.
    """
    if options.head is not None:
        raise ValueError("a CHGNet has one head: --head does not apply")
    if chgnet_package.is_of_package(checkpoint):
        return _load_package(checkpoint, options)
    is_native = isinstance(checkpoint, dict) and checkpoint.get("architecture") == NATIVE_MARK
    if is_native and options.cutoff is not None:
        raise ValueError("the checkpoint stores its cutoff: --cutoff does not apply")
    stored = _read_native(checkpoint) if is_native else chgnet_matgl.read(checkpoint, options.cutoff)
    long_range = _final_long_range(stored, options)
    configuration = stored.configuration
    network = chgnet_matgl.make_network(stored).to(options.dtype).eval().requires_grad_(False)
    numbers = list(configuration.atomic_numbers)
    if is_native and not chgnet_originals.is_installed("matgl"):
        original = DirectEvaluation(network, numbers, configuration.cutoff, stored.reference_energies, long_range)
        description = _DIRECT
    else:
        original, description = chgnet_originals.MatGLOriginal(stored, long_range), chgnet_originals.MATGL
    return TrainedModel(
        architecture=name,
        network=network,
        atomic_numbers=numbers,
        cutoff=configuration.cutoff,
        num_layers=configuration.num_blocks,
        reference_energies=stored.reference_energies,
        long_range=long_range,
        num_charges=configuration.num_charges,
        notes=stored.notes,
        original=original,
        original_description=description,
        inner_cutoff=configuration.three_body_cutoff if configuration.num_blocks > 1 else 0.0,
    )


def _load_package(checkpoint: dict, options: LoadOptions) -> TrainedModel:
    """A short-range model of the package chgnet."""
    if options.cutoff is not None:
        raise ValueError("the checkpoint stores its cutoff: --cutoff does not apply")
    if not options.allow_short_range:
        raise NoLatentChargesError()
    _refuse_norm_factor(options)
    notes = ["magnetic moments are not exported"]
    network, numbers, reference_energies = chgnet_package.read(checkpoint, notes)
    return TrainedModel(
        architecture=name,
        network=network.to(options.dtype).eval().requires_grad_(False),
        atomic_numbers=numbers,
        cutoff=network.cutoff,
        num_layers=len(network.atom_layers),
        reference_energies=reference_energies,
        long_range=None,
        num_charges=0,
        notes=notes,
        original=chgnet_originals.PackageOriginal(checkpoint.get("model", checkpoint)),
        original_description=chgnet_originals.CHGNET,
        inner_cutoff=network.bond_cutoff,
    )


def _final_long_range(stored: chgnet_matgl.StoredModel, options: LoadOptions) -> LongRangeParameters | None:
    """Parameters of the long-range energy, with the user's constant and data_std."""
    if stored.long_range is None:
        if not options.allow_short_range:
            raise NoLatentChargesError()
        _refuse_norm_factor(options)
        return None
    constant, scale = stored.long_range.norm_factor, stored.configuration.energy_scale
    if options.norm_factor is not None:
        stored.notes.append(f"norm_factor set to {options.norm_factor:g} by the user, {constant:g} in the checkpoint")
        constant = options.norm_factor
    if scale != 1.0:
        stored.notes.append(
            f"norm_factor {constant:g} is multiplied by data_std = {scale:g}, which multiplies the whole energy"
        )
    return replace(stored.long_range, norm_factor=scale * constant)


def _refuse_norm_factor(options: LoadOptions) -> None:
    if options.norm_factor is not None:
        raise ValueError("a short-range model has no long-range energy: --norm-factor does not apply")


def native_checkpoint(
    network: CHGNetNetwork,
    configuration: CHGNetConfiguration,
    reference_energies: Tensor,
    long_range: LongRangeParameters | None,
    training: dict,
) -> dict:
    """A native checkpoint for ``torch.save``: plain containers and tensors only.

    Parameters: ``reference_energies`` [types] eV; ``long_range`` as it is used, ``configuration.energy_scale`` not
    being applied to it once more; ``training`` plain metadata about how it was trained.
    """
    if configuration.energy_scale != 1.0:
        raise ValueError("a native CHGNet has energy_scale 1")
    return {
        "architecture": NATIVE_MARK,
        "format_version": NATIVE_FORMAT_VERSION,
        "configuration": configuration.to_dict(),
        "state_dict": {key: value.detach().cpu().clone() for key, value in network.state_dict().items()},
        "reference_energies": reference_energies.to(torch.float64).cpu(),
        "long_range": None if long_range is None else long_range.to_dict(),
        "training": training,
    }


def _read_native(checkpoint: dict) -> chgnet_matgl.StoredModel:
    version = checkpoint.get("format_version")
    if version != NATIVE_FORMAT_VERSION:
        raise UnsupportedModelError(
            f"this checkpoint has layout {version!r}, this les_md reads layout {NATIVE_FORMAT_VERSION}: update les_md"
        )
    configuration = CHGNetConfiguration(**checkpoint["configuration"])
    state, readout = checkpoint["state_dict"], []
    if configuration.num_charges > 0:
        for number in range(len(configuration.charge_hidden) + 1):
            part = f"latent_charge_readout.layers.{number}"
            readout.append((state[f"{part}.weight"], state[f"{part}.bias"]))
    stored = checkpoint["long_range"]
    return chgnet_matgl.StoredModel(
        configuration=configuration,
        arguments=chgnet_matgl.matgl_arguments(configuration),
        weights=chgnet_matgl.names_in_matgl(state, configuration),
        charge_readout=readout,
        reference_energies=checkpoint["reference_energies"],
        long_range=None if stored is None else LongRangeParameters(**stored),
    )
