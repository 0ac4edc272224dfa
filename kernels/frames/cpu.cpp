// frames: moments of a vector's worth of sets, then their axes at once. frame_concat: Gram-Schmidt set by set, what it
// turns a vector's worth of sets at a time, then rows one after the other.
#include "native.h"

#include "axes.h"
#include "gram_schmidt.h"
#include "turn.h"

namespace {

using namespace ace;
using Maybe = std::optional<Tensor>;

constexpr int kParts = 4;  // sums under way at a time

// Rows of a set, inside of 0..rows whatever ptr holds.
struct Span {
  int64_t begin, end;
  Span(const int64_t* ptr, int64_t set, int64_t rows)
      : begin(std::clamp<int64_t>(ptr[set], 0, rows)), end(std::clamp<int64_t>(ptr[set + 1], begin, rows)) {}
};

// sums[i] = the sum of f's i-th value over the rows, in a fixed order.
template <class T, int N, class F>
void sum_rows(Span span, F&& f, T (&sums)[N]) {
  T parts[kParts][N] = {};
  int64_t r = span.begin;
  for (; r + kParts <= span.end; r += kParts)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) f(r + p, parts[p]);
  for (int p = 0; r < span.end; ++r, ++p) f(r, parts[p]);
  for (int i = 0; i < N; ++i) sums[i] = (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
}

// Centroid and second moments (xx, xy, xz, yy, yz, zz) of one set.
template <class T>
void moments(const T* pos, const T* weight, Span span, bool centred, T (&centroid)[3], T (&second)[6]) {
  T first[4], sums[6];
  sum_rows<T, 4>(span, [&](int64_t r, T* to) {
    const T w = weight ? weight[r] : T(1);
    for (int i = 0; i < 3; ++i) to[i] += w * pos[3 * r + i];
    to[3] += w;
  }, first);
  const T total = first[3] == T(0) ? T(1) : first[3];
  for (int i = 0; i < 3; ++i) centroid[i] = centred ? first[i] / total : T(0);
  sum_rows<T, 6>(span, [&](int64_t r, T* to) {
    const T w = weight ? weight[r] : T(1);
    const T x = pos[3 * r] - centroid[0], y = pos[3 * r + 1] - centroid[1], z = pos[3 * r + 2] - centroid[2];
    to[0] += w * x * x, to[1] += w * x * y, to[2] += w * x * z;
    to[3] += w * y * y, to[4] += w * y * z, to[5] += w * z * z;
  }, sums);
  for (int i = 0; i < 6; ++i) second[i] = sums[i] / total;
}

template <class T>
struct Points {
  const T *pos, *weight;  // [N, 3], [N] or null
  const int64_t *ptr, *seed;  // [B + 1], [1] or null
  int64_t rows, sets;
  bool centred;
  T tolerance;
  T *centroid, *values, *axes;  // [B, 3], [B, 3], [B, 3, 3]

