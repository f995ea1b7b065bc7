// The operators know no forward mode, and would lose tangents in silence: an error instead. Those
// of corrdet.ops are not affected, they go another way (corrdet/ops/_transforms.py); this is for
// calls of torch.ops.corrdet, and for compilers that trace them.

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

namespace corrdet {
namespace {

void refuse_forward_mode(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                         torch::jit::Stack* stack) {
  for (const c10::IValue& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(
        !value.toTensor()._fw_grad(/*level=*/0).defined(), op.schema().name(),
        " has no forward mode; call the function of corrdet.ops instead, outside of torch.compile");
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, ADInplaceOrView, m) {
  for (const char* name :
       {"pairwise_iou", "pairwise_iou_backward", "elementwise_iou", "elementwise_iou_backward",
        "soft_rank", "soft_rank_backward", "step_error", "smooth_error", "weighted_rows"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_forward_mode>());
  }
}

}  // namespace corrdet
