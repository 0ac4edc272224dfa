// Shared by all cuda.cu files: launches on torch's device and stream, vectors, warp sums, asynchronous copies, tensor
// cores. The same source is compiled by nvcc and, with ACE_EMULATE, by the host compiler on top of emulate.h.
#pragma once

#include "tensors.h"

#if defined(ACE_EMULATE)
#include "emulate.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>

// Operators of all cuda.cu files live in torch.ops.ace_fast_cuda, for CUDA tensors; emulated ones take CPU tensors.
#if defined(ACE_EMULATE)
#define ACE_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ace_fast_cuda, CPU, m)
#else
#define ACE_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ace_fast_cuda, CUDA, m)
#endif

// ACE_SHARED(T, name, count): `T* name`, an array in static shared memory. dynamic_shared<T>() is the launch's.
#if defined(ACE_EMULATE)
#define ACE_SHARED(T, name, count)                  \
  static const char name##_key = 0;                 \
  T* const name = static_cast<T*>(ace::emulate::shared_variable(&name##_key, sizeof(T) * (count)))
#else
#define ACE_SHARED(T, name, count)            \
  __shared__ __align__(16) T name##_[count]; \
  T* const name = name##_
extern __shared__ __align__(16) unsigned char ace_dynamic_shared[];
#endif

// ACE_ARGUMENT(T) name: a struct of up to 4 KB that lies in the launch's constant memory and may be indexed there.
#if defined(ACE_EMULATE)
#define ACE_ARGUMENT(T) const T&
#else
#define ACE_ARGUMENT(T) const __grid_constant__ T
#endif

namespace ace {

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(ACE_EMULATE)
  return reinterpret_cast<T*>(emulate::machine.shared.front().data);
#else
  return reinterpret_cast<T*>(ace_dynamic_shared);
#endif
}

constexpr unsigned kWarp = 0xffffffffu;  // the mask of a whole warp

// ---- launches ------------------------------------------------------------------------------------------------------

constexpr size_t kMaxArguments = 4096;  // bytes that every GPU takes with a launch
constexpr size_t kMaxStatic = 8 << 10;  // bytes of static shared memory that no kernel exceeds (nvcc.py checks it)

// Blocks of a grid; more than a grid takes raises.
inline dim3 grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  STD_TORCH_CHECK(x <= 2147483647 && y <= 65535 && z <= 65535, "ace_fast: a grid of ", x, " x ", y, " x ", z,
                  " blocks is too large; split the input");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// The device of a tensor, current while this object lives, and torch's current stream there.
class Stream {
 public:
#if defined(ACE_EMULATE)
  explicit Stream(const Tensor&) {}
  int multiprocessors() const { return 2; }
  size_t max_shared() const { return emulate::kMaxShared; }
#else
  explicit Stream(const Tensor& x) : device_(x.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  size_t max_shared() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
#endif

  // kernel<<<grid, block, shared>>>(args...); a grid without blocks launches nothing.
  template <class... P, class... A>
  void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A&&... args) const {
    static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
    static_assert((((sizeof(P) + 7) / 8 * 8) + ... + 0) <= kMaxArguments, "the kernel's arguments are too large");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(ACE_EMULATE)
    emulate::run(name, grid, block, shared, [&] { kernel(static_cast<P>(args)...); });
#else
    if (shared + kMaxStatic > (48 << 10))  // what a block gets without asking includes static shared memory
      check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    std::tuple<P...> values(static_cast<P>(args)...);
    std::apply(
        [&](auto&... value) {  // the call's own status: cudaGetLastError may hold that of an earlier one
          void* pointers[] = {&value..., nullptr};
          check(name, cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared, stream_));
        },
        values);
#endif
  }

  // Zeroes memory on the stream.
  void zero(void* p, size_t bytes) const {
    if (bytes == 0) return;
#if defined(ACE_EMULATE)
    std::memset(p, 0, bytes);
#else
    check("memset", cudaMemsetAsync(p, 0, bytes, stream_));
#endif
  }

#if !defined(ACE_EMULATE)
 private:
  static void check(const char* name, cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();  // forgotten, so that nobody takes it for that of a later call
    STD_TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
  }
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check("device attribute", cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
#endif
};

// ---- vectors -------------------------------------------------------------------------------------------------------

// N values that are loaded and stored at once; their address must be a multiple of their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

template <int N, class T>
__device__ __forceinline__ void check_aligned(const T* p) {
#if defined(ACE_EMULATE)
  if (reinterpret_cast<uintptr_t>(p) % (sizeof(T) * N))
    emulate::fail("takes a vector at an address that is not a multiple of its size");
#else
  (void)p;
#endif
}

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  check_aligned<N>(p);
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& value) {
  check_aligned<N>(p);
  *reinterpret_cast<Pack<T, N>*>(p) = value;
}

// The widest vector (at most 16 bytes) in which rows of `width` values at `stride` can be taken, from these addresses.
template <class T, class... P>
inline int vector_width(int64_t width, int64_t stride, const P*... p) {
  int n = 16 / sizeof(T);
  const auto all = [&] {
    return width % n == 0 && stride % n == 0 && ((reinterpret_cast<uintptr_t>(p) % (n * sizeof(T)) == 0) && ...);
  };
  while (n > 1 && !all()) n /= 2;
  return n;
}

// ---- warps ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// The sum over the lanes of a warp (or of aligned groups of `width` lanes), in every lane, in a fixed order.
template <int width = 32, class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWarp, value, step);
  return value;
}

