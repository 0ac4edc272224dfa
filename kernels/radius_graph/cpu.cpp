// radius_graph: each target against the runs of candidates in the bins around it, a vector at a time. A target's row
// depends on its graph alone, so threads do not change the result.
#include "grid.h"

namespace {

using namespace ace;
using namespace ace::radius;

constexpr int64_t kTask = 64;     // targets of a task, at least, where its graph has them
constexpr int64_t kRanked = 192;  // keys of a row that are sorted by counting

// Candidates first..last - 1, moved by an image of the lattice.
struct Run {
  int64_t first, last, code;
  Triple shift;
};

struct Near {
  double square;
  int64_t key;
  bool operator<(const Near& other) const { return std::tie(square, key) < std::tie(other.square, other.key); }
};

// The lanes of v whose bit is set, one after the other; room for a whole vector is needed.
template <class T>
inline void store_chosen(T* to, Vec<T> v, uint64_t bits) {
  static_assert(sizeof(T) == 8);
#if defined(__AVX512F__)
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), reinterpret_cast<__m512i>(v)));
#else
  for (; bits; bits &= bits - 1) *to++ = v[__builtin_ctzll(bits)];
#endif
}

// Distinct keys in ascending order: each goes behind those that are smaller.
void sort(int64_t* key, int64_t n, std::vector<int64_t>& spare) {
  if (n > kRanked) return std::sort(key, key + n);
  spare.assign(key, key + n);
  for (int64_t i = 0; i < n; ++i) {
    int64_t place = 0;
    for (int64_t j = 0; j < n; ++j) place += spare[j] < spare[i];
    key[place] = spare[i];
  }
}

// Some bins of one graph: their targets are the candidates first..last - 1.
struct Task {
  const Graph* graph;
  int64_t bin, bins, first, last;
  std::vector<int64_t> keys;  // of all targets, one row after the other
};

struct Search {
  const Atoms& atoms;
  double limit;
  bool loop;
  int64_t most;          // neighbours of a target
  int64_t* counts;       // [N] by atom
  std::vector<Run> runs{};
  std::vector<int64_t> row{}, spare{};
  std::vector<double> squares{};
  std::vector<Near> near{};

  void operator()(Task& task) {
    const Graph& g = *task.graph;
    for (int64_t b = task.bin; b < task.bin + task.bins; ++b) {
      const int64_t first = atoms.starts[g.base + b], last = atoms.starts[g.base + b + 1];
      if (first == last) continue;
      const int64_t room = collect(g, {b / (g.bins[1] * g.bins[2]), b / g.bins[2] % g.bins[1], b % g.bins[2]});
      if (static_cast<int64_t>(row.size()) < room) row.resize(room), squares.resize(room);
      for (int64_t p = first; p < last; ++p) {
        const bool capped = most < room;
        int64_t n = capped ? find<true>(p) : find<false>(p);
        if (n > most) keep(n);
        if (n > most || runs.size() > 1) sort(row.data(), n = std::min(n, most), spare);
        counts[g.start + (atoms.label[p] >> 33)] = n;
        task.keys.insert(task.keys.end(), row.begin(), row.begin() + n);
      }
    }
  }

  // The runs of candidates around a bin; returns how many keys a row may get, and a vector more.
  int64_t collect(const Graph& g, const Whole& bin) {
    Whole low, high, image, at;
    for (int k = 0; k < 3; ++k) {
      const bool periodic = g.lattice.periodic[k];
      low[k] = periodic ? bin[k] - g.reach[k] : std::max<int64_t>(bin[k] - g.reach[k], 0);
      high[k] = periodic ? bin[k] + g.reach[k] : std::min(bin[k] + g.reach[k], g.bins[k] - 1);
    }
    runs.clear();
    int64_t candidates = 0;
    for (int64_t a = low[0]; a <= high[0]; ++a)
      for (int64_t b = low[1]; b <= high[1]; ++b)
        for (int64_t q = floor_div(low[2], g.bins[2]); q <= floor_div(high[2], g.bins[2]); ++q) {
          image = {floor_div(a, g.bins[0]), floor_div(b, g.bins[1]), q};
          at = {a - image[0] * g.bins[0], b - image[1] * g.bins[1], q * g.bins[2]};
          const int64_t line = g.base + (at[0] * g.bins[1] + at[1]) * g.bins[2];
          const int64_t first = atoms.starts[line + std::max<int64_t>(low[2] - at[2], 0)];
          const int64_t last = atoms.starts[line + std::min(high[2] - at[2], g.bins[2] - 1) + 1];
          if (first == last) continue;
          candidates += last - first;
          runs.push_back({first, last, image[0] * (1 << 22) + image[1] * (1 << 11) + image[2], g.lattice.moved(image)});
        }
    return candidates + lanes<double>;
  }

