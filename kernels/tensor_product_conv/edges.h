// The edges of a graph sorted by one of their ends, in chunks of equal length that threads take whole: the sums at the
// nodes have a fixed order, whoever computes them, and a node with many edges is shared out.
#pragma once

#include "tensor_product/rows.h"

namespace ace::conv {

using product::kRows;

// One end of the edges (near), by which they are sorted, and the other.
struct Ends {
  const int64_t *order, *near, *far;
  int64_t edges, near_count, far_count;
};

// Edges [first, last) of a block have the same node at their near end. `opens`, `closes`: none of them came before in
// the chunk, none comes after.
struct Run {
  int64_t node, first, last;
  bool opens, closes;
};

struct EdgeBlock {
  int64_t count = 0, edge[kRows], far[kRows];
  std::vector<Run> runs;
};

class Chunks {
 public:
  explicit Chunks(const Ends& ends) : ends_(ends) {
    const int64_t blocks = ceil_div(ends.edges, kRows);
    count = std::min(blocks, std::max<int64_t>(8, blocks / 16));
  }

  // f(chunk, visit) on torch's threads; visit(g) calls g(block) for each block of a chunk. A block has at most kRows
  // edges and at most `most` runs. Edges with an end outside its range are in no block.
  template <class F>
  void run(int64_t most, F&& f) const {
    parallel(count, 1, [&](int64_t chunk) {
      f(chunk, [&](auto&& g) { walk(begin(chunk), begin(chunk + 1), most, g); });
    });
  }

  // The node of which a chunk continues the sum of an earlier chunk, or -1.
  int64_t continued(int64_t chunk) const {
    const int64_t at = begin(chunk), end = begin(chunk + 1);
    if (at == 0) return -1;
    int64_t position = at;
    while (position < end && node(position) < 0) ++position;
    if (position == end) return -1;
    const int64_t before = ends_.order[at - 1];
    return before >= 0 && before < ends_.edges && ends_.near[before] == node(position) ? node(position) : -1;
  }

  int64_t count;

 private:
  int64_t begin(int64_t chunk) const { return chunk * ends_.edges / count; }

  // The node at the near end of the edge at a position, -1 where the position or the edge is none.
  int64_t node(int64_t position) const {
    const int64_t e = ends_.order[position];
    if (e < 0 || e >= ends_.edges || ends_.far[e] < 0 || ends_.far[e] >= ends_.far_count) return -1;
    return ends_.near[e] >= 0 && ends_.near[e] < ends_.near_count ? ends_.near[e] : -1;
  }

  template <class G>
  void walk(int64_t position, int64_t end, int64_t most, G& g) const {
    EdgeBlock block;
    int64_t last = -1;  // the node of the edge before
    for (; position < end; ++position) {
      const int64_t n = node(position);
      if (n < 0) continue;
      const bool opens = n != last;
      if (block.count == kRows || (opens && static_cast<int64_t>(block.runs.size()) == most)) {
        block.runs.back().closes = opens;
        g(block);
        block.count = 0;
        block.runs.clear();
      }
      if (opens && block.count) block.runs.back().closes = true;
      if (opens || !block.count) block.runs.push_back({n, block.count, block.count, opens, true});
      const int64_t e = ends_.order[position];
      block.edge[block.count] = e;
      block.far[block.count++] = ends_.far[e];
      block.runs.back().last = block.count;
      last = n;
    }
    if (block.count) g(block);
  }

  Ends ends_;
};

}  // namespace ace::conv
