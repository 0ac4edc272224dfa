// The operator's integer tables as the CPU kernels read them: paths as pairs of channels and what they are summed into.
#pragma once

#include <memory>
#include <span>

#include "rows.h"

namespace ace::product {

struct Term { int64_t j; double c; };                        // one coefficient of a pair
struct Pair { int64_t i, k; std::span<const Term> terms; };  // components of side 1 and out that the path couples
struct Source { int64_t component, pair; };                  // what a component of a contraction is summed from

// Channels first .. first + count - 1 of side 1 meet channel `b` of side 2; their weights are at weight, weight + step ..
struct Group { int64_t b, first, count, weight, step; };

enum Mode { UVW, UVU, UVV, UUW, UUU, UVUV, UVU_V, U_VW };  // table.py, MODES
enum class Meet { all, equal, ordered };                   // which channels of the two sides form pairs

// The coefficients of a path, grouped by the components of side 1 and of out. It never moves: it points into itself.
struct Coefficients {
  std::vector<Term> terms;
  std::vector<Pair> pairs;                            // in order of k
  std::vector<Source> sources;                        // of each component of out, then of each one of side 1
  std::vector<std::span<const Source>> of_k, of_i;    // in `sources`

  // `count` coefficients c at (i, j, k), of in1, in2 and out.
  Coefficients(const int64_t* ijk, const double* c, int64_t count, int64_t d1, int64_t d3, bool swapped)
      : terms(count) {
    const auto cell = [&](int64_t n) { return ijk[3 * n + 2] * d1 + ijk[3 * n + swapped]; };
    std::vector<int64_t> ends(d1 * d3 + 1, 0), of_component(d1 + 1, 0);
    for (int64_t n = 0; n < count; ++n) ++ends[cell(n) + 1];
    int64_t cells = 0;
    for (int64_t g = 0; g < d1 * d3; ++g) {
      cells += ends[g + 1] > 0;
      of_component[g % d1 + 1] += ends[g + 1] > 0;
      ends[g + 1] += ends[g];
    }
    for (int64_t n = 0; n < count; ++n) terms[ends[cell(n)]++] = {ijk[3 * n + 1 - swapped], c[n]};
    for (int64_t i = 0; i < d1; ++i) of_component[i + 1] += of_component[i];
    pairs.reserve(cells);
    sources.resize(2 * cells);
    for (int64_t k = 0, begin = 0; k < d3; ++k) {
      const size_t first = pairs.size();
      for (int64_t i = 0; i < d1; ++i) {
        const int64_t end = ends[k * d1 + i], n = pairs.size();
        if (end == begin) continue;
        pairs.push_back({i, k, {terms.data() + begin, terms.data() + end}});
        sources[n] = {i, n};
        sources[cells + of_component[i]++] = {k, n};
        begin = end;
      }
      of_k.push_back({sources.data() + first, pairs.size() - first});
    }
    for (int64_t i = 0, begin = 0; i < d1; begin = of_component[i++])
      of_i.push_back({sources.data() + cells + begin, static_cast<size_t>(of_component[i] - begin)});
  }
  Coefficients(const Coefficients&) = delete;
};

// One instruction (table.py, Path). Side 1 is in1 and side 2 is in2, or the other way round where `swapped`: the channels
// of side 2 are coupled one after the other, those of side 1 contracted with each. A pair's weights are W numbers that
// mix it into all output channels (`mixes`), or one number, and then its output channel is the one of side 1 or, where it
// `spreads`, its own.
struct Path {
  int64_t o1, U, d1, o2, V, d2, o3, W, d3, weight;  // weight: offset of its block, -1 where it has none
  int64_t padded;                                   // the offset in padded sums, whose rows of W are whole vectors
  int64_t d;                                        // components on which channels are mixed
  Meet meet;
  bool swapped, mixes, spreads, channels_first;  // channels_first: channels are mixed before the contraction
  std::shared_ptr<const Coefficients> coefficients;
  std::span<const Pair> pairs;
  std::span<const std::span<const Source>> of_k, of_i;  // the pairs of each component of out, of side 1

  int64_t rows() const { return meet == Meet::all ? U * V : meet == Meet::equal ? U : U * (U - 1) / 2; }
  int64_t columns() const { return mixes ? W : 1; }
  int64_t weights() const { return weight < 0 ? 0 : rows() * columns(); }
  bool writes() const { return mixes && (meet == Meet::equal || (meet == Meet::all && V == 1)); }  // each component once