  // The keys of the neighbours of candidate p, and their squared distances.
  template <bool Measured>
  int64_t find(int64_t p) {
    constexpr int L = lanes<double>;
    const double x = atoms.x[p], y = atoms.y[p], z = atoms.z[p];
    int64_t n = 0;
    for (const Run& run : runs)
      for (int64_t c = run.first; c < run.last; c += L) {
        // (x_j - x_i) + s: both directions of a pair are at the same distance to the bit
        const Vec<double> dx = (load(atoms.x + c) - x) + run.shift[0], dy = (load(atoms.y + c) - y) + run.shift[1],
                          dz = (load(atoms.z + c) - z) + run.shift[2], square = dx * dx + dy * dy + dz * dz;
        uint64_t bits = less_bits<double>(square, Vec<double>{} + limit);
        if (run.last - c < L) bits &= (uint64_t(1) << (run.last - c)) - 1;
        if (!loop && run.code == 0 && p - c >= 0 && p - c < L) bits &= ~(uint64_t(1) << (p - c));
        store_chosen<int64_t>(row.data() + n, load(atoms.label + c) + run.code, bits);
        if constexpr (Measured) store_chosen<double>(squares.data() + n, square, bits);
        n += __builtin_popcountll(bits);
      }
    return n;
  }

  // Leaves the `most` nearest of n keys in front, equal distances by key.
  void keep(int64_t n) {
    near.resize(n);
    for (int64_t i = 0; i < n; ++i) near[i] = {squares[i], row[i]};
    std::nth_element(near.begin(), near.begin() + most, near.end());
    for (int64_t i = 0; i < most; ++i) row[i] = near[i].key;
  }
};

// The graphs of `batch`, ascending; what is wrong with it goes to `bad`.
std::vector<Graph> graphs_of(const int64_t* batch, int64_t n, int64_t cells, Problems& bad) {
  std::vector<Graph> graphs;
  for (int64_t i = 0; i < n; ++i) {
    if (i && batch[i] == batch[i - 1]) continue;
    if (i && batch[i] < batch[i - 1] && bad[kOrder] < 0) bad[kOrder] = i;
    if ((batch[i] < 0 || (cells > 1 && batch[i] >= cells)) && bad[kRange] < 0) bad[kRange] = i;
    if (i) graphs.back().stop = i;
    Graph g{};
    g.start = i, g.stop = n, g.batch = batch[i], g.base = i + static_cast<int64_t>(graphs.size());
    graphs.push_back(g);
  }
  return graphs;
}

// Puts all atoms into the bins of their graphs.
template <class T>
void place(std::vector<Graph>& graphs, const T* pos, const T* cell, const bool* pbc, int64_t cells, double r,
           Atoms& atoms, Problems& bad) {
  std::vector<Problems> found(graphs.size(), kNone);
  parallel(graphs.size(), 32, [&](int64_t i) {
    Graph& g = graphs[i];
    for (int64_t x = 3 * g.stop - 1; x >= 3 * g.start; --x)
      if (!std::isfinite(pos[x])) found[i][kPosition] = x / 3;
    if (cell) {
      const int64_t which = cells == 1 ? 0 : g.batch;
      std::array<Triple, 3> rows;
      for (int k = 0; k < 9; ++k) rows[k / 3][k % 3] = cell[9 * which + k];
      if (!g.lattice.set(rows, pbc + 3 * which)) {
        found[i][kCell] = g.start;
        return;
      }
    }
    g.place(pos, r, cell != nullptr, atoms, found[i]);
  });
  for (const Problems& f : found) add(bad, f);
}

std::vector<Task> tasks_of(const std::vector<Graph>& graphs, const Atoms& atoms) {
  std::vector<Task> tasks;
  for (const Graph& g : graphs)
    for (int64_t b = 0, first = 0; b < g.total(); ++b) {
      const int64_t targets = atoms.starts[g.base + b + 1] - atoms.starts[g.base + first];
      if (targets < kTask && b + 1 < g.total()) continue;
      tasks.push_back({&g, first, b + 1 - first, atoms.starts[g.base + first], atoms.starts[g.base + b + 1], {}});
      first = b + 1;
    }
  return tasks;
}

