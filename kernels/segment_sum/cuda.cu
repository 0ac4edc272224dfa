// segment_sum: a row of threads walks one segment in order, so no sum is atomic; the gather copies rows.
#include "native.cuh"

namespace {

using namespace ace;

constexpr int kThreads = 256;

// Blocks are (vectors of a row, rows); blockIdx.y counts blocks of vectors.
template <int V>
__device__ __forceinline__ int64_t channel() { return (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V; }
__device__ __forceinline__ int64_t row() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

// y [N, C]: row n is the sum of the rows order[ptr[n]:ptr[n + 1]] of x [E, C]; a thread owns V neighbouring channels.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) segment_sum_fwd_kernel(
    const T* x, int64_t stride, const int64_t* order, const int64_t* ptr, T* y, int64_t E, int64_t N, int64_t C) {
  constexpr int B = 4;  // rows under way at once
  const int64_t n = row(), c = channel<V>();
  if (n >= N || c >= C) return;
  Pack<T, V> sum{};
  const int64_t stop = ptr[n + 1] < E ? ptr[n + 1] : E;
  for (int64_t e = ptr[n] > 0 ? ptr[n] : 0; e < stop; e += B) {
    Pack<T, V> values[B];
#pragma unroll
    for (int b = 0; b < B; ++b) {
      const int64_t r = e + b < stop ? order[e + b] : -1;
      values[b] = r >= 0 && r < E ? load_pack<V>(x + r * stride + c) : Pack<T, V>{};
    }
#pragma unroll
    for (int b = 0; b < B; ++b)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += values[b][v];
  }
  store_pack<V>(y + n * C + c, sum);
}

// y [E, C]: row e is row index[e] of g [N, C], zero where the index is outside 0..N-1.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) segment_sum_bwd_kernel(
    const T* g, int64_t stride, const int64_t* index, T* y, int64_t E, int64_t N, int64_t C) {
  const int64_t e = row(), c = channel<V>();
  if (e >= E || c >= C) return;
  const int64_t n = index[e];
  store_pack<V>(y + e * C + c, n >= 0 && n < N ? load_pack<V>(g + n * stride + c) : Pack<T, V>{});
}

// Threads along a row: the largest power of two that leaves the fewest of them without work.
unsigned threads_along(int64_t vectors) {
  unsigned best = 4;
  for (unsigned x = 8; x <= kThreads; x *= 2)
    if (ceil_div(vectors, x) * x <= ceil_div(vectors, best) * best) best = x;
  return best;
}

// One thread for each of `rows` rows and vectors of V channels.
template <class... P, class... A>
void launch(const Stream& stream, const char* name, void (*kernel)(P...), int64_t rows, int64_t vectors, A... args) {
  const unsigned x = threads_along(vectors), y = kThreads / x;
  stream.launch(name, kernel, grid(ceil_div(rows, y), ceil_div(vectors, x)), dim3(x, y), 0, args...);
}

// f.template operator()<V>() for the widest vector that rows allow.
template <class T, class F>
void with_vectors(int width, F&& f) {
  if constexpr (sizeof(T) == 4) {
    if (width == 4) return f.template operator()<4>();
  }
  if (width >= 2) return f.template operator()<2>();
  f.template operator()<1>();
}

Tensor segment_sum(Tensor x_, Tensor index, Tensor order_, Tensor ptr_) {
  (void)index;
  const Tensor x = dense_rows(x_), order = dense(order_), ptr = dense(ptr_);
  const int64_t E = x.size(0), C = x.size(1), N = ptr.size(0) - 1;
  Tensor y = empty(x, {N, C});  // [N, C]
  const Stream stream(x);
  dispatch(x, [&]<class T>() {
    with_vectors<T>(vector_width<T>(C, x.stride(0), in<T>(x), in<T>(y)), [&]<int V>() {
      launch(stream, "segment_sum_fwd_kernel", segment_sum_fwd_kernel<T, V>, N, C / V, in<T>(x), x.stride(0),
             in<int64_t>(order), in<int64_t>(ptr), out<T>(y), E, N, C);
    });
  });
  return y;
}

Tensor segment_sum_bwd(Tensor g_, Tensor index_, Tensor order, Tensor ptr) {
  (void)order, (void)ptr;
  const Tensor g = dense_rows(g_), index = dense(index_);
  const int64_t N = g.size(0), C = g.size(1), E = index.size(0);
  Tensor y = empty(g, {E, C});  // [E, C]
  const Stream stream(g);
  dispatch(g, [&]<class T>() {
    with_vectors<T>(vector_width<T>(C, g.stride(0), in<T>(g), in<T>(y)), [&]<int V>() {
      launch(stream, "segment_sum_bwd_kernel", segment_sum_bwd_kernel<T, V>, E, C / V, in<T>(g), g.stride(0),
             in<int64_t>(index), out<T>(y), E, N, C);
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_cuda, m) {
  m.def("segment_sum(Tensor x, Tensor index, Tensor order, Tensor ptr) -> Tensor");
  m.def("segment_sum_bwd(Tensor g, Tensor index, Tensor order, Tensor ptr) -> Tensor");
}

ACE_CUDA_IMPL(m) {
  m.impl("segment_sum", TORCH_BOX(&segment_sum));
  m.impl("segment_sum_bwd", TORCH_BOX(&segment_sum_bwd));
}
