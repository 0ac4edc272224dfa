// What tables.py says of a product, and how real spherical harmonics behave under mirrors; for the host and for GPUs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ace::sphere {

enum Form : int64_t { kDense, kMirrored, kSeparable, kSparse };

struct Slot {
  int64_t degree, power, offset, parts, twist;
  int64_t dim() const { return (degree + 1) * (degree + 1); }
};

inline std::vector<Slot> read_slots(const int64_t* values, size_t count) {
  std::vector<Slot> slots(count);
  for (Slot& slot : slots) {
    slot = {values[0], values[1], values[2], values[3], values[4]};
    values += 5;
  }
  return slots;
}

constexpr int kMirrors = 8;  // images of a point under x -> -x, y -> -y, z -> -z

// A bit for each mirror under which a component is odd, as `parities` in tables.py has it.
constexpr int64_t parity(int64_t l, int64_t m) {
  const int64_t sine = m < 0;
  return sine | ((m & 1) ^ sine) << 1 | ((l + m) & 1) << 2;
}

}  // namespace ace::sphere
