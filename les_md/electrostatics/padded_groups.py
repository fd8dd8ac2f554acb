"""Which periodic configurations of a batch are padded to one size and summed by one batched matrix product.

Padding a small configuration to the size of a large one wastes arithmetic and memory; a product for each wastes the
fixed cost of the operations. A configuration joins the next larger ones where that is estimated to be cheaper.
"""

from __future__ import annotations


def padded_work(num_configurations: int, size: list[int]) -> float:
    """Estimated cost of a padded sum and its derivatives, in ns of one CPU core (only ratios matter).

    Parameters: ``size`` [atoms, K_1, K_2, K_3] that all configurations are padded to.
    """
    plane = 4.0 * float((size[1] + 1) * (size[2] + 1))
    column = 2.0 * float(size[3] + 1)
    per_atom = (1.2 * plane + 500.0) * column
    return float(num_configurations) * (float(size[0]) * per_atom + 50.0 * plane * column)


def padded_groups(members: list[int], sizes: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Groups of configurations that are summed together.

    Parameters
    ----------
    members : indices of the configurations, from the most expensive to the cheapest.
    sizes : [atoms, K_1, K_2, K_3] of each of these.

    Returns: for each group its members, and the size that they are padded to.
    """
    overhead = 2.5e6  # ns; some hundred operations in forward and both backward passes, measured
    groups: list[tuple[list[int], list[int]]] = []
    for member, size in zip(members, sizes):  # noqa: B905  (scripts know no strict)
        if len(groups) > 0:
            group, padded = groups[-1]
            joint: list[int] = []
            for axis in range(4):
                joint.append(max(padded[axis], size[axis]))
            separate = padded_work(len(group), padded) + padded_work(1, size) + overhead
            if padded_work(len(group) + 1, joint) <= separate:
                group.append(member)
                groups[-1] = (group, joint)
                continue
        groups.append(([member], size))
    return groups
