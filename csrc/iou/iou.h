// IoU, GIoU, DIoU and CIoU of one pair of boxes, and their gradients.
//
// Sources: GIoU, Rezatofighi et al. 2019, Eq. 1-2 (Algorithm 1); DIoU and CIoU, Zheng et al. 2020,
// Eq. 5-12. One definition serves the CPU loops, the CUDA kernels and the host emulation.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/device.h"
#include "common/names.h"

namespace corrdet {

#define CORRDET_IOU_KINDS(NAME) NAME(iou) NAME(giou) NAME(diou) NAME(ciou)
CORRDET_NAMED(IouKind, CORRDET_IOU_KINDS);

// Calls function(std::integral_constant<IouKind, kind>).
template <typename Function>
void with_kind(IouKind kind, Function function) {
#define CORRDET_CALL(name) \
  if (kind == IouKind::name) function(std::integral_constant<IouKind, IouKind::name>{});
  CORRDET_IOU_KINDS(CORRDET_CALL)
#undef CORRDET_CALL
}

// A box after `make_box`: x2 >= x1 and y2 >= y1, in the units of its input; area in their square;
// angle = atan2(width, height) in radians, used by CIoU alone and 0 for the other kinds.
template <typename T>
struct Box {
  T x1, y1, x2, y2, area, angle;
};

// Gradient with respect to the members of Box that are independent of each other.
template <typename T>
struct BoxGradient {
  T x1, y1, x2, y2, angle;
};

constexpr int kBoxFields = 6;
constexpr int kBoxGradientFields = 5;

// Comparisons with NaN are false, so these may lose a NaN; the area, a product of both sides, keeps
// it.
template <typename T>
CORRDET_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
CORRDET_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

// Derivative of min(a, b) with respect to a. A tie is shared equally: that keeps pairs symmetric,
// and makes the gradient of the IoU of two identical boxes, a maximum, zero.
template <typename T>
CORRDET_INLINE T smaller_weight(T a, T b) {
  return (a < b ? T(0.5) : T(0)) + (a <= b ? T(0.5) : T(0));
}

template <typename T>
CORRDET_INLINE T larger_weight(T a, T b) {
  return (a > b ? T(0.5) : T(0)) + (a >= b ? T(0.5) : T(0));
}

// A product that is rounded before anything is added to it. A fused multiply-add would make IoU(a,
// b) differ from IoU(b, a), and the IoU of identical boxes from 1.
template <typename T>
CORRDET_INLINE T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;
#endif
}

// A side whose end lies before its start counts as a side of length 0 at its start. Written so that
// a NaN coordinate makes the area NaN.
template <typename T>
CORRDET_INLINE Box<T> make_box(T x1, T y1, T x2, T y2, bool with_angle) {
  x2 = x2 < x1 ? x1 : x2;
  y2 = y2 < y1 ? y1 : y2;
  const T width = x2 - x1;
  const T height = y2 - y1;
  return {x1, y1, x2, y2, rounded_product(width, height),
          // Not -0, between 0 and -0: atan2(0, -0) is pi.
          with_angle ? std::atan2(width + T(0), height + T(0)) : T(0)};
}

template <IouKind kind, typename T>
CORRDET_INLINE T iou(const Box<T>& a, const Box<T>& b) {
  T width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
  T height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
  width = width > T(0) ? width : T(0);
  height = height > T(0) ? height : T(0);
  const T intersection = rounded_product(width, height);
  const T area_union = a.area + b.area - intersection;
  // Divisions are never conditional, so that the compiler can vectorize the loop around them. Where
  // a divisor is 0 its dividend is 0 as well.
  const T overlap = intersection / (area_union == T(0) ? T(1) : area_union);
  if constexpr (kind == IouKind::iou) {
    return overlap;
  }
  const T hull_width = larger(a.x2, b.x2) - smaller(a.x1, b.x1);
  const T hull_height = larger(a.y2, b.y2) - smaller(a.y1, b.y1);
  if constexpr (kind == IouKind::giou) {
    const T hull = rounded_product(hull_width, hull_height);
    return overlap - (hull - area_union) / (hull == T(0) ? T(1) : hull);
  }
  // Differences first: centres of boxes far from the origin would lose their last bits.
  const T dx = ((a.x1 - b.x1) + (a.x2 - b.x2)) * T(0.5);
  const T dy = ((a.y1 - b.y1) + (a.y2 - b.y2)) * T(0.5);
  const T diagonal = hull_width * hull_width + hull_height * hull_height;
  const T distance = overlap - (dx * dx + dy * dy) / (diagonal == T(0) ? T(1) : diagonal);
  if constexpr (kind == IouKind::diou) {
    return distance;
  }
  const T turn = a.angle - b.angle;
  const T v = T(0.40528473456935109) * turn * turn;  // 4 / pi^2
  const T divisor = T(1) - overlap + v;
  return distance - v / (divisor > T(0) ? divisor : T(1)) * v;
}

