// The losses on the step H, by name.
#pragma once

#include <cstdint>

#include "common/names.h"

namespace corrdet {

#define CORRDET_STEP_LOSSES(NAME) \
  NAME(average_precision) NAME(step) NAME(step_negatives) NAME(rank_sort) NAME(alrp)
CORRDET_NAMED(StepLoss, CORRDET_STEP_LOSSES);

// Rank & Sort Loss reads the IoUs of the positives as their targets, and has a second part with a
// gradient with respect to the logits.
constexpr bool has_soft_targets(StepLoss loss) { return loss == StepLoss::rank_sort; }
constexpr int64_t gradient_rows(StepLoss loss) { return loss == StepLoss::rank_sort ? 2 : 1; }

// aLRP Loss reads a localization loss of each positive.
constexpr bool has_localization(StepLoss loss) { return loss == StepLoss::alrp; }

}  // namespace corrdet
