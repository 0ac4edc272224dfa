// Random numbers that depend on a seed and a counter alone: Philox4x32-10, see philox.py.
#pragma once

#include <array>
#include <cstdint>

namespace ace {

// Four words of 32 bits; what is drawn for two purposes takes two streams.
inline std::array<uint32_t, 4> philox(uint64_t seed, uint64_t row, uint32_t stream = 0) {
  uint32_t c0 = row, c1 = row >> 32, c2 = stream, c3 = 0, k0 = seed, k1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53) * c0, b = uint64_t(0xCD9E8D57) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0, c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1, c3 = uint32_t(a);
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

// A multiple of 2^-24 in [0, 1), exact in float and double alike.
template <class T>
inline T uniform(uint32_t word) { return static_cast<T>(word >> 8) * T(1.0 / (1 << 24)); }

}  // namespace ace
