// Kernels that test the emulation itself; tests/test_emulate.py compiles and calls them.
#include "native.cuh"

namespace {

using namespace ace;

// y[i] = x[n - 1 - i] through shared memory; without the barrier the result depends on the order of the threads.
template <bool barrier>
__global__ void reverse_kernel(const float* x, float* y) {
  float* all = dynamic_shared<float>();
  const int i = threadIdx.x, n = blockDim.x;
  all[i] = x[int64_t(blockIdx.x) * n + i];
  if (barrier) __syncthreads();
  y[int64_t(blockIdx.x) * n + i] = all[n - 1 - i];
}

// The sum of a block's values: shuffles within warps, static shared memory between them, one atomic at the end.
__global__ void sum_kernel(const float* x, float* y) {
  ACE_SHARED(float, parts, 32);
  const float mine = warp_sum(x[int64_t(blockIdx.x) * blockDim.x + threadIdx.x]);
  if (lane_id() == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int warps = blockDim.x / 32;
  const float sum = warp_sum(int(threadIdx.x) < warps ? parts[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) atomicAdd(y, sum);
}

// Rows of y [8, 64]: what each shuffle and the vote give to the threads of two warps.
__global__ void shuffle_kernel(const float* x, float* y) {
  const int i = threadIdx.x, lane = lane_id();
  const float v = x[i];
  y[i] = __shfl_sync(kWarp, v, 3);
  y[64 + i] = __shfl_sync(kWarp, v, lane + 1, 8);
  y[128 + i] = __shfl_xor_sync(kWarp, v, 5);
  y[192 + i] = __shfl_down_sync(kWarp, v, 2);
  y[256 + i] = __shfl_down_sync(kWarp, v, 3, 8);
  y[320 + i] = __shfl_up_sync(kWarp, v, 4);
  y[384 + i] = static_cast<float>(__ballot_sync(kWarp, lane % 4 == 0) & 0xffff);
  // two groups of lanes, each with a mask and a number of collectives of its own
  float w = v;
  if (lane < 8) w = __shfl_xor_sync(0xffu, __shfl_xor_sync(0xffu, w, 1), 2);
  else w = __shfl_xor_sync(0xffffff00u, w, 1) * 0 + w;
  __syncwarp();
  y[448 + i] = __shfl_xor_sync(kWarp, w, 1);
}

// Two stages of asynchronous copies; `left` groups may still be under way when the first is read.
template <int left>
__global__ void copy_kernel(const float* x, float* y) {
  ACE_SHARED(float, stage, 2 * 128);
  const int i = threadIdx.x;
  for (int s = 0; s < 2; ++s) {
    copy_async<16>(stage + s * 128 + 4 * i, x + s * 128 + 4 * i, 4 * i < 100);
    copy_commit();
  }
  copy_wait<left>();
  __syncthreads();
  for (int k = i; k < 128; k += 32) y[k] = stage[127 - k];
}

// c [16, 8] = a [16, k] b [k, 8] on the tensor cores: kind 0 TF32, 1 three TF32 products, 2 bfloat16.
template <int kind>
__global__ void mma_kernel(const float* a, const float* b, float* c, int k) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  float acc[4] = {};
  for (int p = 0; p < k; p += kind == 2 ? 16 : 8) {
    if constexpr (kind == 2) {
      const auto pair_a = [&](int row, int at) { return pack_bf16(a[row * k + p + at], a[row * k + p + at + 1]); };
      const auto pair_b = [&](int at) { return pack_bf16(b[(p + at) * 8 + g], b[(p + at + 1) * 8 + g]); };
      const int m = 2 * t + 8;
      const uint32_t left[4] = {pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, m), pair_a(g + 8, m)};
      const uint32_t right[2] = {pair_b(2 * t), pair_b(m)};
      mma_bf16(acc, left, right);
    } else {
      const float *low = a + g * k + p + t, *high = low + 8 * k;
      const float va[4] = {low[0], high[0], low[4], high[4]};
      const float vb[2] = {b[(p + t) * 8 + g], b[(p + t + 4) * 8 + g]};
      uint32_t big_a[4], small_a[4], big_b[2], small_b[2];
      for (int i = 0; i < 4; ++i) split_tf32(va[i], big_a[i], small_a[i]);
      for (int i = 0; i < 2; ++i) split_tf32(vb[i], big_b[i], small_b[i]);
      if (kind == 1) mma_tf32(acc, small_a, big_b);
      if (kind == 1) mma_tf32(acc, big_a, small_b);
      mma_tf32(acc, big_a, big_b);
    }
  }
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = acc[i];
}

// What must be an error, by number.
__global__ void wrong_kernel(int which, float* y) {
  float* all = dynamic_shared<float>();
  ACE_SHARED(float, fixed, 4);
  const int i = threadIdx.x;
  if (which == 0 && i < 40) __syncthreads();                       // the others return
  if (which == 1 && i == 3) __syncthreads();                       // while its warp shuffles
  if (which == 1) y[i] = __shfl_xor_sync(kWarp, 1.0f, 1);
  if (which == 2) y[i] = __shfl_sync(0xffffu, 1.0f, 0);            // half of the warp is not in its own mask
  if (which == 3 && i % 32 < 16) y[i] = __shfl_sync(0xffffu, 1.0f, 20);  // reads a lane outside the mask
  if (which == 4 && i == 0) all[64] = 1;                           // one beyond the 64 of the launch
  if (which == 5 && i == 0) fixed[4] = 1;
  if (which == 6) y[i] = load_pack<4>(all + i)[0];                 // not aligned
  if (which == 7 && i < 32) {
    if (i < 16) __syncwarp();
    else __shfl_sync(kWarp, 1.0f, 0);
  }
  if (which == 8) y[i] = all[i];  // never written
  if (which == 9) y[i] = warp_sum(1.0f);  // not in a block that ends within a warp
}

Tensor test(int64_t which, Tensor x, Tensor z) {
  const Stream stream(x);
  const float *a = in<float>(x), *b = in<float>(z);
  const int64_t n = x.numel(), threads = n < 256 ? n : 256;
  Tensor y = empty(x, {which == 3 ? 8 * n : which >= 20 ? 128 : n});
  float* to = out<float>(y);
  if (which == 0) stream.launch("reverse_kernel", reverse_kernel<true>, grid(n / threads), threads, threads * 4, a, to);
  if (which == 1)
    stream.launch("reverse_kernel", reverse_kernel<false>, grid(n / threads), threads, threads * 4, a, to);
  if (which == 2) {
    stream.zero(to, n * 4);
    stream.launch("sum_kernel", sum_kernel, grid(n / threads), threads, 0, a, to);
  }
  if (which == 3) stream.launch("shuffle_kernel", shuffle_kernel, grid(1), 64, 0, a, to);
  if (which == 4) stream.launch("copy_kernel", copy_kernel<0>, grid(1), 32, 0, a, to);
  if (which == 5) stream.launch("copy_kernel", copy_kernel<1>, grid(1), 32, 0, a, to);
  const int k = static_cast<int>(n / 16);
  if (which == 20) stream.launch("mma_kernel", mma_kernel<0>, grid(1), 32, 0, a, b, to, k);
  if (which == 21) stream.launch("mma_kernel", mma_kernel<1>, grid(1), 32, 0, a, b, to, k);
  if (which == 22) stream.launch("mma_kernel", mma_kernel<2>, grid(1), 32, 0, a, b, to, k);
  return y;
}

Tensor wrong(int64_t which, Tensor x, int64_t threads, int64_t shared) {
  Tensor y = empty(x, {x.size(0)});
  const unsigned block = static_cast<unsigned>(threads);
  Stream(x).launch("wrong_kernel", wrong_kernel, grid(1), block, shared, static_cast<int>(which), out<float>(y));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_emulate_test, m) {
  m.def("test(int which, Tensor x, Tensor z) -> Tensor");
  m.def("wrong(int which, Tensor x, int threads, int shared) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_emulate_test, CPU, m) {
  m.impl("test", TORCH_BOX(&test));
  m.impl("wrong", TORCH_BOX(&wrong));
}
