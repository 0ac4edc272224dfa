// How "uvu" paths are shared out over the warps of the CUDA kernels. A stream is at most 32 channels of a slice of in1;
// a unit is one stream, or two whose paths differ in nothing but where they read and write, so that what does not
// depend on the channels is computed once for both. A job is what one warp does in the forward pass: the paths of a
// unit with one slice of in2.
#pragma once

#include "formula.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <tuple>
#include <vector>

namespace ace::conv {

constexpr int kWarps = 16, kUnits = 16, kEntries = 80;
template <class T> constexpr int kThreads = sizeof(T) == 4 ? 512 : 256;  // of a block: as registers allow

struct Entry {  // a path, for each stream of its unit
  short d2, d3, V, weighted;
  int o2, y[2], w[2];  // o2: column of in2; y, w: first column of out, first weight
  short path[2];
};

struct Unit {
  int x[2];  // first column of in1
  short d1, mul, count, streams, first, entries;  // mul: channels of the whole slice, count: of a stream
};

struct Job { short unit, first, count; };

struct Plan {  // an argument of a launch: less than 4 KB
  int units, entries;
  Unit unit[kUnits];
  Entry entry[kEntries];
  Job job[kEntries];
  short begin[kWarps + 1];  // the jobs of each warp, or of each half of one
};

// A path as the host reads it: table.py, Path, and its number.
struct HostPath { int o1, U, d1, o2, V, d2, o3, W, d3, weight, start, stop, mode, number; };

namespace plan {

struct Stream {
  int o1, U, d1, first, count;
  std::vector<HostPath> paths;

