// tensor_product_conv: edges sorted by the node at which something is summed, in chunks of equal length (edges.h).
// "uvu" products with enough channels run with channels as lanes (by_channels.h), all others with edges as lanes
// (by_edges.h). The chunks' sums at a node that they share, and at shared weights, are added in order at the end.
#include "by_channels.h"
#include "by_edges.h"

namespace {

using namespace ace;
using namespace ace::conv;

Tensor tensor_product_conv(Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr,
                           Tensor target, Tensor target_order, Tensor target_ptr, Tensor index, Tensor value, Ints dims,
                           Ints paths_) {
  (void)source_ptr;
  const Operands o(x1, x2, weight, source, source_order, target, target_order, target_ptr.size(0) - 1, dims);
  Tensor y = empty(o.x1, {o.targets, o.dim3});
  dispatch(o.x1, [&]<class T>() {
    const std::vector<product::Path> paths = product::read_paths<T>(paths_, index, value);
    if (const auto plan = make_plan<T>(paths, paths_, dims)) return forward_channels<T>(*plan, o, out<T>(y));
    forward_edges<T>(paths, dims, o, out<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> tensor_product_conv_bwd(Tensor g_, Tensor x1, Tensor x2, Tensor weight,
                                                           Tensor source, Tensor source_order, Tensor source_ptr,
                                                           Tensor target, Tensor target_order, Tensor target_ptr,
                                                           Tensor index, Tensor value, Ints dims, Ints paths_,
                                                           int64_t needs) {
  (void)source_ptr;
  const Operands o(x1, x2, weight, source, source_order, target, target_order, target_ptr.size(0) - 1, dims);
  const Tensor g = dense(g_);
  const auto like = [&](const Tensor& x, int64_t bit) {
    return needs & bit ? in_huge_pages(torch::stable::empty_like(x)) : empty(x, {0});
  };
  Tensor g_x1 = like(o.x1, 1), g_x2 = like(o.x2, 2), g_weight = like(o.weight, 4);
  dispatch(o.x1, [&]<class T>() {
    const std::vector<product::Path> paths = product::read_paths<T>(paths_, index, value);
    const Gradients<T> grads{needs & 1 ? out<T>(g_x1) : nullptr, needs & 2 ? out<T>(g_x2) : nullptr,
                             needs & 4 ? out<T>(g_weight) : nullptr};
    zero_outside<T>(o, grads);
    if (const auto plan = make_plan<T>(paths, paths_, dims)) return backward_channels<T>(*plan, o, in<T>(g), grads);
    backward_edges<T>(paths, dims, o, in<T>(g), grads);
  });
  return {g_x1, g_x2, g_weight};
}

}  // namespace

#define INPUTS                                                                                                  \
  "Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr, Tensor target, " \
  "Tensor target_order, Tensor target_ptr, Tensor cg_index, Tensor cg_value, int[] dims, int[] paths"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("tensor_product_conv(" INPUTS ") -> Tensor");
  m.def("tensor_product_conv_bwd(Tensor g, " INPUTS ", int needs) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("tensor_product_conv", TORCH_BOX(&tensor_product_conv));
  m.impl("tensor_product_conv_bwd", TORCH_BOX(&tensor_product_conv_bwd));
}
