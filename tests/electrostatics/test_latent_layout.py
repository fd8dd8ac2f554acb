"""Columns of the latent variables."""

import pytest

from les_md.electrostatics.latent_layout import QUADRUPOLE_COMPONENTS, LatentLayout


def test_columns_of_every_kind_are_counted():
    assert LatentLayout(3).num_sources == LatentLayout(3).num_columns == 3
    layout = LatentLayout(2, dipoles=True, quadrupoles=True, kappas=True, alphas=True)
    assert layout.num_sources == 2 * (1 + 3 + 6)
    assert layout.num_columns == 2 * (1 + 3 + 6) + 2 * 2
    assert layout.has_multipoles and layout.responds
    assert not LatentLayout(1, alphas=True).has_multipoles and LatentLayout(1, alphas=True).responds


def test_quadrupole_components_are_the_six_of_a_symmetric_tensor():
    assert {tuple(sorted(c)) for c in QUADRUPOLE_COMPONENTS} == {(a, b) for a in range(3) for b in range(a, 3)}


@pytest.mark.parametrize("kind", ["dipoles", "quadrupoles", "kappas", "alphas"])
def test_anything_but_charges_needs_charges(kind):
    with pytest.raises(ValueError, match="has latent charges too"):
        LatentLayout(0, **{kind: True})


def test_metadata_of_a_file():
    layout = LatentLayout(2, dipoles=True, alphas=True)
    assert LatentLayout.from_metadata({"n_q": 2, "latent": layout.to_dict()}) == layout
    assert LatentLayout.from_metadata({"n_q": 2}) == LatentLayout(2)  # an older file
    with pytest.raises(ValueError, match="octupoles"):
        LatentLayout.from_metadata({"latent": {**layout.to_dict(), "octupoles": True}})
