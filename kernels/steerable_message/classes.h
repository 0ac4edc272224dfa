// Slices of h_i, h_j and the extra features that take part in the same paths, found in the table of the first product:
// both forms treat them as one.
#pragma once

#include "edges.h"

namespace ace::message {

// What a path reads of one of h_i, h_j and extra (its role), its offset counted from that part's begin.
struct Share { const Path* path; int64_t o1, U, weight; };

// The shares of columns low..high-1 of in1 = (h_i, h_j, extra).
inline std::vector<Share> shares(const std::vector<Path>& paths, int64_t low, int64_t high) {
  std::vector<Share> found;
  for (const Path& p : paths) {
    const int64_t first = std::max(p.o1, low), last = std::min(p.o1 + p.U * p.d1, high);
    if (first < last && p.V * p.W > 0)
      found.push_back({&p, first - low, (last - first) / p.d1, p.weight + (first - p.o1) / p.d1 * p.V * p.W});
  }
  return found;
}

// Whether no channel of in1 lies across a boundary of the three.
inline bool divides(const std::vector<Path>& paths, int64_t boundary) {
  return std::all_of(paths.begin(), paths.end(), [=](const Path& p) {
    return boundary <= p.o1 || boundary >= p.o1 + p.U * p.d1 || (boundary - p.o1) % p.d1 == 0;
  });
}

// What is computed for a path: [d1][V][W] numbers at a node, which an edge contracts.
struct Column {
  const Path* path;
  int64_t at, y;              // its offset in a component of its class, of its slice in a row of pre-activations
  int64_t coupling;           // its first row in an edge's coupling
  bool diagonal;              // couples i with k = i alone
  int64_t rows() const { return diagonal ? path->d1 : path->d1 * path->d3; }
};

inline bool same(const Path& a, const Path& b) {
  if (a.d1 != b.d1 || a.o2 != b.o2 || a.V != b.V || a.d2 != b.d2 || a.o3 != b.o3 || a.W != b.W || a.d3 != b.d3 ||
      a.pairs.size() != b.pairs.size())
    return false;
  for (size_t n = 0; n < a.pairs.size(); ++n) {
    const auto &p = a.pairs[n], &q = b.pairs[n];
    if (p.i != q.i || p.k != q.k || p.terms.size() != q.terms.size()) return false;
    for (size_t t = 0; t < p.terms.size(); ++t)
      if (p.terms[t].j != q.terms[t].j || p.terms[t].c != q.terms[t].c) return false;
  }
  return true;
}

// Slices with the same paths: U channels in all. `at`: where its columns begin at a node, component i at `at` + i * width.
struct Class { int64_t d1, width, at, U; std::vector<Column> columns; };

// One slice in one role, the channels `first` .. first + U - 1 of its class. packed, sums: see Nodes.
struct Part { int64_t role, o1, U, cls, first, packed, sums; std::vector<Share> shares; };

class Classes {
 public:
  void add(int64_t role, const std::vector<Share>& all) {
    const size_t before = parts.size();
    for (const Share& s : all) {
      auto part = std::find_if(parts.begin() + before, parts.end(), [&](const Part& p) { return p.o1 == s.o1; });
      if (part == parts.end()) part = parts.insert(part, Part{role, s.o1, s.U, 0, 0, 0, 0, {}});
      part->shares.push_back(s);
    }
    for (size_t p = before; p < parts.size(); ++p) {
      parts[p].cls = class_of(parts[p].shares);
      parts[p].first = classes[parts[p].cls].U;
      classes[parts[p].cls].U += parts[p].U;
    }
  }

  std::vector<Class> classes;
  std::vector<Part> parts;

 private:
  int64_t class_of(const std::vector<Share>& found) {
    const auto equal = [&](const Class& c) {
      return std::equal(c.columns.begin(), c.columns.end(), found.begin(), found.end(),
                        [](const Column& x, const Share& y) { return same(*x.path, *y.path); });
    };
    const auto known = std::find_if(classes.begin(), classes.end(), equal);
    if (known != classes.end()) return known - classes.begin();
    Class made{found[0].path->d1, 0, 0, 0, {}};
    for (const Share& s : found) {
      const auto& pairs = s.path->pairs;
      const bool diagonal = std::all_of(pairs.begin(), pairs.end(), [](const auto& q) { return q.i == q.k; });
      made.columns.push_back({s.path, made.width, 0, 0, diagonal});
      made.width += s.path->V * s.path->W;
    }
    classes.push_back(std::move(made));
    return classes.size() - 1;
  }
};

}  // namespace ace::message
