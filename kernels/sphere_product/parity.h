// How real spherical harmonics behave under mirrors; for the host and for GPUs.
#pragma once

#include <cstdint>

namespace ace::sphere {

constexpr int kMirrors = 8;  // images of a point under x -> -x, y -> -y, z -> -z

// A bit for each mirror under which a component is odd, as `parities` in tables.py has it.
constexpr int64_t parity(int64_t l, int64_t m) {
  const int64_t sine = m < 0;
  return sine | ((m & 1) ^ sine) << 1 | ((l + m) & 1) << 2;
}

}  // namespace ace::sphere
