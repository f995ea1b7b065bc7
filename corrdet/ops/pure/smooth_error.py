"""The losses on the sigmoid and the softplus: csrc/smooth_error in tensors."""

import torch
from torch import Tensor

from .._checks import compute_dtype
from .._operators import operator
from .cells import Cells
from .lower_ious import LowerIoUs
from .pairs import Pairs
from .samples import check_count, check_range, read_samples
from .sums import searchsorted, total

# With fewer pairs, taking them one by one costs less.
FEW_PAIRS = 2**16


def is_far(q: Tensor, lam: float, delta: float) -> bool:
    """Whether edges and cells would be rounded too coarsely, as in csrc/smooth_error."""
    largest = 2.0**20 * (1 / lam if lam * delta > 1 else delta)
    return bool(q.abs().max() > largest)


class Windowed:
    """Sums over samples that lie above s_u - delta, in cells or one by one.

    Args:
        y: (N,) negated logits of the samples, ascending.
        q: (P,) those of the positives, ascending.
        lam: slope of the sigmoid.
        delta: see above.
        dtype: of the results.
        far: see :func:`is_far`.
    """

    def __init__(
        self, y: Tensor, q: Tensor, lam: float, delta: float, dtype: torch.dtype, far: bool
    ):
        self.q, self.dtype = q, dtype
        one_by_one = far or len(y) * len(q) <= FEW_PAIRS
        self.by: Pairs | Cells = Pairs(y, lam, delta) if one_by_one else Cells(y, lam, q[0], dtype)
        self.ends = searchsorted(y, q + delta)

    def sums(self, with_softplus: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Over samples: sigmoids, softpluses / lam or else 0, and their number, each (P,)."""
        if isinstance(self.by, Pairs):
            return self.by.sums(self.q, None, with_softplus)
        return *self.by.sums(self.q, self.ends, with_softplus), self.ends.to(self.q.dtype)

    def gradient(self, shares: Tensor) -> Tensor:
        """Sums over positives of shares * sigmoid for each sample, (N,)."""
        if isinstance(self.by, Pairs):
            return self.by.gradient(self.q, shares).to(self.dtype)
        return self.by.gradient(self.q, self.ends, shares, self.dtype)


@operator(
    "smooth_error(Tensor logits, Tensor targets, str distance, str balance, float lam,"
    " float delta, Tensor? ious, bool weight_by_iou) -> (Tensor values, Tensor gradients)"
)
def smooth_error(
    logits: Tensor,
    targets: Tensor,
    distance: str,
    balance: str,
    lam: float,
    delta: float,
    ious: Tensor | None,
    weight_by_iou: bool,
) -> tuple[Tensor, Tensor]:
    samples = read_samples(logits, targets, False, delta)
    count, dtype = len(samples.positives), compute_dtype(logits)
    if ious is not None:
        check_count("ious", ious, count)
        check_range("ious", ious)
    value = logits.new_zeros(1, dtype=dtype)
    gradient = logits.new_zeros((1, len(logits)), dtype=dtype)
    if count == 0:
        return value, gradient
    if not samples.is_finite or (ious is not None and not bool(ious.isfinite().all())):
        return value.fill_(torch.nan), gradient.fill_(torch.nan)

    q = samples.q
    far, with_softplus = is_far(q, lam, delta), distance == "cross_entropy"
    negatives = Windowed(samples.y, q, lam, delta, dtype, far)
    error, loss, number = negatives.sums(with_softplus)
    rank = error + Windowed(q, q, lam, delta, dtype, far).sums(False)[0]
    weights, lower = torch.ones_like(q), None
    if ious is None:
        rank += 0.5  # as in the AP loss, a positive counts itself by 1
    else:
        wide = ious.to(q.dtype)[samples.order]
        weights = wide if weight_by_iou else weights
        group = torch.unique(wide, return_inverse=True)[1]
        lower = LowerIoUs(q, group, lam, delta, dtype, far)
        lower_error, lower_loss = lower.sums(with_softplus)
        error, loss = error + lower_error, loss + lower_loss
    shares = weights / (number.clamp(min=1) if balance == "negatives" else rank) / count
    value[0] = total(shares * (loss if with_softplus else error))
    gradient[0, samples.negatives] = negatives.gradient(shares)
    on_positives = -shares * error
    if lower is not None:
        on_positives = on_positives + lower.gradient(shares)
    gradient[0, samples.positives[samples.order]] = on_positives.to(dtype)
    return value, gradient
