// How the paths of a product are shared out over launches of the CUDA kernels.
#pragma once

#include "channels.cuh"
#include "dense_x2.cuh"

#include <algorithm>
#include <tuple>

namespace ace::product {

// The paths that the dense kernels take (fully connected, shared weights, l <= 6, U and W below 850), those of the
// channel-wise kernels (uvu, l <= 8), and the others.
struct Parts { std::vector<Path> dense, channels, others; };

inline Parts split_paths(const std::vector<Path>& paths, bool shared) {
  Parts parts;
  const auto jobs = [](int mul, int d) { return ceil_div(d, 5) * ceil_div(mul, kWide); };
  for (const Path& p : paths) {
    const int d = std::max({p.d1, p.d2, p.d3});
    if (shared && p.mode == kUVW && d <= 13 && std::max(jobs(p.U, p.d1), jobs(p.W, p.d3)) <= kJobs)
      parts.dense.push_back(p);
    else (p.mode == kUVU && d <= 17 ? parts.channels : parts.others).push_back(p);
  }
  return parts;
}

inline std::vector<Path> weighted(std::vector<Path> paths) {
  paths.erase(std::remove_if(paths.begin(), paths.end(), [](const Path& p) { return p.weight < 0; }), paths.end());
  return paths;
}

// Numbers in the weights of "uvw" and "uvu" paths.
inline int64_t weights_of(const std::vector<Path>& dense, const std::vector<Path>& channels) {
  int64_t n = 0;
  for (const Path& p : dense) n += int64_t(p.U) * p.V * p.W;
  for (const Path& p : channels) n += p.weight < 0 ? 0 : int64_t(p.U) * p.V;
  return n;
}

// f(paths of one launch)
template <class F>
void for_launches(const std::vector<Path>& paths, F&& f) {
  for (size_t first = 0; first < paths.size(); first += kPaths) {
    Paths some{static_cast<int>(std::min<size_t>(kPaths, paths.size() - first)), {}};
    std::copy_n(paths.begin() + first, some.count, some.path);
    f(some);
  }
}

template <Role role> int slice_offset(const Path& p) { return role == Role::forward ? p.o3 : p.o1; }
template <Role role> int slice_mul(const Path& p) { return role == Role::forward ? p.W : p.U; }
template <Role role> int slice_d(const Path& p) { return role == Role::forward ? p.d3 : p.d1; }
template <Role role>
bool earlier(const Path& a, const Path& b) { return slice_offset<role>(a) < slice_offset<role>(b); }

// Whether these paths leave nothing to be zeroed or added to: all columns are theirs, and of one kernel.
template <Role role>
bool reaches_all(const Parts& parts, int64_t dim) {
  if (!parts.others.empty() || parts.dense.empty() == parts.channels.empty()) return false;
  std::vector<Path> paths = parts.dense.empty() ? parts.channels : parts.dense;
  std::sort(paths.begin(), paths.end(), earlier<role>);
  int64_t next = 0;
  for (const Path& p : paths)
    if (slice_offset<role>(p) == next) next += int64_t(slice_mul<role>(p)) * slice_d<role>(p);
  return next == dim;
}

// One launch of the dense kernel.
struct DenseLaunch {
  DenseJobs jobs{};
  int components = 1, space = 0, rows_of_m = 0;  // at once in a tile; values for coefficients and for a row's M