  // Streams of equal signature can be one unit.
  std::vector<int> signature() const {
    std::vector<int> s{U, d1, count};
    for (const HostPath& p : paths) s.insert(s.end(), {p.o2, p.d2, p.d3, p.V, p.weight >= 0});
    return s;
  }
};

inline std::vector<Stream> streams_of(const std::vector<HostPath>& paths) {
  std::vector<Stream> streams;
  std::map<std::tuple<int, int, int>, size_t> known;
  for (const HostPath& p : paths)
    for (int first = 0; first < p.U; first += 32) {
      const auto [at, added] = known.try_emplace({p.o1, p.d1, first}, streams.size());
      if (added) streams.push_back({p.o1, p.U, p.d1, first, std::min(32, p.U - first), {}});
      streams[at->second].paths.push_back(p);
    }
  for (Stream& s : streams)
    std::stable_sort(s.paths.begin(), s.paths.end(), [](const HostPath& a, const HostPath& b) {
      return std::tuple(a.o2, a.d2, a.d3) < std::tuple(b.o2, b.d2, b.d3);
    });
  return streams;
}

inline int cost(const Entry& e, int d1, int streams) {
  return streams * (d1 * e.d3 + std::min<int>(d1, e.d3) + 4) + d1 * e.d3 / 2;
}

// Appends a unit; `two` may be null.
inline void add_unit(Plan& plan, const Stream& one, const Stream* two, bool ir_mul) {
  Unit& unit = plan.unit[plan.units++];
  const Stream* both[2] = {&one, two ? two : &one};
  unit = {{}, static_cast<short>(one.d1), static_cast<short>(one.U), static_cast<short>(one.count),
          static_cast<short>(two ? 2 : 1), static_cast<short>(plan.entries), static_cast<short>(one.paths.size())};
  for (int s = 0; s < 2; ++s) unit.x[s] = both[s]->o1 + both[s]->first * (ir_mul ? 1 : one.d1);
  for (size_t n = 0; n < one.paths.size(); ++n) {
    Entry& entry = plan.entry[plan.entries++];
    const HostPath& p = one.paths[n];
    entry = {static_cast<short>(p.d2), static_cast<short>(p.d3), static_cast<short>(p.V), p.weight >= 0, p.o2,
             {}, {}, {}};
    for (int s = 0; s < 2; ++s) {
      const HostPath& q = both[s]->paths[n];
      entry.y[s] = q.o3 + both[s]->first * (ir_mul ? 1 : q.d3);
      entry.w[s] = q.weight + both[s]->first * q.V;
      entry.path[s] = static_cast<short>(q.number);
    }
  }
}

// The jobs of a plan. Those that add to the same columns of out are the same warp's, one after the other.
inline void add_jobs(Plan& plan) {
  struct Set { int cost; std::vector<Job> jobs; };
  std::vector<Set> sets;
  std::map<int, size_t> owner;  // of a first column of out
  for (int u = 0; u < plan.units; ++u) {
    const Unit& unit = plan.unit[u];
    for (int n = unit.first, end = n + unit.entries, next; n < end; n = next) {
      const auto high = [](const Entry& e) { return e.d3 / 2 > kMaxDegree; };
      const auto together = [&](int m) {  // one slice of in2, each degree of out once; code of their own or none
        const Entry &a = plan.entry[m], &b = plan.entry[m - 1];
        return a.o2 == b.o2 && a.d2 == b.d2 && a.d3 != b.d3 && a.V == 1 && b.V == 1 && high(a) == high(b);
      };
      for (next = n + 1; next < end && together(next);) ++next;
      Set set{0, {{static_cast<short>(u), static_cast<short>(n), static_cast<short>(next - n)}}};
      std::vector<size_t> meets;
      for (int m = n; m < next; ++m) {
        set.cost += cost(plan.entry[m], unit.d1, unit.streams);
        for (int s = 0; s < unit.streams; ++s) {
          const auto found = owner.find(plan.entry[m].y[s]);
          if (found != owner.end()) meets.push_back(found->second);
        }
      }
      const size_t at = meets.empty() ? sets.size() : *std::min_element(meets.begin(), meets.end());
      if (meets.empty()) sets.push_back({});
      for (const size_t other : meets)  // everything that meets becomes one set
        if (other != at && !sets[other].jobs.empty()) {
          sets[at].cost += sets[other].cost;
          sets[at].jobs.insert(sets[at].jobs.end(), sets[other].jobs.begin(), sets[other].jobs.end());
          for (auto& [column, set_of] : owner)
            if (set_of == other) set_of = at;
          sets[other] = {};
        }
      sets[at].cost += set.cost;
      sets[at].jobs.push_back(set.jobs[0]);
      for (int m = n; m < next; ++m)
        for (int s = 0; s < unit.streams; ++s) owner[plan.entry[m].y[s]] = at;
    }
  }
  std::stable_sort(sets.begin(), sets.end(), [](const Set& a, const Set& b) { return a.cost > b.cost; });
  std::vector<Set> warps(kWarps);
  for (const Set& set : sets) {
    Set& least = *std::min_element(warps.begin(), warps.end(),
                                   [](const Set& a, const Set& b) { return a.cost < b.cost; });
    least.cost += set.cost;
    least.jobs.insert(least.jobs.end(), set.jobs.begin(), set.jobs.end());
  }
  int next = 0;
  for (int w = 0; w < kWarps; ++w) {
    plan.begin[w] = static_cast<short>(next);
    for (const Job& job : warps[w].jobs) plan.job[next++] = job;
  }
  plan.begin[kWarps] = static_cast<short>(next);
}

}  // namespace plan

// Plans that together hold all paths, empty where one stream alone has too many. `pairs`: units may have two streams.
inline std::vector<Plan> make_plans(const std::vector<HostPath>& paths, bool ir_mul, bool pairs) {
  std::vector<plan::Stream> streams = plan::streams_of(paths);
  std::vector<std::pair<int, int>> units;  // streams of each, -1: none
  std::map<std::vector<int>, int> single;  // signature -> unit that lacks a second stream
  for (int s = 0; s < static_cast<int>(streams.size()); ++s) {
    if (streams[s].paths.size() > kEntries) return {};
    const std::vector<int> signature = streams[s].signature();
    const auto found = single.find(signature);
    if (pairs && found != single.end()) {
      units[found->second].second = s;
      single.erase(found);
    } else {
      single[signature] = static_cast<int>(units.size());
      units.push_back({s, -1});
    }
  }
  const auto work = [&](const std::pair<int, int>& unit) {
    int sum = 0;
    for (const HostPath& p : streams[unit.first].paths) sum += p.d1 * p.d3;
    return unit.second < 0 ? sum : 2 * sum;
  };
  std::stable_sort(units.begin(), units.end(), [&](const auto& a, const auto& b) { return work(a) > work(b); });
  std::vector<Plan> plans;
  for (const auto& [one, two] : units) {
    const int entries = static_cast<int>(streams[one].paths.size());
    if (plans.empty() || plans.back().units == kUnits || plans.back().entries + entries > kEntries)
      plans.push_back(Plan{});
    plan::add_unit(plans.back(), streams[one], two < 0 ? nullptr : &streams[two], ir_mul);
  }
  for (Plan& p : plans) plan::add_jobs(p);
  return plans;
}

}  // namespace ace::conv