// Sums of N values over the lanes of a warp: lane n has the n-th (repeated beyond N, a power of two).
template <class T, int N>
__device__ __forceinline__ T sum_scattered(T (&value)[N], int lane) {
#pragma unroll
  for (int width = N / 2, step = 1; width > 0; width /= 2, step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int n = 0; n < width; ++n) {
      const T give = upper ? value[2 * n] : value[2 * n + 1], keep = upper ? value[2 * n + 1] : value[2 * n];
      value[n] = keep + __shfl_xor_sync(kWarp, give, step);
    }
  }
  T sum = value[0];
#pragma unroll
  for (int step = N; step < 32; step *= 2) sum += __shfl_xor_sync(kWarp, sum, step);
  return sum;
}

// ---- functions -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
template <class T> __device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + exp_of(-x)); }
template <class T> __device__ __forceinline__ T silu(T x) { return x * sigmoid(x); }
template <class T>
__device__ __forceinline__ T silu_grad(T x) {
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

// ---- asynchronous copies -------------------------------------------------------------------------------------------

// Starts a copy of `bytes` (4, 8 or 16) from global to shared memory; with `valid` false zeros are written, and nothing
// is read. The data may be read after copy_wait and a barrier.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
#if defined(ACE_EMULATE)
  emulate::copy_async(shared, global, bytes, valid ? bytes : 0);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int size = valid ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(bytes), "r"(size)
                 : "memory");
#endif
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_commit() {
#if defined(ACE_EMULATE)
  emulate::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `left` of this thread's groups are under way.
template <int left>
__device__ __forceinline__ void copy_wait() {
#if defined(ACE_EMULATE)
  emulate::copy_wait(left);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

// ---- tensor cores --------------------------------------------------------------------------------------------------
// c[16, 8] += a[16, k] b[k, 8] by one warp, k = 8 (TF32) or 16 (bfloat16). With g = lane / 4 and t = lane % 4:
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   TF32 a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g)
//   bfloat16, two neighbours in k to a register:
//     a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b: (2t, g), (2t + 8, g)

// How the product of float32 matrices is made: of three TF32 products of parts, with float32's accuracy, of one TF32
// product, or of one bfloat16 product. Sums are float32 in each. triton_common.py, matmul_precision.
enum class Precision : int { highest, high, medium };

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
__device__ __forceinline__ float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// x rounded to TF32 (10 bits of mantissa, ties away from zero).
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if defined(ACE_EMULATE)
  const uint32_t u = bits_of(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
#else
  uint32_t u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(x));
  return u;
#endif
}

// x = big + small to 2^-22 of x: three products of such parts make one of float32 accuracy.
__device__ __forceinline__ void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = to_tf32(x);
  small = to_tf32(x - float_of(big));
}

#if defined(ACE_EMULATE)
namespace emulate {
struct Fragments { uint32_t a[4], b[2]; };

// value(register, half) of a lane's fragment, for k values from `half` halves of a register.
template <int halves, class Value>
void mma(const char* what, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Value value) {
  Fragments mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  meet(what, kWarp, &mine, sizeof(mine));
  const int lane = machine.current % 32, g = lane / 4, t = lane % 4;
  for (int part = 0; part < 2; ++part)
    for (int k = 0; k < 4; ++k) {
      const Fragments left = gift<Fragments>(g * 4 + k);
      const Fragments first = gift<Fragments>(2 * t * 4 + k), second = gift<Fragments>((2 * t + 1) * 4 + k);
      for (int h = 0; h < halves; ++h) {
        const float low = value(left.a[2 * part], h), high = value(left.a[2 * part + 1], h);
        c[0] += low * value(first.b[part], h);
        c[1] += low * value(second.b[part], h);
        c[2] += high * value(first.b[part], h);
        c[3] += high * value(second.b[part], h);
      }
    }
}
}  // namespace emulate
#endif

__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(ACE_EMULATE)
  emulate::mma<1>("mma_tf32", c, a, b, [](uint32_t u, int) { return float_of(u & 0xffffe000u); });
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(ACE_EMULATE)
  emulate::mma<2>("mma_bf16", c, a, b, [](uint32_t u, int h) { return float_of(h ? u & 0xffff0000u : u << 16); });
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Two floats as bfloat16 (to nearest even), the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(ACE_EMULATE)
  const auto round = [](float x) {
    const uint32_t u = bits_of(x);
    return std::isnan(x) ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
#else
  uint32_t u;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
#endif
}

}  // namespace ace