  void block(int64_t first) const {
    const int64_t count = std::min<int64_t>(lanes<T>, sets - first);
    alignas(64) T moment[6][lanes<T>] = {};
    Vec<T> second[6], value[3], axis[3][3];
    for (int64_t lane = 0; lane < count; ++lane) {
      T centre[3], own[6];
      moments<T>(pos, weight, Span(ptr, first + lane, rows), centred, centre, own);
      std::copy_n(centre, 3, centroid + 3 * (first + lane));
      bool finite = true;
      for (const T x : own) finite &= std::isfinite(x);
      for (int i = 0; i < 6; ++i) moment[i][lane] = finite ? own[i] : std::numeric_limits<T>::quiet_NaN();
    }
    for (int i = 0; i < 6; ++i) second[i] = load(static_cast<const T*>(moment[i]));
    axes::principal<T>(second, value, axis);
    alignas(64) T result[12][lanes<T>];  // in memory: lanes of a vector are dear to take one by one
    for (int i = 0; i < 3; ++i) {
      store(result[i], value[i]);
      for (int k = 0; k < 3; ++k) store(result[3 + 3 * i + k], axis[k][i]);
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t set = first + lane;
      T found[3], own[3][3];
      for (int i = 0; i < 3; ++i) {
        found[i] = result[i][lane];
        for (int k = 0; k < 3; ++k) own[i][k] = result[3 + 3 * i + k][lane];
      }
      if (seed) {
        T centre[3];
        std::copy_n(centroid + 3 * set, 3, centre);
        const T least = axes::rounding<T>(std::clamp<int64_t>(ptr[set + 1] - ptr[set], 0, rows), centre);
        axes::open_axes<T>(found, std::max(tolerance * found[2], least), philox(*seed, set), own);
      }
      std::copy_n(found, 3, values + 3 * set);
      std::copy_n(own[0], 9, axes + 9 * set);
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> frames(Tensor pos_, Maybe weight_, Tensor ptr_, Maybe seed, bool centred,
                                          double tolerance) {
  const Tensor pos = dense(pos_), ptr = dense(ptr_), weight = weight_ ? dense(*weight_) : pos;
  const int64_t sets = ptr.size(0) - 1;
  Tensor centroid = empty(pos, {sets, 3}), values = empty(pos, {sets, 3}), axes = empty(pos, {sets, 3, 3});
  dispatch(pos, [&]<class T>() {
    const Points<T> points{in<T>(pos), weight_ ? in<T>(weight) : nullptr, in<int64_t>(ptr),
                           seed ? in<int64_t>(*seed) : nullptr, pos.size(0), sets, centred, static_cast<T>(tolerance),
                           out<T>(centroid), out<T>(values), out<T>(axes)};
    const int64_t work = lanes<T> * (100 + 20 * points.rows / std::max<int64_t>(sets, 1));
    parallel(ceil_div(sets, lanes<T>), ceil_div(50000, work), [&](int64_t i) { points.block(i * lanes<T>); });
  });
  return {centroid, values, axes};
}

// ---- frames of predicted vectors ------------------------------------------------------------------------------------

template <class T>
struct Turns {
  const T *v, *vectors;  // [B, D], [B, n, 3]
  const int64_t *ptr, *channels, *seed;  // [B + 1], [P, 3], [K]
  int64_t sets, width, count, number, draws, rows;  // B, D, n, P, K, N
  bool improper;
  T tolerance;

  // f(draw, first set, number of sets) for each vector's worth of sets.
  template <class F>
  void blocks(int64_t of_draws, F&& f) const {
    const int64_t each = ceil_div(sets, lanes<T>);
    parallel(each * of_draws, ceil_div(20000, lanes<T> * (200 + 20 * width)), [&](int64_t i) {
      const int64_t first = i % each * lanes<T>;
      f(i / each, first, std::min<int64_t>(lanes<T>, sets - first));
    });
  }

  Frame<T> frame(int64_t draw, int64_t set) const {
    return Frame<T>(vectors + 3 * count * set, count, seed[draw], set, improper, tolerance);
  }

  // Whether components of channel p lie in a row.
  bool inside(const int64_t* channel) const {
    return channel[1] >= 0 && channel[1] <= 3 && channel[0] >= 0 && channel[0] + 2 * channel[1] < width;
  }

  // Of `count` rows of x, `width` apart: components of channel `at`, a lane each.
  void read(const T* x, int64_t at, int64_t rows, int64_t size, Vec<T>* to) const {
    for (int64_t i = 0; i < size; ++i) {
      to[i] = Vec<T>{};
      for (int64_t lane = 0; lane < rows; ++lane) to[i][lane] = x[lane * width + at + i];
    }
  }

  // to[lane] += D(R) x[lane], a row each.
  void turn(const T* x, const turn::Matrix<T>& r, Vec<T> side, int64_t rows, T* to) const {
    Vec<T> from[7], found[7];
    for (int64_t p = 0; p < number; ++p) {
      const int64_t *channel = channels + 3 * p, l = channel[1], size = 2 * l + 1;
      if (!inside(channel)) continue;
      read(x, channel[0], rows, size, from);
      turn::degree<T>(l, r, from, found);
      for (int64_t i = 0; i < size; ++i) {
        if (channel[2]) found[i] *= side;
        for (int64_t lane = 0; lane < rows; ++lane) to[lane * width + channel[0] + i] += found[i][lane];
      }
    }
  }

  // own [K, B, D] and the frames [K, B, 3, 3].
  void forward(T* own, T* frames) const {
    blocks(draws, [&](int64_t draw, int64_t first, int64_t many) {
      turn::Matrix<T> r = {};
      Vec<T> side{};
      for (int64_t lane = 0; lane < many; ++lane) {
        const Frame<T> f = frame(draw, first + lane);
        T* to = frames + 9 * (draw * sets + first + lane);
        for (int i = 0; i < 3; ++i)
          for (int k = 0; k < 3; ++k) r[i][k][lane] = to[3 * i + k] = f.axis[k][i];
        side[lane] = f.side;
      }
      T* to = own + (draw * sets + first) * width;
      std::fill_n(to, many * width, T(0));
      turn(v + first * width, r, side, many, to);
    });
  }

  // From sums [K, B, D] of what stood beside the rows and g_frames [K, B, 3, 3]; null where not needed.
  void backward(const T* sums, const T* g_frames, T* g_v, T* g_vectors) const {
    blocks(1, [&](int64_t, int64_t first, int64_t many) {
      if (g_v) std::fill_n(g_v + first * width, many * width, T(0));
      if (g_vectors) std::fill_n(g_vectors + first * 3 * count, many * 3 * count, T(0));
      for (int64_t draw = 0; draw < draws; ++draw) {
        turn::Matrix<T> r = {}, back = {}, g = {};
        Vec<T> side{};
        std::vector<Frame<T>> own;
        own.reserve(many);
        for (int64_t lane = 0; lane < many; ++lane) {
          const Frame<T>& f = own.emplace_back(frame(draw, first + lane));
          for (int i = 0; i < 3; ++i)
            for (int k = 0; k < 3; ++k) {
              r[i][k][lane] = back[k][i][lane] = f.axis[k][i];
              g[i][k][lane] = g_frames[9 * (draw * sets + first + lane) + 3 * i + k];
            }
          side[lane] = f.side;
        }
        const T* given = sums + (draw * sets + first) * width;
        if (g_v) turn(given, back, side, many, g_v + first * width);
        if (!g_vectors) continue;
        Vec<T> x[7], g_x[7];
        for (int64_t p = 0; p < number; ++p) {
          const int64_t *channel = channels + 3 * p, size = 2 * channel[1] + 1;
          if (!inside(channel)) continue;
          read(v + first * width, channel[0], many, size, x);
          read(given, channel[0], many, size, g_x);
          for (int64_t i = 0; channel[2] && i < size; ++i) g_x[i] *= side;
          turn::degree_grad<T>(channel[1], r, x, g_x, g);
        }
        for (int64_t lane = 0; lane < many; ++lane) {
          T each[3][3];
          for (int i = 0; i < 3; ++i)
            for (int k = 0; k < 3; ++k) each[i][k] = g[i][k][lane];
          own[lane].backward(each, g_vectors + 3 * count * (first + lane));
        }
      }
    });
  }
};

template <class T>
Turns<T> turns(const Tensor& v, const Tensor& vectors, const Tensor& ptr, const Tensor& channels, const Tensor& seed,
               int64_t rows, bool improper, double tolerance) {
  return {in<T>(v),       in<T>(vectors), in<int64_t>(ptr),  in<int64_t>(channels), in<int64_t>(seed),
          v.size(0),      v.size(1),      vectors.size(1),   channels.size(0),      seed.size(0),
          rows,           improper,       static_cast<T>(tolerance)};
}

// Rows of x, and beside them those of their sets.
template <class T>
void put_rows(const T* x, int64_t stride, int64_t left, const T* own, const Turns<T>& t, T* to) {
  const int64_t wide = left + t.width, chunk = std::max<int64_t>(1, 8192 / std::max<int64_t>(wide, 1));
  const int64_t each = ceil_div(t.rows, chunk);
  parallel(each * t.draws, 1, [&](int64_t item) {
    const int64_t draw = item / each, begin = item % each * chunk, end = std::min(t.rows, begin + chunk);
    int64_t set = std::upper_bound(t.ptr + 1, t.ptr + t.sets + 1, begin) - t.ptr - 1;
    for (int64_t r = begin; r < end; ++r) {
      while (set < t.sets && t.ptr[set + 1] <= r) ++set;
      T* row = to + (draw * t.rows + r) * wide;
      std::copy_n(x + r * stride, left, row);
      if (set < t.sets && t.ptr[0] <= r) std::copy_n(own + (draw * t.sets + set) * t.width, t.width, row + left);
      else std::fill_n(row + left, t.width, std::numeric_limits<T>::quiet_NaN());
    }
  });
}

std::tuple<Tensor, Tensor> frame_concat(Tensor x_, Tensor v_, Tensor vectors_, Tensor ptr_, Tensor channels_,
                                        Tensor seed_, bool improper, double tolerance) {
  const Tensor x = dense_rows(x_), v = dense(v_), vectors = dense(vectors_), ptr = dense(ptr_);
  const Tensor channels = dense(channels_), seed = dense(seed_);
  const int64_t draws = seed.size(0), rows = x.size(0), left = x.size(1), width = v.size(1), sets = v.size(0);
  Tensor result = empty(x, {draws, rows, left + width}), frames = empty(x, {draws, sets, 3, 3});
  dispatch(x, [&]<class T>() {
    const Turns<T> t = turns<T>(v, vectors, ptr, channels, seed, rows, improper, tolerance);
    const Scratch<T> own(draws * sets * width);
    t.forward(own, out<T>(frames));
    put_rows<T>(in<T>(x), x.stride(0), left, own, t, out<T>(result));
  });
  return {result, frames};
}

std::tuple<Tensor, Tensor> frame_concat_bwd(Tensor g_, Tensor g_frames_, Tensor v_, Tensor vectors_, Tensor ptr_,
                                            Tensor channels_, Tensor seed_, bool improper, double tolerance,
                                            int64_t needs) {
  const Tensor g = g_.stride(2) == 1 ? g_ : dense(g_), g_frames = dense(g_frames_), v = dense(v_);
  const Tensor vectors = dense(vectors_), ptr = dense(ptr_), channels = dense(channels_), seed = dense(seed_);
  const auto like = [&](const Tensor& t, int bit) {
    return empty(v, needs >> bit & 1 ? std::vector<int64_t>(t.sizes().begin(), t.sizes().end()) : std::vector<int64_t>{0});
  };
  Tensor g_v = like(v, 0), g_vectors = like(vectors, 1);
  dispatch(v, [&]<class T>() {
    const Turns<T> t = turns<T>(v, vectors, ptr, channels, seed, g.size(1), improper, tolerance);
    const Scratch<T> sums(t.draws * t.sets * t.width);
    const T* rows = in<T>(g);
    parallel(t.draws * t.sets, ceil_div(16384, 1 + t.rows * t.width / std::max<int64_t>(t.sets, 1)), [&](int64_t i) {
      T* sum = sums + i * t.width;
      std::fill_n(sum, t.width, T(0));
      const Span span(t.ptr, i % t.sets, t.rows);
      for (int64_t r = span.begin; r < span.end; ++r) {
        const T* row = rows + i / t.sets * g.stride(0) + r * g.stride(1);
        for (int64_t c = 0; c < t.width; ++c) sum[c] += row[c];
      }
    });
    t.backward(sums, in<T>(g_frames), needs & 1 ? out<T>(g_v) : nullptr, needs & 2 ? out<T>(g_vectors) : nullptr);
  });
  return {g_v, g_vectors};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("frames(Tensor pos, Tensor? weight, Tensor ptr, Tensor? seed, bool centred, float tolerance)"
        " -> (Tensor, Tensor, Tensor)");
#define INPUTS "Tensor v, Tensor vectors, Tensor ptr, Tensor channels, Tensor seed, bool improper, float tolerance"
  m.def("frame_concat(Tensor x, " INPUTS ") -> (Tensor, Tensor)");
  m.def("frame_concat_bwd(Tensor g, Tensor g_frames, " INPUTS ", int needs) -> (Tensor, Tensor)");
#undef INPUTS
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("frames", TORCH_BOX(&frames));
  m.impl("frame_concat", TORCH_BOX(&frame_concat));
  m.impl("frame_concat_bwd", TORCH_BOX(&frame_concat_bwd));
}
