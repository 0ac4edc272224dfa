// Gradient of in2 of the fully connected product ("uvw") with shared weights, as matrix products. For 16 rows,
// h[b, z, n] = sum_a left[z, a, b] W[a, n] by the tiles of dense.cuh, where left is the operand whose side is cheaper to
// multiply (g: a = w, n = u; x1: a = u, n = w), N[z, b, c] = sum_n other[z, n, c] h[b, z, n] with the other one, and
// g_x2[z, v, j] = sum over paths of C[i, j, k] N[z, i, k]. Columns n of all paths that read the same slice of left lie
// in one tile, so small multiplicities share it. A block writes its columns of x2 itself: sums in a fixed order.
#pragma once

#include "dense.cuh"

namespace ace::product {

constexpr int kX2Paths = 64, kX2Whole = 64;  // paths of a launch; columns of x2 that a block may have all of
constexpr int kLanes = kTeam / kRows;        // threads that have a row in the sums over n
template <class T> constexpr int kHStride = kLeftStride<T> > kWide ? kLeftStride<T> : kWide + 4;

// Paths in the order in which a block goes through them: by the slice of in2 (unless a block has all slices), by the
// operand that is multiplied, by its slice.
struct X2Paths {
  int count;
  Path path[kX2Paths];
  bool by_u[kX2Paths];  // left is x1
};

template <class T>
struct X2Operands {
  const T *g, *x1, *weight;
  int64_t ld_g, ld_x1, ld_x2, Z;
  Coefficients table;
  T* out;
  Precision precision;
  bool ir_mul, whole, add;          // whole: a block has all columns of x2; add: to what is there
  int space, row_of_n, components;       // values for dense coefficients and for a row's N; most components at once
  __host__ __device__ int columns() const { return whole ? kX2Whole : 16; }  // of a row's sums in shared memory
  __host__ __device__ int team_size() const {
    return components * kRows * kHStride<T> + kRows * (row_of_n + columns());
  }
  size_t shared(int teams) const { return ((space + 3) / 4 * 4 + kRightSize<T> + teams * team_size()) * sizeof(T); }
};

// Paths first .. end - 1 that a block goes through, and the channel of x2 that it has, -1 for all.
struct X2Job { int first, end, v; };

__device__ __forceinline__ X2Job find_x2_job(const X2Paths& paths, bool whole, int index) {
  if (whole) return {0, paths.count, -1};
  for (int first = 0;;) {
    int end = first + 1;
    while (end < paths.count && paths.path[end].o2 == paths.path[first].o2) ++end;
    if (index < paths.path[first].V) return {first, end, index};
    index -= paths.path[first].V;
    first = end;
  }
}

// Where a tile of columns begins: a path, a channel of x2 and one of the operand that is not multiplied.
struct Corner { int path, v, n, dense; };

// f(path, corner, channels, column) for the columns of the tile that begins at `at`; returns where the next one does.
// by_u, the tile's rows are copied as vectors, so every path begins at a multiple of 8.
template <Role role, class F>
__device__ __forceinline__ Corner for_columns(const X2Paths& paths, Corner at, int end, int v, int& columns, F&& f) {
  columns = 0;
#pragma unroll 1
  while (at.path < end && columns < kWide) {
    const Path& p = paths.path[at.path];
    const int mul = Ends<role>(p).b_mul, left = mul - at.n, most = kWide - columns, many = left < most ? left : most;
    f(p, at, many, columns);
    columns += role == Role::forward ? (many + 7) / 8 * 8 : many;
    at.n += many;
    if (at.n < mul) break;
    at.n = 0;
    if (v < 0 && ++at.v < p.V) continue;
    at.v = v < 0 ? 0 : v;
    at.dense += dense_size(p);
    ++at.path;
  }
  return at;
}

// What a team of threads works on: its rows, its shared memory. Computed where it is asked for, which spares registers.
template <class T>
struct X2Team {
  const X2Operands<T>& in;

