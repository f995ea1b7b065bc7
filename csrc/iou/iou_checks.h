// Checks of the arguments of the two IoU operators.
#pragma once

#include <ATen/ATen.h>

#include <string_view>

#include "common/checks.h"
#include "iou/iou.h"

namespace corrdet {

inline IouKind iou_kind(std::string_view name) { return parse_name<IouKind>("kind", name); }

// The Python functions check first and say more; these guard direct calls of torch.ops.corrdet.
inline void check_boxes(const at::Tensor& boxes1, const at::Tensor& boxes2) {
  for (const at::Tensor& boxes : {boxes1, boxes2}) {
    TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape (N, 4), got ",
                      boxes.sizes());
  }
  TORCH_CHECK_TYPE(boxes1.scalar_type() == boxes2.scalar_type(), "boxes must share a dtype, got ",
                   boxes1.scalar_type(), " and ", boxes2.scalar_type());
  TORCH_CHECK_VALUE(boxes1.device() == boxes2.device(), "boxes must share a device, got ",
                    boxes1.device(), " and ", boxes2.device());
}

inline void check_pairwise_grad(const at::Tensor& grad, const at::Tensor& boxes1,
                                const at::Tensor& boxes2) {
  TORCH_CHECK_VALUE(
      grad.dim() == 2 && grad.size(0) == boxes1.size(0) && grad.size(1) == boxes2.size(0),
      "grad must have shape (", boxes1.size(0), ", ", boxes2.size(0), "), got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == boxes1.scalar_type(), "grad must have dtype ",
                   boxes1.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == boxes1.device(), "grad must be on ", boxes1.device(), ", got ",
                    grad.device());
}

inline void check_elementwise_boxes(const at::Tensor& boxes1, const at::Tensor& boxes2) {
  check_boxes(boxes1, boxes2);
  TORCH_CHECK_VALUE(boxes1.size(0) == boxes2.size(0), "boxes must pair up, got ", boxes1.size(0),
                    " and ", boxes2.size(0));
}

inline void check_elementwise_grad(const at::Tensor& grad, const at::Tensor& boxes1) {
  TORCH_CHECK_VALUE(grad.dim() == 1 && grad.size(0) == boxes1.size(0), "grad must have shape (",
                    boxes1.size(0), "), got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == boxes1.scalar_type(), "grad must have dtype ",
                   boxes1.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == boxes1.device(), "grad must be on ", boxes1.device(), ", got ",
                    grad.device());
}

}  // namespace corrdet
