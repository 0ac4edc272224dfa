// segment_sum: each segment walks its own rows, so no two threads write one row and the order of summation is fixed.
#include "native.h"

namespace {

template <class T>
void add_row(T* out, const T* row, int64_t width) {
  for (int64_t c = 0; c < width; ++c) out[c] += row[c];
}

}  // namespace

static ace::Tensor segment_sum(ace::Tensor x_, ace::Tensor index, ace::Tensor order_, ace::Tensor ptr_) {
  (void)index;
  using namespace ace;
  const Tensor x = dense_rows(x_), order = dense(order_), ptr = dense(ptr_);
  const int64_t rows = x.size(0), width = x.size(1), stride = x.stride(0), n = ptr.size(0) - 1;  // x [E, C] -> out [N, C]
  Tensor result = empty(x, {n, width});
  dispatch(x, [&]<class T>() {
    const T* source = in<T>(x);
    const int64_t* sorted = in<int64_t>(order);
    const int64_t* start = in<int64_t>(ptr);
    T* target = out<T>(result);
    parallel(n, std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)), [&](int64_t i) {
      T* row = target + i * width;
      std::fill(row, row + width, T(0));
      const int64_t end = std::min(start[i + 1], rows);
      for (int64_t e = std::max<int64_t>(start[i], 0); e < end; ++e)
        if (sorted[e] >= 0 && sorted[e] < rows) add_row(row, source + sorted[e] * stride, width);
    });
  });
  return result;
}

static ace::Tensor segment_sum_bwd(ace::Tensor g_, ace::Tensor index_, ace::Tensor order, ace::Tensor ptr) {
  (void)order, (void)ptr;
  using namespace ace;
  const Tensor g = dense_rows(g_), index = dense(index_);
  const int64_t n = g.size(0), width = g.size(1), stride = g.stride(0), rows = index.size(0);  // g [N, C] -> out [E, C]
  Tensor result = empty(g, {rows, width});
  dispatch(g, [&]<class T>() {
    const T* source = in<T>(g);
    const int64_t* segment = in<int64_t>(index);
    T* target = out<T>(result);
    parallel(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)), [&](int64_t e) {
      T* row = target + e * width;
      const int64_t s = segment[e];
      if (s >= 0 && s < n) std::copy_n(source + s * stride, width, row);
      else std::fill(row, row + width, T(0));
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("segment_sum(Tensor x, Tensor index, Tensor order, Tensor ptr) -> Tensor");
  m.def("segment_sum_bwd(Tensor g, Tensor index, Tensor order, Tensor ptr) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("segment_sum", TORCH_BOX(&segment_sum));
  m.impl("segment_sum_bwd", TORCH_BOX(&segment_sum_bwd));
}