  __device__ int thread() const { return threadIdx.x % kTeam; }
  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ int z() const { return thread() / kLanes; }
  __device__ int64_t row() const { return int64_t(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; }
  __device__ bool there() const { return row() < in.Z; }
  __device__ T* dense() const { return dynamic_shared<T>(); }
  __device__ T* right() const { return dynamic_shared<T>() + (in.space + 3) / 4 * 4; }
  __device__ T* t() const { return right() + kRightSize<T> + threadIdx.x / kTeam * in.team_size(); }
  __device__ T* n() const { return t() + in.components * kRows * kHStride<T> + z() * in.row_of_n; }  // [b * d + c]
  __device__ T* sums() const {  // [column of x2]
    return t() + in.components * kRows * kHStride<T> + kRows * in.row_of_n + z() * in.columns();
  }

  // t[b, z, a] = component first + b of channels a0 .. a0 + 8 * steps - 1 of left; zero outside.
  template <Role role, int DB>
  __device__ void form(const Path& p, int a0, int steps, int first) const {
    const Ends<role> ends(p);
    const T* from = role == Role::forward ? in.x1 + row() * in.ld_x1 : in.g + row() * in.ld_g;
    const int stride = in.ir_mul ? ends.a_mul : 1;
    T* const to = t() + z() * kLeftStride<T>;
    constexpr int kAhead = DB == 1 ? 4 : DB == 3 ? 2 : 1;  // steps whose loads are under way together
#pragma unroll 1
    for (int step = 0; step < steps; step += kAhead) {
      T value[kAhead][DB];
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int a = a0 + (step + s) * 8 + lane();
        const bool valid = there() && a < ends.a_mul;
        const T* x = from + column(ends.a_offset, ends.a_mul, ends.a_d, in.ir_mul, a, first);
#pragma unroll
        for (int b = 0; b < DB; ++b) value[s][b] = valid && first + b < ends.a_d ? x[b * stride] : T(0);
      }
#pragma unroll
      for (int s = 0; s < kAhead; ++s)
#pragma unroll
        for (int b = 0; b < DB; ++b)
          if (step + s < steps) to[b * kRows * kLeftStride<T> + (step + s) * 8 + lane()] = value[s][b];
    }
  }

  // N of this row for `many` channels from corner.n on, whose h lie from column `at` of t on.
  template <Role role, int DB>
  __device__ void couple(const Path& p, const Corner& corner, int many, int at) const {
    const Ends<role> ends(p);  // b: the other operand's slice
    const int d = role == Role::forward ? p.d3 : p.d1, o = role == Role::forward ? p.o3 : p.o1;
    const int stride = in.ir_mul ? ends.b_mul : 1, next = in.ir_mul ? 1 : d;
    const int64_t z = there() ? row() : 0;
    const T* x = (role == Role::forward ? in.g + z * in.ld_g : in.x1 + z * in.ld_x1) +
                 column(o, ends.b_mul, d, in.ir_mul, corner.n, 0);
    const T* h = t() + this->z() * kHStride<T> + at;
    T* const n = this->n();
    constexpr int kPart = kRows * kHStride<T>;
    if (many < kLanes) {  // a lane has elements of N
      for (int e = lane(); e < DB * d; e += kLanes) {
        const int c = e % d;
        T sum = T(0);
        for (int m = 0; m < many; ++m) sum += h[e / d * kPart + m] * x[m * next + c * stride];
        n[e] = sum;
      }
      return;
    }
    for (int c0 = 0; c0 < d; c0 += 3) {  // a lane has channels
      T sum[DB][3] = {};
#pragma unroll 1
      for (int m = lane(); m < many; m += kLanes) {
        T value[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) value[c] = c0 + c < d ? x[m * next + (c0 + c) * stride] : T(0);
#pragma unroll
        for (int b = 0; b < DB; ++b)
#pragma unroll
          for (int c = 0; c < 3; ++c) sum[b][c] += h[b * kPart + m] * value[c];
      }
#pragma unroll
      for (int b = 0; b < DB; ++b)
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const T total = warp_sum<kLanes>(sum[b][c]);
          if ((b * 3 + c) % kLanes == lane() && c0 + c < d) n[b * d + c0 + c] = total;
        }
    }
  }

  // sums += C N for components first .. first + components - 1 of left
  template <Role role>
  __device__ void add(const Path& p, const Corner& corner, int first, int components) const {
    const int d = role == Role::forward ? p.d3 : p.d1;
    const T *c = dense() + corner.dense, *n = this->n();  // c [i, k, j]
    const int step = (role == Role::forward ? 1 : p.d3) * p.d2, across = (role == Role::forward ? p.d3 : 1) * p.d2;
    for (int j = lane(); j < p.d2; j += kLanes) {
      T sum = T(0);
      for (int b = 0; b < components; ++b)
        for (int m = 0; m < d; ++m) sum += c[(first + b) * across + m * step + j] * n[b * d + m];
      sums()[in.whole ? column(p.o2, p.V, p.d2, in.ir_mul, corner.v, j) : j] += sum;
    }
  }
};

// Starts the copies of the weights of a tile's columns, channels a0 .. a0 + deep - 1 of left.
template <class T, Role role>
__device__ void copy_columns(const X2Paths& paths, const X2Team<T>& team, const Corner& at, int end, int v, int a0,
                             int deep) {
  int columns;
  for_columns<role>(paths, at, end, v, columns, [&](const Path& p, const Corner& corner, int many, int column) {
    const T* weight = team.in.weight + p.weight;
    const bool vectors = p.W % (16 / sizeof(T)) == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
    const int padded = (deep + 7) / 8 * 8;
    const int64_t ld = int64_t(p.V) * p.W;
    if (role == Role::forward)
      copy_tile(team.right() + column, kRightStride, weight + (int64_t(a0) * p.V + corner.v) * p.W + corner.n, ld, padded,
                (many + 7) / 8 * 8, deep, many, vectors);
    else
      copy_tile(team.right() + column * kLeftStride<T>, kLeftStride<T>,
                weight + (int64_t(corner.n) * p.V + corner.v) * p.W + a0, ld, many, padded, many, deep, vectors);
  });
}

