"""What a pair costs in one-to-one matching: keys that all detectors of queries have."""


def matching_costs(node) -> dict[str, float]:
    """The weights of :func:`corrdet.matching.hungarian_matching`, as the config has them.

    Args:
        node: the detector's, with the keys ``CLASS_COST``, ``L1_COST`` and ``GIOU_COST``.
    """
    return {
        "classification_weight": node.CLASS_COST,
        "l1_weight": node.L1_COST,
        "giou_weight": node.GIOU_COST,
    }