// Rows of a task to where they belong: source and target [E], shift [E, 3].
void write(const Task& task, const Atoms& atoms, const int64_t* ends, const int64_t* counts, int64_t* source,
           int64_t* target, int32_t* shift) {
  const int64_t start = task.graph->start;
  const int64_t* key = task.keys.data();
  for (int64_t p = task.first; p < task.last; ++p) {
    const int64_t i = start + (atoms.label[p] >> 33), n = counts[i], row = ends[i] - n;
    for (int64_t e = 0; e < n; ++e) source[row + e] = start + (key[e] >> 33);
    std::fill_n(target + row, n, i);
    if (shift) {
      const int32_t *wraps = atoms.wraps, *own = wraps + 3 * i;
      const int32_t x = own[0] - kZero, y = own[1] - kZero, z = own[2] - kZero, ones = 2 * kZero - 1;
      for (int64_t e = 0; e < n; ++e) {
        const int64_t k = key[e];
        const int32_t* other = wraps + 3 * (start + (k >> 33));
        int32_t* to = shift + 3 * (row + e);
        to[0] = static_cast<int32_t>((k >> 22) & ones) + x - other[0];
        to[1] = static_cast<int32_t>((k >> 11) & ones) + y - other[1];
        to[2] = static_cast<int32_t>(k & ones) + z - other[2];
      }
    }
    key += n;
  }
}

}  // namespace

// pos [N, 3], batch [N], cell [B, 3, 3], pbc [B, 3] -> edge_index [2, E], shifts [E or 0, 3], problems [6]
static std::tuple<ace::Tensor, ace::Tensor, ace::Tensor> radius_graph(
    ace::Tensor pos_, ace::Tensor batch_, std::optional<ace::Tensor> cell_, std::optional<ace::Tensor> pbc_, double r,
    bool loop, int64_t most) {
  const Tensor pos = dense(pos_), batch = dense(batch_);
  const Tensor cell = cell_ ? dense(*cell_) : pos, pbc = pbc_ ? dense(*pbc_) : pos;
  const int64_t n = pos.size(0), cells = cell_ ? cell.size(0) : 0;
  Problems bad = kNone;
  std::vector<Graph> graphs = graphs_of(in<int64_t>(batch), n, cells, bad);
  Atoms atoms(n, graphs.size(), cell_.has_value());
  if (bad == kNone)
    dispatch(pos, [&]<class T>() {
      const T* rows = cell_ ? in<T>(cell) : nullptr;
      place<T>(graphs, in<T>(pos), rows, rows ? in<bool>(pbc) : nullptr, cells, r, atoms, bad);
    });
  std::vector<int64_t> counts(n, 0), ends(n, 0);
  std::vector<Task> tasks;
  if (bad == kNone) {
    tasks = tasks_of(graphs, atoms);
    torch::stable::parallel_for(0, tasks.size(), 1, [&](int64_t begin, int64_t end) {
      Search search{atoms, r * r, loop, most < 0 ? std::numeric_limits<int64_t>::max() : most, counts.data()};
      for (int64_t i = begin; i < end; ++i) search(tasks[i]);
    });
  }
  int64_t edges = 0;
  for (int64_t i = 0; i < n; ++i) ends[i] = edges += counts[i];
  Tensor edge_index = in_huge_pages(torch::stable::new_empty(pos, {2, edges}, ScalarType::Long));
  Tensor shifts = in_huge_pages(torch::stable::new_empty(pos, {cell_ ? edges : 0, 3}, ScalarType::Int));
  Tensor problems = torch::stable::new_empty(pos, {kProblems}, ScalarType::Long);
  std::copy(bad.begin(), bad.end(), out<int64_t>(problems));
  int64_t* source = out<int64_t>(edge_index);
  parallel(tasks.size(), 1, [&](int64_t i) {
    write(tasks[i], atoms, ends.data(), counts.data(), source, source + edges, cell_ ? out<int32_t>(shifts) : nullptr);
  });
  return {edge_index, shifts, problems};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("radius_graph(Tensor pos, Tensor batch, Tensor? cell, Tensor? pbc, float r, bool loop, int most) -> "
        "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("radius_graph", TORCH_BOX(&radius_graph));
}