// Paths first .. end - 1, which read one slice of left, for components component .. of it. Begins and ends with all
// shared memory but `dense` and `sums` free.
template <class T, Role role, int DB>
__device__ void x2_tiles(const X2Paths& paths, const X2Team<T>& team, int first, int end, int v, int component) {
  const Path& p = paths.path[first];
  const auto mul = [&] { return Ends<role>(p).a_mul; };  // read where it is used: no register holds it
  const auto deep_at = [&](int a) { return mul() - a < kDeep<T> ? mul() - a : kDeep<T>; };
  Corner at{first, v < 0 ? 0 : v, 0, 0};
  copy_columns<T, role>(paths, team, at, end, v, 0, deep_at(0));
  while (at.path < end) {
    int columns;
    const auto after = [&] { return for_columns<role>(paths, at, end, v, columns, [](auto&&...) {}); };
    after();
    Accumulator<T, role, DB> accumulator(team.thread(), columns);
#pragma unroll 1
    for (int a = 0; a < mul(); a += kDeep<T>) {
      const int steps = (deep_at(a) + 7) / 8;
      team.template form<role, DB>(p, a, steps, component);
      copy_wait<0>();
      __syncthreads();
      accumulator.multiply(team.t(), team.right(), steps, team.in.precision);
      __syncthreads();  // nobody reads these tiles
      if (a + kDeep<T> < mul()) copy_columns<T, role>(paths, team, at, end, v, a + kDeep<T>, deep_at(a + kDeep<T>));
      else if (const Corner next = after(); next.path < end)
        copy_columns<T, role>(paths, team, next, end, v, 0, deep_at(0));
    }
    accumulator.each([&](int b, int z, int n, T value) { team.t()[(b * kRows + z) * kHStride<T> + n] = value; });
    __syncthreads();
    at = for_columns<role>(paths, at, end, v, columns, [&](const Path& q, const Corner& corner, int many, int column) {
      team.template couple<role, DB>(q, corner, many, column);
      __syncwarp();  // a warp has all of its rows
      const int left = Ends<role>(q).a_d - component;
      team.template add<role>(q, corner, component, left < DB ? left : DB);
      __syncwarp();
    });
    __syncthreads();
  }
}

template <class T, Role role>
__device__ void x2_slice(const X2Paths& paths, const X2Team<T>& team, int first, int end, int v) {
  const int d = Ends<role>(paths.path[first]).a_d;
  if (d == 1) x2_tiles<T, role, 1>(paths, team, first, end, v, 0);
  else if (d == 3) x2_tiles<T, role, 3>(paths, team, first, end, v, 0);
  else
    for (int component = 0; component < d; component += 5) x2_tiles<T, role, 5>(paths, team, first, end, v, component);
}

template <class T>
__global__ void __launch_bounds__(2 * kTeam, sizeof(T) == 8 ? 1 : 2)
dense_x2_kernel(ACE_ARGUMENT(X2Paths) paths, X2Operands<T> in) {
  const X2Job job = find_x2_job(paths, in.whole, blockIdx.y);
  const X2Team<T> team{in};
  for (int c = team.lane(); c < in.columns(); c += kLanes) team.sums()[c] = T(0);
  const auto left = [&](int n) { return paths.by_u[n] ? paths.path[n].o1 : paths.path[n].o3; };
  for (int first = job.first, end; first < job.end; first = end) {
    const int most = first + paths_that_fit(paths.path, first, job.end, in.space);
    for (end = first + 1; end < most && paths.by_u[end] == paths.by_u[first] && left(end) == left(first);) ++end;
    load_dense<T, Role::forward>(team.dense(), paths.path, first, end, in.table, threadIdx.x, blockDim.x);
    if (paths.by_u[first]) x2_slice<T, Role::forward>(paths, team, first, end, job.v);
    else x2_slice<T, Role::gradient>(paths, team, first, end, job.v);
  }
  if (!team.there()) return;
  const Path& p = paths.path[job.first];
  for (int c = team.lane(); c < (in.whole ? in.ld_x2 : p.d2); c += kLanes) {
    T* to = in.out + team.row() * in.ld_x2 + (in.whole ? c : column(p.o2, p.V, p.d2, in.ir_mul, job.v, c));
    *to = in.add ? *to + team.sums()[c] : team.sums()[c];
  }
}

}  // namespace ace::product
