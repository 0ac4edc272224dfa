// Edges of one cloud and one vector of channels: packed inputs, the formula of an edge and its derivative.
#pragma once

#include "native.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ace::edge {

template <class T> constexpr T kEps = T(1e-6);  // vnn's: added to norms and to squared norms of directions

// ---- vectors -------------------------------------------------------------------------------------------------------

template <class T>
inline Vec<T> square_root(Vec<T> x) {
  for (int l = 0; l < lanes<T>; ++l) x[l] = std::sqrt(x[l]);  // one instruction, as errno is not asked for
  return x;
}

// The first `count` lanes; the others are zero, and nothing beyond is touched.
#if defined(__AVX512F__)
inline Vec<float> load_some(const float* p, int64_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
inline Vec<double> load_some(const double* p, int64_t count) { return _mm512_maskz_loadu_pd((1u << count) - 1, p); }
inline void store_some(float* p, Vec<float> v, int64_t count) { _mm512_mask_storeu_ps(p, (1u << count) - 1, v); }
inline void store_some(double* p, Vec<double> v, int64_t count) { _mm512_mask_storeu_pd(p, (1u << count) - 1, v); }
#else
template <class T>
inline Vec<T> load_some(const T* p, int64_t count) {
  if (count == lanes<T>) return load(p);
  Vec<T> v{};
  std::memcpy(&v, p, count * sizeof(T));
  return v;
}

template <class T>
inline void store_some(T* p, Vec<T> v, int64_t count) {
  if (count == lanes<T>) store(p, v);
  else std::memcpy(p, &v, count * sizeof(T));
}
#endif

// ---- vectors of R^3, one in each lane -------------------------------------------------------------------------------

template <class T>
struct Three {
  Vec<T> x{}, y{}, z{};

  static Three from(const T* p, int64_t step) { return {load(p), load(p + step), load(p + 2 * step)}; }
  static Three some(const T* p, int64_t step, int64_t count) {
    return {load_some(p, count), load_some(p + step, count), load_some(p + 2 * step, count)};
  }
  static Three splat(const T* p, int64_t step) { return {Vec<T>{} + p[0], Vec<T>{} + p[step], Vec<T>{} + p[2 * step]}; }

  void to(T* p, int64_t step) const { store(p, x), store(p + step, y), store(p + 2 * step, z); }
  void to_some(T* p, int64_t step, int64_t count) const {
    store_some(p, x, count), store_some(p + step, y, count), store_some(p + 2 * step, z, count);
  }
  void add_to(T* p, int64_t step) const { (from(p, step) + *this).to(p, step); }

  friend Three operator+(const Three& a, const Three& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
  friend Three operator-(const Three& a, const Three& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
  friend Three operator*(Vec<T> s, const Three& a) { return {s * a.x, s * a.y, s * a.z}; }
};

template <class T>
inline Vec<T> dot(const Three<T>& a, const Three<T>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

// ---- one edge ------------------------------------------------------------------------------------------------------

template <class T>
struct Norm {
  Vec<T> a, b;  // batch norm of r, divided by r: a + b / r
  T drop;       // 1 - slope
};

// sum + o with o = s u - t v: two multiply-adds a component.
template <class T>
inline Three<T> add_edge(const Three<T>& sum, const Three<T>& u, const Three<T>& v, const Norm<T>& f) {
  const Vec<T> s = f.a + f.b / (square_root<T>(dot(u, u)) + kEps<T>);
  const Vec<T> along = s * dot(u, v);
  const Vec<T> t = along >= T(0) ? Vec<T>{} : along * f.drop / (dot(v, v) + kEps<T>);
  return sum + s * u - t * v;
}

template <class T>
struct Gradient {
  Three<T> u, v;
  Vec<T> a, b;
};

// README: g_u, g_v and the edge's terms of g_a and g_b.
template <class T>
inline Gradient<T> activate_backward(const Three<T>& g, const Three<T>& u, const Three<T>& v, const Norm<T>& f) {
  const Vec<T> zero{}, square = dot(u, u), n = square_root<T>(square), inverse = T(1) / (n + kEps<T>);
  const Vec<T> s = f.a + f.b * inverse, uv = dot(u, v), along = s * uv, w = T(1) / (dot(v, v) + kEps<T>);
  const Vec<T> h = along >= T(0) ? zero : dot(g, v) * w * f.drop;
  const Vec<T> t = along >= T(0) ? zero : along * w;
  const Vec<T> g_s = dot(g, u) - h * uv, sh = s * h;
  const Vec<T> radial = square == T(0) ? zero : g_s * f.b * (inverse * inverse) / n;
  return {s * g - sh * v - radial * u, (T(2) * h * t) * v - (t * f.drop) * g - sh * u, g_s, g_s * inverse};
}

// ---- one cloud -----------------------------------------------------------------------------------------------------

template <class T>
struct Inputs {
  const T *p, *d;             // [B, N, 3, 2C], [B, N, 3, 2C or 2] or null
  const int64_t* neighbours;  // [B, N, K]
  int64_t B, N, K, C;
  bool shared;  // d is [B, N, 3, 2]

  int64_t chunks() const { return ceil_div(C, lanes<T>); }
  int64_t d_width() const { return shared ? 2 : 2 * C; }
};

// A vector of channels of one cloud: [N][3 or 6][lanes], the neighbour parts of p and, where there is one, of d.
template <class T>
class Chunk {
 public:
  static constexpr int L = lanes<T>;

  explicit Chunk(const Inputs<T>& in) : in_(in), rows_(in.d ? 6 : 3), data_(in.N * rows_ * L) {}

  void set(int64_t cloud, int64_t chunk) {
    if (cloud == cloud_ && chunk == chunk_) return;
    cloud_ = cloud, chunk_ = chunk, first_ = chunk * L, count_ = std::min<int64_t>(L, in_.C - first_);
    for (int64_t n = 0; n < in_.N; ++n) {
      Three<T>::some(p(n), 2 * in_.C, count_).to(row(n), L);
      if (in_.shared) Three<T>::splat(d(n), 2).to(row(n) + 3 * L, L);
      else if (in_.d) Three<T>::some(d(n), 2 * in_.C, count_).to(row(n) + 3 * L, L);
    }
  }

  int64_t first() const { return first_; }  // channel
  int64_t count() const { return count_; }  // of channels
  int64_t rows() const { return rows_; }
  const int64_t* neighbours(int64_t n) const { return in_.neighbours + (cloud_ * in_.N + n) * in_.K; }
  bool real(int64_t j) const { return static_cast<uint64_t>(j) < static_cast<uint64_t>(in_.N); }

  Three<T> neighbour_p(int64_t n) const { return Three<T>::from(row(n), L); }
  Three<T> neighbour_d(int64_t n) const { return Three<T>::from(row(n) + 3 * L, L); }
  Three<T> centre_p(int64_t n) const { return Three<T>::some(p(n) + in_.C, 2 * in_.C, count_); }
  Three<T> centre_d(int64_t n) const {
    return in_.shared ? Three<T>::splat(d(n) + 1, 2) : Three<T>::some(d(n) + in_.C, 2 * in_.C, count_);
  }
  T* row(int64_t n) const { return data_ + n * rows_ * L; }

 private:
  const T* p(int64_t n) const { return in_.p + (cloud_ * in_.N + n) * 3 * 2 * in_.C + first_; }
  const T* d(int64_t n) const {
    return in_.d + (cloud_ * in_.N + n) * 3 * in_.d_width() + (in_.shared ? 0 : first_);
  }

  const Inputs<T>& in_;
  int64_t rows_, cloud_ = -1, chunk_ = -1, first_ = 0, count_ = 0;
  Scratch<T> data_;
};

// The neighbour that each channel of node n has selected: its values lane by lane, and which lanes have one.
template <class T>
struct Selected {
  static constexpr int L = lanes<T>;
  int64_t node[L];
  Three<T> p{}, d{};

  Selected(const Chunk<T>& cloud, const int64_t* selected, int64_t n, int64_t K) {
    alignas(kVectorBytes) T lane[6 * L] = {};
    const int64_t* neighbours = cloud.neighbours(n);
    for (int64_t l = 0; l < L; ++l) {
      const int64_t k = l < cloud.count() ? selected[l] : -1;
      const int64_t j = k >= 0 && k < K ? neighbours[k] : -1;
      node[l] = cloud.real(j) ? j : -1;
      if (node[l] >= 0)
        for (int64_t x = 0; x < 6; ++x) lane[x * L + l] = cloud.row(j)[x * L + l];
    }
    p = Three<T>::from(lane, L), d = Three<T>::from(lane + 3 * L, L);
  }

  // Zero in the lanes without a neighbour.
  Three<T> mask(const Three<T>& v) const {
    alignas(kVectorBytes) T lane[3 * L];
    v.to(lane, L);
    for (int l = 0; l < 3 * L; ++l)
      if (node[l % L] < 0) lane[l] = T(0);
    return Three<T>::from(lane, L);
  }

  void scatter(const Three<T>& u, const Three<T>& v, T* to) const {  // to [N][6][L]
    alignas(kVectorBytes) T lane[6 * L];
    u.to(lane, L), v.to(lane + 3 * L, L);
    for (int64_t l = 0; l < L; ++l)
      if (node[l] >= 0)
        for (int64_t x = 0; x < 6; ++x) to[(node[l] * 6 + x) * L + l] += lane[x * L + l];
  }
};

// ---- sharing the work -----------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 64;  // nodes whose statistics make one partial result, and the least a thread takes
constexpr int64_t kGrain = 5000;  // vectors of edges worth a thread of their own

template <class T>
struct Total {  // of vectors, in float64
  double lane[lanes<T>] = {};
  void add(Vec<T> v) {
    for (int l = 0; l < lanes<T>; ++l) lane[l] += static_cast<double>(v[l]);
  }
};

// f(chunk of channels, first node, last node, block) for all blocks of nodes, clouds and chunks, on torch's threads.
template <class T, class F>
void for_blocks(const Inputs<T>& in, F&& f) {
  const int64_t blocks = ceil_div(in.N, kBlock), chunks = in.chunks();
  const int64_t grain = std::max<int64_t>(1, kGrain / (kBlock * std::max<int64_t>(in.K, 1)));
  torch::stable::parallel_for(0, in.B * chunks * blocks, grain, [&](int64_t begin, int64_t end) {
    Chunk<T> chunk(in);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks, cloud = i / blocks / chunks;
      chunk.set(cloud, i / blocks % chunks);
      f(chunk, block * kBlock, std::min(in.N, (block + 1) * kBlock), cloud * blocks + block);
    }
  });
}

// f(chunk of channels, cloud), the whole cloud by one thread: `targets` [N][rows][lanes] are its own to add to.
template <class T, class F>
void for_clouds(const Inputs<T>& in, F&& f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(in.N * in.K, 1)), chunks = in.chunks();
  torch::stable::parallel_for(0, in.B * chunks, grain, [&](int64_t begin, int64_t end) {
    Chunk<T> chunk(in);
    const int64_t size = in.N * chunk.rows() * lanes<T>;
    const Scratch<T> targets(size);
    for (int64_t i = begin; i < end; ++i) {
      chunk.set(i / chunks, i % chunks);
      std::fill_n(static_cast<T*>(targets), size, T(0));
      f(chunk, i / chunks, static_cast<T*>(targets));
    }
  });
}

}  // namespace ace::edge