// Gradient of `upstream * iou(a, b)` with respect to a. Every kind is symmetric, so the other box's
// gradient is iou_gradient(b, a, upstream). CIoU's alpha is a constant, as Zheng et al. train it
// (text under Eq. 12).
template <IouKind kind, typename T>
CORRDET_INLINE BoxGradient<T> iou_gradient(const Box<T>& a, const Box<T>& b, T upstream) {
  T width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
  T height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
  const T overlaps_x = width > T(0) ? T(1) : T(0);
  const T overlaps_y = height > T(0) ? T(1) : T(0);
  width = width > T(0) ? width : T(0);
  height = height > T(0) ? height : T(0);
  const T intersection = rounded_product(width, height);
  const T area_union = a.area + b.area - intersection;
  const T inverse_union =
      (area_union == T(0) ? T(0) : T(1)) / (area_union == T(0) ? T(1) : area_union);
  const T overlap = intersection * inverse_union;

  T by_union = -overlap * inverse_union;
  T by_hull_width = T(0), by_hull_height = T(0), by_x = T(0), by_y = T(0), by_angle = T(0);
  if constexpr (kind != IouKind::iou) {
    const T hull_width = larger(a.x2, b.x2) - smaller(a.x1, b.x1);
    const T hull_height = larger(a.y2, b.y2) - smaller(a.y1, b.y1);
    if constexpr (kind == IouKind::giou) {
      // (hull - union) / hull = 1 - union / hull
      const T hull = rounded_product(hull_width, hull_height);
      const T inverse_hull = (hull == T(0) ? T(0) : T(1)) / (hull == T(0) ? T(1) : hull);
      by_union += inverse_hull;
      const T by_hull = -area_union * inverse_hull * inverse_hull;
      by_hull_width = by_hull * hull_height;
      by_hull_height = by_hull * hull_width;
    } else {
      const T dx = ((a.x1 - b.x1) + (a.x2 - b.x2)) * T(0.5);
      const T dy = ((a.y1 - b.y1) + (a.y2 - b.y2)) * T(0.5);
      const T diagonal = hull_width * hull_width + hull_height * hull_height;
      const T inverse_diagonal =
          (diagonal == T(0) ? T(0) : T(1)) / (diagonal == T(0) ? T(1) : diagonal);
      const T by_diagonal = (dx * dx + dy * dy) * inverse_diagonal * inverse_diagonal;
      by_hull_width = T(2) * by_diagonal * hull_width;
      by_hull_height = T(2) * by_diagonal * hull_height;
      // d(dx^2)/dx1 = 2 dx * 1/2, the same for x2.
      by_x = -dx * inverse_diagonal;
      by_y = -dy * inverse_diagonal;
    }
    if constexpr (kind == IouKind::ciou) {
      const T turn = a.angle - b.angle;
      const T v = T(0.40528473456935109) * turn * turn;
      const T divisor = T(1) - overlap + v;
      const T alpha = v / (divisor > T(0) ? divisor : T(1));
      by_angle = -alpha * T(0.81056946913870218) * turn;  // 8 / pi^2
    }
  }
  const T by_intersection = inverse_union - by_union;
  const T by_width = by_intersection * height * overlaps_x;
  const T by_height = by_intersection * width * overlaps_y;
  const T area_by_x = by_union * (a.y2 - a.y1);
  const T area_by_y = by_union * (a.x2 - a.x1);
  BoxGradient<T> gradient;
  gradient.x1 = upstream * (by_x - by_width * larger_weight(a.x1, b.x1) - area_by_x -
                            by_hull_width * smaller_weight(a.x1, b.x1));
  gradient.y1 = upstream * (by_y - by_height * larger_weight(a.y1, b.y1) - area_by_y -
                            by_hull_height * smaller_weight(a.y1, b.y1));
  gradient.x2 = upstream * (by_x + by_width * smaller_weight(a.x2, b.x2) + area_by_x +
                            by_hull_width * larger_weight(a.x2, b.x2));
  gradient.y2 = upstream * (by_y + by_height * smaller_weight(a.y2, b.y2) + area_by_y +
                            by_hull_height * larger_weight(a.y2, b.y2));
  gradient.angle = upstream * by_angle;
  return gradient;
}

// Carries a gradient from the members of Box to the four coordinates that `make_box` was given. `T`
// is the type of the boxes, `A` that of the sums.
template <typename T, typename A>
CORRDET_INLINE void coordinate_gradient(T x1, T y1, T x2, T y2, const BoxGradient<A>& gradient,
                                        bool with_angle, A (&result)[4]) {
  const bool inverted_x = x2 < x1;
  const bool inverted_y = y2 < y1;
  A gx1 = gradient.x1, gy1 = gradient.y1, gx2 = gradient.x2, gy2 = gradient.y2;
  if (with_angle) {
    const A width = inverted_x ? A(0) : A(x2) - A(x1);
    const A height = inverted_y ? A(0) : A(y2) - A(y1);
    const A square = width * width + height * height;
    const A scale = square == A(0) ? A(0) : gradient.angle / square;
    gx1 -= scale * height;
    gx2 += scale * height;
    gy1 += scale * width;
    gy2 -= scale * width;
  }
  // An inverted side is a point at its start, and so is moved by its start alone.
  result[0] = inverted_x ? gx1 + gx2 : gx1;
  result[1] = inverted_y ? gy1 + gy2 : gy1;
  result[2] = inverted_x ? A(0) : gx2;
  result[3] = inverted_y ? A(0) : gy2;
}

}  // namespace corrdet
