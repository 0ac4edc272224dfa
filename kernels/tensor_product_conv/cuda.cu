// tensor_product_conv on CUDA. "uvu" products run in one kernel (forward.cuh, backward.cuh); every other product runs
// through tensor_product's kernels, on the rows of some thousand edges at a time that stay in the GPU's cache.
#include "call.cuh"
#include "general.cuh"

namespace {

using namespace ace;
using namespace ace::conv;

Tensor tensor_product_conv(Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr,
                           Tensor target, Tensor target_order, Tensor target_ptr, Tensor index, Tensor value, Ints dims,
                           Ints paths, bool atomic, int64_t precision) {
  const Inputs inputs(x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, index, value,
                      dims, paths, atomic);
  Tensor y = empty(inputs.x1, {inputs.targets, dims[2]});
  const Stream stream(inputs.x1);
  dispatch(inputs.x1, [&]<class T>() {
    const ChannelCall<T> channels(inputs, stream);
    if (channels.takes(false)) return channels.forward(out<T>(y));
    GeneralCall<T>{inputs, stream, precision}.forward(out<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> tensor_product_conv_bwd(Tensor g_, Tensor x1, Tensor x2, Tensor weight,
                                                           Tensor source, Tensor source_order, Tensor source_ptr,
                                                           Tensor target, Tensor target_order, Tensor target_ptr,
                                                           Tensor index, Tensor value, Ints dims, Ints paths,
                                                           bool atomic, int64_t needs, int64_t precision) {
  const Inputs inputs(x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, index, value,
                      dims, paths, atomic);
  const Tensor g = dense(g_);
  const auto like = [&](const Tensor& x, int64_t bit) {
    return needs & bit ? torch::stable::empty_like(x) : empty(x, {0});
  };
  Tensor g_x1 = like(inputs.x1, 1), g_x2 = like(inputs.x2, 2), g_weight = like(inputs.weight, 4);
  const Stream stream(inputs.x1);
  dispatch(inputs.x1, [&]<class T>() {
    const auto wanted = [&](const Tensor& x, int64_t bit) { return needs & bit ? out<T>(x) : nullptr; };
    T *const to_x1 = wanted(g_x1, 1), *const to_x2 = wanted(g_x2, 2), *const to_weight = wanted(g_weight, 4);
    if (!to_x1 && !to_x2 && !to_weight) return;
    const ChannelCall<T> channels(inputs, stream);
    if (channels.takes(true)) return channels.backward(g, to_x1, to_x2, to_weight);
    GeneralCall<T>{inputs, stream, precision}.backward(g, to_x1, to_x2, to_weight);
  });
  return {g_x1, g_x2, g_weight};
}

}  // namespace

#define INPUTS                                                                                                  \
  "Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr, Tensor target, " \
  "Tensor target_order, Tensor target_ptr, Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, bool atomic"

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("tensor_product_conv(" INPUTS ", int precision) -> Tensor");
  m.def("tensor_product_conv_bwd(Tensor g, " INPUTS ", int needs, int precision) -> (Tensor, Tensor, Tensor)");
}

ACE_CUDA_IMPL(m) {
  m.impl("tensor_product_conv", TORCH_BOX(&tensor_product_conv));
  m.impl("tensor_product_conv_bwd", TORCH_BOX(&tensor_product_conv_bwd));
}