  template <class T>
  size_t shared(int teams) const {
    const size_t team = kSegments<T> * ((kRows * rows_of_m + 3) / 4 * 4) + components * kRows * kLeftStride<T>;
    return ((space + 3) / 4 * 4 + kRightSize<T> + teams * team) * sizeof(T);
  }
};

inline int bias_of(const std::vector<int64_t>& slots, const Path& p) {
  int first = 0;
  for (size_t s = 0; s + 1 < slots.size(); first += static_cast<int>(slots[s + 1]), s += 2)
    if (slots[s] == p.o3 && slots[s + 1] == p.W) return first;
  return -1;
}

// Adds the jobs of one slice of the output, whose paths begin at `first` of the launch.
template <Role role>
void add_jobs(DenseLaunch& plan, int first, int bias, bool add) {
  DenseJobs& jobs = plan.jobs;
  const Path& p = jobs.path[first];
  const int d = slice_d<role>(p), at_once = d <= 1 ? 1 : d <= 3 ? 3 : d <= 5 ? 5 : 7;
  plan.components = std::max(plan.components, at_once);
  int space = 0;
  for (int n = first; n < jobs.paths; ++n) {
    space += dense_size(jobs.path[n]);
    plan.space = std::max(plan.space, dense_size(jobs.path[n]));
    const int a_d = role == Role::forward ? jobs.path[n].d1 : jobs.path[n].d3;
    plan.rows_of_m = std::max(plan.rows_of_m, a_d * at_once);
  }
  plan.space = std::max(plan.space, std::min(space, kDenseSpace));
  for (int component = 0; component < d; component += at_once)
    for (int channel = 0; channel < slice_mul<role>(p); channel += kWide)
      jobs.job[jobs.count++] = {first, jobs.paths, component, channel, bias, add};
}

// Adds launches that together write (or add to) every slice that the sorted `paths` reach. A slice with more paths than
// a launch takes is written by the first and added to by the next.
template <Role role>
void plan_slices(std::vector<DenseLaunch>& plans, const std::vector<Path>& paths, const std::vector<int64_t>& slots,
                 bool add) {
  const size_t before = plans.size();
  for (size_t first = 0, end; first < paths.size(); first = end) {
    const int offset = slice_offset<role>(paths[first]);
    for (end = first; end < paths.size() && slice_offset<role>(paths[end]) == offset;) ++end;
    const int64_t jobs = ceil_div(slice_d<role>(paths[first]), 5) * ceil_div(slice_mul<role>(paths[first]), kWide);
    bool again = add;
    for (size_t n = first; n < end; again = true) {
      const size_t some = std::min<size_t>(end - n, kDensePaths);
      if (plans.size() == before || plans.back().jobs.paths + some > kDensePaths ||
          plans.back().jobs.count + jobs > kJobs)
        plans.emplace_back();
      DenseJobs& to = plans.back().jobs;
      const int begin = to.paths;
      std::copy_n(paths.begin() + n, some, to.path + begin);
      to.paths += static_cast<int>(some);
      add_jobs<role>(plans.back(), begin, again ? -1 : bias_of(slots, paths[first]), again);
      n += some;
    }
  }
}

// Slices of up to 5 components and those of more in launches of their own: two kernels.
template <Role role>
std::vector<DenseLaunch> plan_dense(std::vector<Path> paths, const std::vector<int64_t>& slots, bool add) {
  std::stable_sort(paths.begin(), paths.end(), earlier<role>);
  const auto low = [](const Path& p) { return slice_d<role>(p) <= 5; };
  const auto high = std::stable_partition(paths.begin(), paths.end(), low);
  std::vector<DenseLaunch> plans;
  plan_slices<role>(plans, std::vector<Path>(paths.begin(), high), slots, add);
  plan_slices<role>(plans, std::vector<Path>(high, paths.end()), slots, add);
  return plans;
}

// One launch of the gradient of x2.
struct X2Launch {
  X2Paths paths{};
  int jobs = 0, space = 0, row_of_n = 0, components = 1;
};

// Whether multiplying x1 with the weights costs less than multiplying g: tiles of 8 on the tensor cores, three products,
// and the sum over the other operand's channels, whose instructions take about five times as long for a number.
inline bool multiplies_x1(const Path& p) {
  const auto cost = [&](int64_t deep, int64_t wide, int64_t d) {
    return 3 * ceil_div(deep, 8) * 8 * ceil_div(wide, 8) * 8 * d + 5 * wide * p.d1 * p.d3;
  };
  return cost(p.U, p.W, p.d1) < cost(p.W, p.U, p.d3);
}

// Launches that together have all paths; where blocks do not have whole rows of x2, by the slice that they add to.
inline std::vector<X2Launch> plan_x2(std::vector<Path> paths, bool whole) {
  const auto order = [&](const Path& p) {
    const bool by_u = multiplies_x1(p);
    return std::make_tuple(whole ? 0 : p.o2, by_u, by_u ? p.o1 : p.o3, whole ? p.o2 : 0);
  };
  std::stable_sort(paths.begin(), paths.end(), [&](const Path& a, const Path& b) { return order(a) < order(b); });
  std::vector<X2Launch> plans;
  int total = 0;
  for (const Path& p : paths) {
    if (plans.empty() || plans.back().paths.count == kX2Paths) plans.emplace_back(), total = 0;
    X2Launch& plan = plans.back();
    const int n = plan.paths.count++;
    const bool by_u = plan.paths.by_u[n] = multiplies_x1(p);
    plan.paths.path[n] = p;
    if (whole) plan.jobs = 1;
    else if (n == 0 || plan.paths.path[n - 1].o2 != p.o2) plan.jobs += p.V;
    const int d = by_u ? p.d1 : p.d3, at_once = d <= 1 ? 1 : d <= 3 ? 3 : 5;
    plan.components = std::max(plan.components, at_once);
    plan.row_of_n = std::max(plan.row_of_n, at_once * (by_u ? p.d3 : p.d1));
    total += dense_size(p);
    plan.space = std::max({plan.space, dense_size(p), std::min(total, kDenseSpace)});
  }
  return plans;
}

// Whether the launches for these paths write all of x2's columns, so that nothing need be zero before.
inline bool writes_x2(std::vector<Path> paths, int64_t dim, bool whole) {
  if (paths.empty() || whole) return !paths.empty();
  if (paths.size() > kX2Paths) return false;  // two launches may share a slice
  std::sort(paths.begin(), paths.end(), [](const Path& a, const Path& b) { return a.o2 < b.o2; });
  int64_t next = 0;
  for (const Path& p : paths)
    if (p.o2 == next) next += int64_t(p.V) * p.d2;
  return next == dim;
}

// One launch of the channel-wise kernels: 32 G channels at a time.
struct ChannelLaunch {
  ChannelPaths paths{};
  ChannelSpace space{};
  int groups = 1;