  // f(Group) for every channel of side 2.
  template <class F>
  void groups(F&& f) const {
    for (int64_t b = 0; b < V; ++b) {
      if (meet == Meet::equal) f(Group{b, b, 1, b, 1});
      else if (meet == Meet::ordered) f(Group{b, b + 1, U - b - 1, b * U - b * (b + 1) / 2, 1});
      else if (swapped) f(Group{b, 0, U, b * U, 1});
      else f(Group{b, 0, U, b, V});
    }
  }
};

// `exchange`: full products too may have in2 as side 1, where it has the more channels: then the coupling of a channel
// serves more of them, and a group's weights lie together.
template <class T>
std::vector<Path> read_paths(const std::vector<int64_t>& flat, const Tensor& index, const Tensor& value,
                             bool exchange = false) {
  const Tensor ijk = dense(index), coefficients = dense(value);
  const int64_t* row = in<int64_t>(ijk);
  const double* c = in<double>(coefficients);
  std::vector<Path> paths;
  int64_t padded = 0;
  for (size_t p = 0; p < flat.size(); p += 13) {
    const int64_t *f = flat.data() + p, mode = f[12];
    const bool swapped = mode == UVV || mode == UVU_V || mode == U_VW || (mode == UVUV && f[1] == 1) ||
                         (exchange && mode == UVW && f[4] > 1 && f[4] >= f[1]);
    const bool mixes = mode == UVW || mode == UUW || mode == U_VW;
    const int64_t *a = swapped ? f + 3 : f, *b = swapped ? f : f + 3;
    Path path{a[0], a[1], a[2], b[0], b[1], b[2], f[6], f[7], f[8], f[9], padded, 0, Meet::all, swapped, mixes,
              mode == UVUV || mode == UVU_V, false,
              std::make_shared<Coefficients>(row + 3 * f[10], c + f[10], f[11] - f[10], a[2], f[8], swapped), {}, {}, {}};
    if (mode == UUW || mode == UUU) path.meet = Meet::equal;
    if (mode == UVU_V || mode == U_VW) path.meet = Meet::ordered;
    path.channels_first = mixes && path.meet != Meet::equal && path.d1 < path.d3;
    path.d = path.channels_first ? path.d1 : path.d3;
    if (path.weight >= 0) padded += path.rows() * (mixes ? round_up<T>(path.W) : 1);
    path.pairs = path.coefficients->pairs;
    path.of_k = path.coefficients->of_k;
    path.of_i = path.coefficients->of_i;
    paths.push_back(std::move(path));
  }
  return paths;
}

// Length of the padded sums of all paths.
template <class T>
int64_t padded_weights(const std::vector<Path>& paths) {
  int64_t n = 0;
  for (const Path& p : paths)
    if (p.weight >= 0) n = p.padded + p.rows() * (p.mixes ? round_up<T>(p.W) : 1);
  return n;
}

// out[row, w] = sum over chunks of padded[chunk][row, w]
template <class T>
void sum_chunks(const std::vector<Path>& paths, const T* padded, int64_t chunks, int64_t stride, T* out) {
  for (const Path& path : paths) {
    if (path.weight < 0) continue;
    const int64_t columns = path.mixes ? path.W : path.rows(), width = path.mixes ? round_up<T>(path.W) : columns;
    parallel(path.mixes ? path.rows() : 1, std::max<int64_t>(1, 16384 / (chunks * width + 1)), [&](int64_t row) {
      T* target = out + path.weight + row * columns;
      const T* source = padded + path.padded + row * width;
      std::copy_n(source, columns, target);
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t w = 0; w < columns; ++w) target[w] += source[c * stride + w];
    });
  }
}

// Slices of in1, in2 and out that take part, and in what order the columns of each become components (fill_slices).
struct Layout {
  std::vector<Slice> parts[3], slices[3];

  Layout(const std::vector<Path>& paths, const std::vector<int64_t>& dims) {
    for (const Path& p : paths) {
      parts[p.swapped].push_back({p.o1, p.U, p.d1});
      parts[!p.swapped].push_back({p.o2, p.V, p.d2});
      parts[2].push_back({p.o3, p.W, p.d3});
    }
    for (int n = 0; n < 3; ++n) slices[n] = fill_slices(parts[n], dims[n], dims[3]);
  }
};

// Which paths are the first to reach their slice of out (slot 2), or of an input as side 1 (slot 0, 1): they may write
// instead of adding. What they do not write must be cleared; `kept` slices hold something already.
struct Start {
  std::vector<bool> writes;
  std::vector<Slice> clear;

  Start(const std::vector<Path>& paths, int slot, int64_t dim, const std::vector<Slice>& kept = {}) {
    std::vector<Slice> written;
    std::vector<int64_t> seen;
    for (const Slice& s : kept) seen.push_back(s.o);
    for (const Path& p : paths) {
      const bool side1 = p.swapped == slot;
      const Slice slice = slot == 2 ? Slice{p.o3, p.W, p.d3} : side1 ? Slice{p.o1, p.U, p.d1} : Slice{p.o2, p.V, p.d2};
      const bool first = std::find(seen.begin(), seen.end(), slice.o) == seen.end();
      writes.push_back(first && (slot == 2 || side1) && p.writes());
      if (first) seen.push_back(slice.o);
      if (writes.back()) written.push_back(slice);
    }
    std::sort(written.begin(), written.end(), [](const Slice& a, const Slice& b) { return a.o < b.o; });
    int64_t end = 0;
    for (const Slice& s : written) {
      if (s.o > end) clear.push_back({end, s.o - end, 1});
      end = s.o + s.mul * s.d;
    }
    if (end < dim) clear.push_back({end, dim - end, 1});
  }

  template <class T>
  void operator()(T* components) const {
    for (const Slice& s : clear) std::fill_n(components + s.o * kRows, s.mul * kRows, T(0));
  }
};

}  // namespace ace::product