  template <class T>
  size_t shared() const {
    return (space.dense + kWarps * (space.staged + space.m + space.buffer)) * sizeof(T);
  }
};

template <Role role>
void size_launch(ChannelLaunch& plan, bool wide_type) {
  int total = 0, most = 0;
  for (int n = 0; n < plan.paths.count; ++n) most = std::max(most, plan.paths.path[n].U);
  plan.groups = most <= 32 ? 1 : most <= 64 || wide_type ? 2 : 4;
  for (int n = 0; n < plan.paths.count; ++n) {
    const Path& p = plan.paths.path[n];
    const int read = role == Role::forward ? p.d1 : p.d3, at_once = std::min(slice_d<role>(p), 7);
    total += dense_size(p);
    plan.space.dense = std::max(plan.space.dense, dense_size(p));
    plan.space.staged = std::max(plan.space.staged, std::min(most, 32 * plan.groups) * read);
    plan.space.m = std::max(plan.space.m, read * at_once);
    plan.space.buffer = std::max(plan.space.buffer, 32 * at_once);
  }
  plan.space.dense = std::max(plan.space.dense, std::min(total, kChannelSpace));
}

// Launches that write (or add to) every slice that the paths reach; wide_type: float64, which has fewer registers.
template <Role role>
std::vector<ChannelLaunch> plan_channels(std::vector<Path> paths, bool add, bool wide_type) {
  std::stable_sort(paths.begin(), paths.end(), earlier<role>);
  std::vector<ChannelLaunch> plans;
  for (size_t n = 0; n < paths.size(); ++n) {
    if (n % kChannelPaths == 0) plans.emplace_back();
    ChannelPaths& to = plans.back().paths;
    const bool again = n > 0 && to.count == 0 && slice_offset<role>(paths[n - 1]) == slice_offset<role>(paths[n]);
    to.add[to.count] = add || again;
    to.path[to.count++] = paths[n];
  }
  for (ChannelLaunch& plan : plans) size_launch<role>(plan, wide_type);
  return plans;
}

}  // namespace ace::product
